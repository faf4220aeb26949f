"""Raw data as recipes find it: text files, plain or gzipped; images in folders and zips; a tally of what is skipped."""

from __future__ import annotations

import gzip
import io
import json
import logging
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from cclm.data.images import check_header
from cclm.data.records import IMAGE_SUFFIXES, MEMBER_BYTES, SampleError, image_suffix

log = logging.getLogger(__name__)


class Skipped(AbstractContextManager["Skipped"]):
    """Counts what a recipe leaves out, by reason, and logs it with the first place when the block ends."""

    def __init__(self, source: Path | str) -> None:
        self.source = source
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reason, count in self.counts.items():
            log.warning("%s: %d left out, first %s: %s", self.source, count, self.first[reason], reason)


def read_lines(path: Path | str, handle: IO[bytes] | None = None) -> Iterator[str]:
    """Lines of a UTF-8 file, gunzipped where the name ends in .gz, without line ends; `handle` is it, already open.

    Errors: OSError; ValueError naming the file where it is cut, damaged or in another encoding.
    """
    with open(path, "rb") if handle is None else handle as raw:
        plain = gzip.GzipFile(fileobj=raw) if str(path).endswith(".gz") else raw
        try:
            for line in io.TextIOWrapper(plain, encoding="utf-8-sig", newline="\n"):
                yield line.rstrip("\r\n")
        except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is cut, damaged or no UTF-8 text ({error}): fetch or write it again") from None


def read_json(path: Path) -> Any:
    """A whole JSON file. Errors: OSError; ValueError naming the file."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is cut or no JSON ({error}): fetch or write it again") from None


def read_json_items(path: Path, chunk: int = 2**20) -> Iterator[Any]:
    """The items of a file that is one large JSON list, read in pieces so that memory holds one item at a time."""
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8") as text:
        buffer = text.read(chunk).lstrip()
        if not buffer.startswith("["):
            raise ValueError(f"{path} is no JSON list: fetch it again")
        buffer = buffer[1:]
        while True:
            buffer = buffer.lstrip(" \t\r\n,")
            if buffer.startswith("]"):
                return
            try:
                item, end = decoder.raw_decode(buffer)
            except ValueError as error:
                more = text.read(max(chunk, len(buffer)))
                if not more:
                    raise ValueError(f"{path} is cut or no JSON ({error}): fetch it again") from None
                buffer += more
                continue
            yield item
            buffer = buffer[end:]


def record_key(text: str) -> str:
    """`text` as a record key, which must do without dots, `#`, blanks and slashes."""
    return re.sub(r"[.#/\s]+", "_", text) or "_"


def open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no whole zip file ({error}): fetch or pack it again") from None


@dataclass
class Images:
    """Image files by path or bare name, wherever they lie: a folder, its subfolders, zips."""

    files: dict[str, Path] = field(default_factory=dict)
    members: dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = field(default_factory=dict)

    def add_folder(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES:
                self.files.setdefault(path.name, path)
                self.files[path.relative_to(folder).as_posix()] = path

    def add_zip(self, archive: zipfile.ZipFile) -> None:
        for info in archive.infolist():
            name = Path(info.filename)
            if name.suffix.lower().lstrip(".") in IMAGE_SUFFIXES:
                self.members.setdefault(name.name, (archive, info))
                self.members[info.filename] = (archive, info)

    def read(self, name: str) -> bytes:
        """The image's bytes. Errors: SampleError with the reason why there are none."""
        if name in self.files:
            size = self.files[name].stat().st_size
        elif name in self.members:
            size = self.members[name][1].file_size
        else:
            raise SampleError("image missing")
        if size > MEMBER_BYTES:
            raise SampleError(f"image over {MEMBER_BYTES} bytes")
        try:
            image = self.files[name].read_bytes() if name in self.files else self._unzip(name)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError):
            raise SampleError("image damaged in its zip") from None
        if image_suffix(image) is None:
            raise SampleError("image neither jpeg, png nor webp")
        check_header(image)
        return image

    def _unzip(self, name: str) -> bytes:
        archive, info = self.members[name]
        return archive.read(info)
