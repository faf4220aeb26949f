"""Your own pictures: a folder or zip of images beside `captions.jsonl[.gz]`.

Source: anything of yours in this form; licence and size are those of your data.
Each line of the captions file is `{"key": .., "image": "name.webp", "split": "train", "captions": {"en": ["..", ..]},
"parallel": {"en": "..", "de": ".."}}`. `split` is "train" where it is left out, `key` the image's name without ending;
`captions` or `parallel` may be left out, `parallel` being one sentence about the picture in several languages.
Images lie beside the captions, in subfolders, or in zip files there; or the source is itself one zip that holds both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from cclm.data.raw import Images, Skipped, open_images, open_zip, read_lines, record_key
from cclm.data.records import parse_json
from cclm.errors import SampleError
from cclm.types import Record

CAPTIONS = ("captions.jsonl", "captions.jsonl.gz")


def open_source(source: Path, stack: ExitStack) -> tuple[str, IO[bytes], Images]:
    """Name and bytes of the captions file, and the images, of a folder or zip."""
    if source.is_dir():
        found = next((source / name for name in CAPTIONS if (source / name).is_file()), None)
        if found is not None:
            return str(found), stack.enter_context(open(found, "rb")), stack.enter_context(open_images(source))
    elif source.is_file():
        images, archive = Images(), stack.enter_context(open_zip(source))
        images.add_zip(archive)
        for name in archive.namelist():
            if Path(name).name in CAPTIONS:
                return f"{source}/{name}", stack.enter_context(archive.open(name)), images
    else:
        raise ValueError(f"folder: there is no {source}: give a folder or zip of images and {' or '.join(CAPTIONS)}")
    raise ValueError(f"folder: {source} has no {' or '.join(CAPTIONS)}: the file that names the images' captions")


def texts(value: Any) -> dict[str, list[str]]:
    """`{language: [text, ..]}` without empty texts; a lone string counts as a list of one."""
    if not isinstance(value, dict):
        raise SampleError("captions are not {language: [text, ..]}")
    found = {}
    for language, given in value.items():
        listed = [given] if isinstance(given, str) else given
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise SampleError("captions are not {language: [text, ..]}")
        kept = [text.strip() for text in listed if text.strip()]
        if kept:
            found[language] = kept
    return found


def parse(line: str, images: Images) -> tuple[str, Record]:
    """(split, record) of one line. Errors: SampleError."""
    row = parse_json(line)
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        raise SampleError("names no image")
    captions, parallel = texts(row.get("captions") or {}), texts(row.get("parallel") or {})
    if not captions and not parallel:
        raise SampleError("no captions")
    image = images.read(row["image"])
    key = record_key(str(row.get("key", Path(row["image"]).with_suffix(""))))
    sentences = {language: given[0] for language, given in parallel.items()}
    split = record_key(str(row.get("split") or "train"))
    return split, Record(key=key, image=image, captions=captions, parallel=sentences)


def records(source: Path) -> Iterator[tuple[str, Record]]:
    """Yield (split, record) in the order of the captions file. Bad lines are left out, counted and logged."""
    with ExitStack() as stack:
        name, handle, images = open_source(source, stack)
        skipped = stack.enter_context(Skipped(name))
        for number, line in enumerate(read_lines(name, handle), 1):
            try:
                yield parse(line, images)
            except SampleError as error:
                skipped.add(error.reason, f"line {number}")
