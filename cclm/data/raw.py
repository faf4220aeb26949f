"""Raw data as recipes find it: text files, plain or gzipped; images in folders and zips; a tally of what is skipped."""

from __future__ import annotations

import gzip
import io
import json
import logging
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Self, TypeAlias

from cclm.data.image_ids import photo_number
from cclm.data.records import IMAGE_SUFFIXES, MEMBER_BYTES, image_suffix
from cclm.errors import SampleError
from cclm.images import check_header

log = logging.getLogger(__name__)

# What stands between JSON values, and what can follow one.
_BETWEEN = re.compile(r"[ \t\r\n,:]*")
_AFTER = re.compile(r"[ \t\r\n,:\]}]")


class Skipped(AbstractContextManager["Skipped"]):
    """Counts what a recipe leaves out, by reason, and logs it with the first place when the block ends."""

    def __init__(self, source: Path | str) -> None:
        self.source = source
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, where: str, count: int = 1) -> None:
        self.counts[reason] += count
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
    yield from _read_values(path, "[", chunk)


def read_json_members(path: Path, chunk: int = 2**20) -> Iterator[tuple[str, Any]]:
    """The keys and values of a file that is one large JSON object, read in pieces like a list's items."""
    values = _read_values(path, "{", chunk)
    for key in values:
        yield str(key), next(values, None)


def _read_values(path: Path, opening: str, chunk: int) -> Iterator[Any]:
    """What stands between the outermost brackets: items, or keys and values by turns. Errors: ValueError."""
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8-sig") as text:
        try:
            buffer = text.read(chunk).lstrip()
            if not buffer.startswith(opening):
                kind = "list" if opening == "[" else "object"
                raise ValueError(f"{path} is no JSON {kind}: fetch it again")
            place = 1
            while True:
                gap = _BETWEEN.match(buffer, place)
                assert gap is not None
                place = gap.end()
                if buffer[place : place + 1] in ("]", "}"):
                    return
                try:
                    item, end = decoder.raw_decode(buffer, place)
                    whole = _AFTER.match(buffer, end) is not None  # of 1.23, the buffer may end with 1.
                    reason = "no comma follows a value"
                except json.JSONDecodeError as error:
                    whole, reason = False, str(error)
                if whole:
                    yield item
                    place = end
                elif more := text.read(max(chunk, len(buffer) - place)):
                    buffer, place = buffer[place:] + more, 0
                else:
                    raise ValueError(f"{path} is cut or no JSON ({reason}): fetch it again")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is damaged or no UTF-8 text ({error}): fetch it again") from None


def record_key(text: str) -> str:
    """`text` as a record key, which must do without dots, `#`, blanks and slashes."""
    return re.sub(r"[.#/\s]+", "_", text) or "_"


def open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no whole zip file ({error}): fetch or pack it again") from None


def check_image(image: bytes) -> tuple[int, int]:
    """(width, height) of an encoded image that shards can hold. Errors: SampleError."""
    if len(image) > MEMBER_BYTES:
        raise SampleError(f"image over {MEMBER_BYTES} bytes")
    if image_suffix(image) is None:
        raise SampleError("image neither jpeg, png nor webp")
    return check_header(image)


Place: TypeAlias = Path | tuple[zipfile.ZipFile, zipfile.ZipInfo]


def composed(path: str) -> str:
    """A path as it is compared: archives and systems differ in whether they write é as one character or as two."""
    return unicodedata.normalize("NFC", PurePosixPath(path).as_posix())


def read_place(place: Place) -> bytes:
    """The bytes of an image file. Errors: SampleError where shards cannot hold it, or its zip is damaged."""
    size = place.stat().st_size if isinstance(place, Path) else place[1].file_size
    if size > MEMBER_BYTES:  # seen before it is unpacked
        raise SampleError(f"image over {MEMBER_BYTES} bytes")
    try:
        image = place.read_bytes() if isinstance(place, Path) else place[0].read(place[1])
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError):
        raise SampleError("image damaged in its zip") from None
    check_image(image)
    return image


def _without_ending(path: str) -> str:
    start, _, ending = path.rpartition(".")
    return start if ending.lower() in IMAGE_SUFFIXES else path


def _ending(places: dict[str, list[tuple[str, Place]]], end: str) -> list[Place]:
    """The file of this path, then those whose path ends so."""
    matching = [(path, place) for path, place in places.get(end.rpartition("/")[2], []) if path.endswith(end)]
    return [place for _, place in sorted(matching, key=lambda found: found[0] != end)]


@dataclass
class Images:
    """Image files by bare name or by the end of their path, wherever they lie: a folder, its subfolders, zips.

    Where there is no file of a name, one in another format is found, with another ending; and a photograph of Flickr
    or COCO by its number: data sets name 1007129816.jpg what Flickr serves as 1007129816_e794419615.jpg.
    """

    places: dict[str, list[tuple[str, Place]]] = field(default_factory=dict)  # by bare name
    stems: dict[str, list[tuple[str, Place]]] = field(default_factory=dict)  # by bare name without ending
    numbered: dict[str, Place] = field(default_factory=dict)  # by the photograph's number

    def add_folder(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            self._add(path.relative_to(folder).as_posix(), path)

    def add_zip(self, archive: zipfile.ZipFile) -> None:
        for info in archive.infolist():
            self._add(info.filename, (archive, info))

    def _add(self, name: str, place: Place) -> None:
        path = PurePosixPath(composed(name))
        if path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES:
            self.places.setdefault(path.name, []).append((f"/{path}", place))
            self.stems.setdefault(path.stem, []).append((_without_ending(f"/{path}"), place))
            if number := photo_number(path.name):
                self.numbered.setdefault(number, place)

    def _find(self, name: str) -> Place | None:
        end = "/" + composed(name).lstrip("/")
        bare = _without_ending(end)
        found = _ending(self.places, end) or _ending(self.stems, bare)
        return found[0] if found else self.numbered.get(photo_number(end))

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def read(self, name: str) -> bytes:
        """The image's bytes. Errors: SampleError with the reason why there are none."""
        place = self._find(name)
        if place is None:
            raise SampleError("image missing")
        return read_place(place)


@contextmanager
def open_images(source: Path) -> Iterator[Images]:
    """The image files anywhere below a folder, in zips too. Errors: ValueError naming a damaged zip."""
    images = Images()
    with ExitStack() as stack:
        images.add_folder(source)
        for path in sorted(source.rglob("*.zip")):
            images.add_zip(stack.enter_context(open_zip(path)))
        yield images
