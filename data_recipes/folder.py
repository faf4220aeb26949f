"""Your own pictures: a folder or zip of images beside `captions.jsonl[.gz]`.

Source: anything of yours in this form; licence and size are those of your data.
Each line of the captions file is `{"key": .., "image": "name.webp", "split": "train", "captions": {"en": ["..", ..]},
"parallel": {"en": "..", "de": ".."}}`. `split` is "train" where it is left out, `key` the image's name without ending;
`captions` or `parallel` may be left out, `parallel` being one sentence about the picture in several languages.
Images lie beside the captions, in subfolders, or in zip files there; or the source is itself one zip that holds both.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cclm.types import Record

log = logging.getLogger(__name__)

CAPTIONS = ("captions.jsonl", "captions.jsonl.gz")
ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
LARGEST_IMAGE = 64 * 2**20  # bytes; what claims to be larger is no photo but a bomb


@dataclass
class Images:
    """Image files by name, wherever they lie: a folder, its subfolders, zips."""

    files: dict[str, Path] = field(default_factory=dict)
    members: dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = field(default_factory=dict)

    def add_folder(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in ENDINGS:
                self.files.setdefault(path.name, path)
                self.files[path.relative_to(folder).as_posix()] = path

    def add_zip(self, archive: zipfile.ZipFile) -> None:
        for info in archive.infolist():
            name = Path(info.filename)
            if name.suffix.lower() in ENDINGS:
                self.members.setdefault(name.name, (archive, info))
                self.members[info.filename] = (archive, info)

    def read(self, name: str) -> bytes | str:
        """The image's bytes, or the reason why there are none."""
        path = self.files.get(name)
        if path is not None:
            return path.read_bytes() if path.stat().st_size <= LARGEST_IMAGE else "image too large"
        if name not in self.members:
            return "image missing"
        archive, info = self.members[name]
        if info.file_size > LARGEST_IMAGE:
            return "image too large"
        try:
            return archive.read(info)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError):
            return "image unreadable in its zip"


def open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"folder: {path} is no whole zip file ({error}): fetch or pack it again") from None


def open_source(source: Path, stack: ExitStack) -> tuple[IO[bytes], str, Images]:
    """The captions file (bytes, name) and the images of a folder or zip."""
    images = Images()
    if source.is_dir():
        found = next((source / name for name in CAPTIONS if (source / name).is_file()), None)
        if found is not None:
            images.add_folder(source)
            for path in sorted(source.glob("*.zip")):
                images.add_zip(stack.enter_context(open_zip(path)))
            return stack.enter_context(open(found, "rb")), found.name, images
    elif source.is_file():
        archive = stack.enter_context(open_zip(source))
        images.add_zip(archive)
        for name in archive.namelist():
            if Path(name).name in CAPTIONS:
                return stack.enter_context(archive.open(name)), name, images
    else:
        raise ValueError(f"folder: there is no {source}: give a folder or zip of images and {' or '.join(CAPTIONS)}")
    raise ValueError(f"folder: {source} has no {' or '.join(CAPTIONS)}: the file that names the images' captions")


def texts(value: Any) -> dict[str, list[str]]:
    """`{language: [text, ..]}` from what a row holds, without empty texts; a lone string counts as a list of one."""
    if not isinstance(value, dict):
        raise TypeError("no object of languages")
    found = {}
    for language, given in value.items():
        listed = [given] if isinstance(given, str) else given
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise TypeError("texts that are no strings")
        kept = [text.strip() for text in listed if text.strip()]
        if kept:
            found[language] = kept
    return found


def parse(line: str, images: Images) -> tuple[str, Record] | str:
    """(split, record) of one line, or the reason why it gives none."""
    try:
        row = json.loads(line)
        name = row["image"]
        captions, parallel = texts(row.get("captions") or {}), texts(row.get("parallel") or {})
        split, key = str(row.get("split", "train")), str(row.get("key", Path(name).stem))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return "line is not of the form described in data_recipes/folder.py"
    if not captions and not parallel:
        return "no captions"
    image = images.read(name)
    if isinstance(image, str):
        return image
    sentences = {language: given[0] for language, given in parallel.items()}
    return split, Record(key=key, image=image, captions=captions, parallel=sentences)


def records(source: Path) -> Iterator[tuple[str, Record]]:
    """Yield (split, record) in the order of the captions file. Bad lines are skipped, counted and logged."""
    skipped: Counter[str] = Counter()
    first: dict[str, int] = {}
    with ExitStack() as stack:
        handle, name, images = open_source(source, stack)
        if name.endswith(".gz"):
            handle = stack.enter_context(gzip.open(handle))
        try:
            for number, line in enumerate(io.TextIOWrapper(handle, encoding="utf-8"), 1):
                outcome = parse(line, images)
                if isinstance(outcome, str):
                    skipped[outcome] += 1
                    first.setdefault(outcome, number)
                else:
                    yield outcome
        except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"folder: {name} of {source} ends early or is no UTF-8 text ({error}): replace it"
            ) from None
    for reason, count in skipped.items():
        log.warning("%s: %d lines skipped, first line %d: %s", source, count, first[reason], reason)
