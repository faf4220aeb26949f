"""Pictures to be embedded: folders of image files, perhaps with captions beside them, and shards; in parts.

A part is what is embedded together: one tar, or so many files of the folders in the order of their names.
"""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Self

from cclm.data.records import IMAGE_SUFFIXES, MEMBER_BYTES, TEXT_BYTES, parse_text
from cclm.data.shards import MANIFEST, decode_sample, list_shards
from cclm.data.tars import Sample, ShardFile, index_shard
from cclm.errors import SampleError, printable
from cclm.types import Record


@dataclass(frozen=True)
class Place:
    """Where a picture's bytes are: `size` of them from `offset` on of the file `path`; None: all of the file."""

    path: str  # from the source's root on, with forward slashes
    offset: int | None
    size: int
    changed: datetime | None  # when the file was, local time; of a tar it says nothing of its pictures


@dataclass(frozen=True)
class Pictures:
    """A source: its parts, in order, and the folder that their paths begin at."""

    root: Path
    parts: list[SourcePart]
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> how often, before any picture is read
    naming: str = ""  # of KEYS; "": the first, if no key comes twice among what is embedded


@dataclass(frozen=True)
class Listing:
    """The keys of a source's pictures, of names and headers alone: the same, whichever of them are embedded."""

    pictures: Pictures  # with their naming
    own: list[list[str]]  # of each part
    keys: list[list[str]]  # the same ones, as an index has them

    @classmethod
    def of(cls, pictures: Pictures) -> Self:
        own = [part.keys() for part in pictures.parts]
        twice = len({key for keys in own for key in keys}) < sum(map(len, own))
        full = [[part.full_key(key) for key in keys] for part, keys in zip(pictures.parts, own, strict=True)]
        return cls(replace(pictures, naming=KEYS[twice]), own, full if twice else own)

    def without(self, known: Collection[str]) -> Pictures:
        """The pictures whose keys are none of these."""
        shards, files, most = [], [], 1
        for part, own, keys in zip(self.pictures.parts, self.own, self.keys, strict=True):
            gone = frozenset(one for one, key in zip(own, keys, strict=True) if key in known)
            if not part.is_shard:
                most = max(most, len(part.files))
                files += [name for name in part.files if name not in gone]
            elif len(gone) < len(own):
                shards.append(replace(part, without=gone))
        return replace(self.pictures, parts=shards + _in_parts(self.pictures.root, files, most))


@dataclass(frozen=True)
class SourcePart:
    """One tar, perhaps without some samples, or several image files; paths from `root` on with forward slashes."""

    root: Path
    files: tuple[str, ...]
    is_shard: bool
    without: frozenset[str] = frozenset()  # keys

    def __str__(self) -> str:
        return printable(self.files[0] if self.is_shard else f"{self.files[0]} .. {self.files[-1]}")

    def fingerprint(self) -> str:
        """Changes with the name, size or time of any of its files, captions included. Errors: OSError."""
        digest = hashlib.sha256()
        for name in self.files:
            path = self.root / name
            for file in (path,) if self.is_shard else (path, path.with_suffix(".txt")):
                try:
                    found = file.stat()
                    digest.update(f"{file.name}\0{name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(*_NAME))
                except FileNotFoundError:  # a caption that is not there, or a picture that is gone since
                    digest.update(f"{file.name}\0{name}\0-\0".encode(*_NAME))
        for key in sorted(self.without):
            digest.update(f"{key}\0".encode(*_NAME))
        return digest.hexdigest()

    def keys(self) -> list[str]:
        """Of its pictures, as far as can be told without reading them; those that will be left out are left out."""
        found = []
        try:
            for picture in self.pictures():
                if isinstance(picture, FilePicture) or picture.sample.bad is None and picture.sample.image is not None:
                    found.append(picture.key)
        except SampleError:  # told when it is embedded
            pass
        return [key for key in found if key.encode(errors="replace").decode() == key]

    def full_key(self, key: str) -> str:
        """Of a picture, by what tells it from those of other parts too."""
        return f"{(self.files[0] if self.is_shard else key).removesuffix('.tar')}/{key}"

    def pictures(self) -> Iterator[LocatedPicture]:
        """Its pictures, unread. Errors: SampleError last, where a tar is damaged: what came before stands."""
        if not self.is_shard:
            yield from (FilePicture(self.root, name) for name in self.files)
            return
        index, keys = index_shard(ShardFile(str(self.root / self.files[0]))), set()
        for sample in index.samples:
            if sample.key in keys and sample.bad is None:
                sample.bad = "another picture of the shard has this key"
            keys.add(sample.key)
            if sample.key in self.without:
                continue
            yield ShardPicture(self.files[0], sample)
        if index.damage:
            raise SampleError(index.damage if index.damage in _DAMAGES else "shard damaged")


KEYS = ("sample", "shard/sample")  # as shards have them, or with the shard's path, where one comes twice
_NAME = ("utf-8", "surrogateescape")
_DAMAGES = ("shard truncated",)  # what may be counted: other damages name a byte


@dataclass(frozen=True)
class FilePicture:
    """An image file; its caption stands in a file of the same name that ends in .txt, where there is one."""

    root: Path
    name: str

    @property
    def key(self) -> str:
        return self.name

    def read(self, language: str) -> tuple[Record, Place]:
        """`language` is that of captions which name none. Errors: SampleError."""
        try:
            self.name.encode()
        except UnicodeEncodeError:
            raise SampleError("file name is no Unicode") from None
        path = self.root / self.name
        image, changed = _read(path, MEMBER_BYTES)
        text = path.with_suffix(".txt")
        caption = parse_text(_read(text, TEXT_BYTES)[0]) if text.is_file() else ""
        record = Record(self.name, image, {language: [caption]} if caption else {})
        return record, Place(self.name, None, len(image), datetime.fromtimestamp(int(changed)))


@dataclass(frozen=True)
class ShardPicture:
    """A sample of a tar, which may go without a caption."""

    path: str
    sample: Sample

    @property
    def key(self) -> str:
        return self.sample.key

    def read(self, language: str) -> tuple[Record, Place]:
        """As FilePicture.read: the first picture of a sample counts. Errors: SampleError."""
        if self.sample.bad is None and self.sample.image is None:
            raise SampleError("sample without a picture")
        (record,) = decode_sample(self.sample, language, bare=True)
        slot = self.sample.images[0]
        return record, Place(self.path, slot.offset, slot.size, None)


LocatedPicture = FilePicture | ShardPicture


def find_pictures(source: str | list[str], per_part: int = 1000) -> Pictures:
    """The parts of folders of image files (searched through and through), shards, tars, patterns, or a list of these.

    A folder that holds shards is one of shards. Errors: ValueError, FileNotFoundError for what is neither.
    """
    if per_part < 1:
        raise ValueError(f"pictures_per_part is {per_part}; give 1 or more")
    items = source if isinstance(source, list) else [source]
    files: set[str] = set()
    shards: dict[str, None] = {}
    roots, links = [], 0
    for item in items:
        root, found, tars, linked = _find(str(item))
        roots.append(root)
        links += linked
        files.update(found)
        shards.update(dict.fromkeys(tars))
    if not items:
        raise ValueError("source is an empty list; give a folder of pictures or shards")
    root = os.path.commonpath(roots)

    def named(paths: Iterable[str]) -> list[str]:
        return [PurePosixPath(os.path.relpath(path, root)).as_posix() for path in paths]

    parts = [SourcePart(Path(root), (name,), True) for name in named(shards)]
    left_out = {"folder behind a symbolic link": links} if links else {}
    return Pictures(Path(root), parts + _in_parts(Path(root), sorted(named(files)), per_part), left_out)


def _in_parts(root: Path, names: list[str], per_part: int) -> list[SourcePart]:
    starts = range(0, len(names), per_part)
    return [SourcePart(root, tuple(names[start : start + per_part]), False) for start in starts]


def _find(item: str) -> tuple[str, list[str], list[str], int]:
    """Root, image files and tars of one source, absolute paths; and how many linked folders were not followed."""
    folder = os.path.abspath(item)
    there = os.path.isdir(folder)
    if there and not os.path.exists(os.path.join(folder, MANIFEST)) and not glob.glob("*.tar", root_dir=folder):
        files, links = _walk(folder)
        if files:
            return folder, files, [], links
        if not glob.glob(f"*/{MANIFEST}", root_dir=folder):
            raise ValueError(
                f"no jpg, png or webp file and no .tar shard in {item}; give a folder that holds some"
                + f" ({links} folders behind symbolic links were not searched)" * bool(links)
            )
    paths = [os.path.abspath(path) for path in list_shards(item)]  # says which splits there are, where there are some
    files = [path for path in paths if _is_picture(path)]
    root = folder if there else os.path.commonpath([os.path.dirname(path) for path in paths])
    return root, files, [path for path in paths if not _is_picture(path)], 0


def _walk(folder: str) -> tuple[list[str], int]:
    """Image files, and how many folders there are behind symbolic links, which might lead round in a circle."""
    files, links = [], 0
    for where, folders, names in os.walk(folder):
        files += [os.path.join(where, name) for name in names if _is_picture(name)]
        links += sum(os.path.islink(os.path.join(where, name)) for name in folders)
    return files, links


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower().lstrip(".") in IMAGE_SUFFIXES


def _read(path: Path, limit: int) -> tuple[bytes, float]:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait forever
            raise SampleError("no regular file")
        if found.st_size > limit:
            raise SampleError(f"file over {limit} bytes")
        return path.read_bytes(), found.st_mtime
    except OSError as error:
        raise SampleError("file not readable") from error
