"""Shards: plain tars of records plus `manifest.json`. Written whole or not at all, listed, read in one pass."""

from __future__ import annotations

import glob
import io
import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from cclm.data import records as codec
from cclm.data.tars import Sample, ShardFile, index_shard
from cclm.errors import SampleError
from cclm.storage import file_hash, whole_folder
from cclm.types import Record

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
Source: TypeAlias = str | Path | list[str] | list[Path]


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says of one tar. `samples` counts records: the rows, for text shards."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds. `languages`: language -> number of records that have a text in it."""

    kind: str  # "image" or "text"
    shards: list[ShardEntry]
    samples: int
    languages: dict[str, int]

    def save(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Manifest:
        """Errors: FileNotFoundError where there is none, ValueError where it is not one."""
        path = Path(folder) / MANIFEST
        try:
            fields = json.loads(path.read_bytes())
            shards = [ShardEntry(**entry) for entry in fields["shards"]]
            if any(Path(entry.name).name != entry.name for entry in shards):
                raise ValueError("a shard's name is a path")
            return cls(fields["kind"], shards, int(fields["samples"]), dict(fields["languages"]))
        except FileNotFoundError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a manifest ({error}); rebuild it with `cclm data build`") from error


class ShardWriter(AbstractContextManager):
    """Collects records into numbered tars under a temporary name; a `with` block left without error puts them in place.

    After the block, `manifest` says what was written. Errors: ValueError naming the record that does not fit,
    OSError of a full disk; in both cases the folder is as it was before.
    """

    def __init__(self, folder: Path | str, samples_per_shard: int = 0, rows_per_member: int = 256) -> None:
        self._whole = whole_folder(folder)
        self._name = Path(folder).name  # the whole path may be a temporary one
        self._samples_per_shard = samples_per_shard
        self._rows_per_member = rows_per_member
        self._kind: str | None = None
        self._tar: tarfile.TarFile | None = None
        self._keys: set[str] = set()
        self._rows: list[Record] = []
        self._members = 0
        self._in_shard = 0
        self._shards: list[ShardEntry] = []
        self._languages: Counter[str] = Counter()
        self.manifest: Manifest | None = None

    def __enter__(self) -> Self:
        self._folder = self._whole.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if error is not None:
            self._abandon()
            return self._whole.__exit__(kind, error, trace)
        try:
            self._finish()
        except BaseException as failure:
            self._abandon()
            self._whole.__exit__(type(failure), failure, failure.__traceback__)
            raise
        return self._whole.__exit__(None, None, None)

    def _abandon(self) -> None:
        if self._tar is not None:
            with suppress(OSError):  # closing flushes, to a disk that may be full; the folder goes anyway
                self._tar.fileobj.close()

    def write(self, record: Record) -> None:
        kind = "text" if record.image is None else "image"
        if self._kind is None:
            self._kind = kind
            self._samples_per_shard = self._samples_per_shard or (1000 if kind == "image" else 8192)
        if kind != self._kind:
            raise ValueError(
                f"record {record.key!r} is of kind {kind}, those before it in {self._name} of kind {self._kind};"
                " give each kind a split of its own"
            )
        if kind == "text":
            self._rows.append(record)
            if len(self._rows) >= min(self._rows_per_member, self._samples_per_shard):
                self._flush_rows()
        else:
            if record.key in self._keys:
                raise ValueError(f"record key {record.key!r} comes twice in {self._name}; keys must differ")
            self._keys.add(record.key)
            for suffix, data in codec.encode_image_record(record).items():
                self._add(f"{record.key}.{suffix}", data)
            self._count(1)
        self._languages.update(codec.languages_of(record))

    def _flush_rows(self) -> None:
        if self._rows:
            self._add(f"{self._members:08d}.json", codec.encode_text_member(self._rows))
            self._members += 1
            self._count(len(self._rows))
            self._rows = []

    def _add(self, name: str, data: bytes) -> None:
        if self._tar is None:
            path = self._folder / f"{len(self._shards):06d}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (open over many calls)
        member = tarfile.TarInfo(name)  # no time, no owner: equal records give equal checksums
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))

    def _count(self, samples: int) -> None:
        self._in_shard += samples
        if self._in_shard >= self._samples_per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        assert self._tar is not None
        self._tar.close()
        path = Path(str(self._tar.name))
        self._shards.append(ShardEntry(path.name, self._in_shard, path.stat().st_size, file_hash(path)))
        self._tar, self._in_shard = None, 0
        self._keys = set()  # per shard: a set over all keys of a large corpus would not fit in memory

    def _finish(self) -> None:
        self._flush_rows()
        if self._tar is not None:
            self._close_shard()
        if self._kind is None:
            raise ValueError(f"no record to write to {self._name}; check the recipe's source")
        samples = sum(entry.samples for entry in self._shards)
        self.manifest = Manifest(self._kind, self._shards, samples, dict(sorted(self._languages.items())))
        self.manifest.save(self._folder)


def write_shards(
    records: Iterable[Record], folder: Path | str, *, samples_per_shard: int = 0, rows_per_member: int = 256
) -> Manifest:
    """Write records of one kind as shards with a manifest; `samples_per_shard` 0 means 1000 images or 8192 rows.

    Errors: as ShardWriter's; on any error the folder is as it was before.
    """
    with ShardWriter(folder, samples_per_shard, rows_per_member) as writer:
        for record in records:
            writer.write(record)
    assert writer.manifest is not None
    return writer.manifest


def _braces(pattern: str) -> list[str]:
    """`a-{000..012}.tar` and `{a,b}.tar` spelled out; the first brace first."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is not None:
        middles = words.split(",")
    else:
        middles = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [pattern[: match.start()] + middle + rest for middle in middles for rest in _braces(pattern[match.end() :])]


def list_shards(source: Source, allow_pipe: bool = False) -> list[str]:
    """Paths of the tars of a folder, a tar, a pattern (`{000..012}`, `*`) or a list of these, in order.

    Errors: FileNotFoundError for what is missing, ValueError for an empty folder and for `pipe:` without the flag.
    """
    if isinstance(source, list):
        return [path for item in source for path in list_shards(item, allow_pipe)]
    text = str(source)
    if text.startswith("pipe:"):
        if not allow_pipe:
            raise ValueError(f"{text!r} would run a shell command; pass allow_pipe=true if you trust it")
        return [text]
    folder = Path(text)
    if folder.is_dir():
        if (folder / MANIFEST).exists():
            paths = [str(folder / entry.name) for entry in Manifest.load(folder).shards]
        else:
            paths = sorted(str(path) for path in folder.glob("*.tar"))
        if not paths:
            splits = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
            cure = f"give one of its splits: {', '.join(splits)}" if splits else "build some with `cclm data build`"
            raise ValueError(f"no .tar shard in {folder}; {cure}")
    else:
        paths = [path for item in _braces(text) for path in (sorted(glob.glob(item)) or [item])]
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no shard at {path}; give a folder of .tar shards, a .tar or a pattern of them")
    return paths


def manifests(paths: Iterable[str]) -> dict[Path, Manifest | None]:
    """Of the folders that these shards lie in; None for one without. Errors: ValueError for a damaged one."""
    folders = dict.fromkeys(Path(path).parent for path in paths)
    return {folder: Manifest.load(folder) if (folder / MANIFEST).is_file() else None for folder in folders}


def check_languages(source: str, languages: Collection[str] | None) -> None:
    """Before hours of work. Errors: ValueError naming the languages that the data has, as its manifest tells."""
    if languages and (Path(source) / MANIFEST).is_file():
        there = Manifest.load(source).languages
        if missing := [language for language in languages if language not in there]:
            raise ValueError(f"no texts in language {', '.join(missing)} in {source}; present: {', '.join(there)}")


def decode_sample(sample: Sample, language: str = "en", bare: bool = False) -> list[Record]:
    """The records of a sample, images included. `bare`: images need no text. Errors: SampleError."""
    if sample.bad is not None:
        raise SampleError(sample.bad)
    texts = {suffix: slot.read() for suffix, slot in sample.texts.items()}
    if sample.images:
        first, *others = (slot.read() for slot in sample.images)
        return [codec.decode_image_record(sample.key, first, texts, language, tuple(others), bare)]
    if "json" not in texts:
        raise SampleError("neither image nor json")
    return codec.decode_text_records(sample.key, texts["json"])


def read_records(
    source: Source,
    *,
    language: str = "en",
    allow_pipe: bool = False,
    skipped: Counter[str] | None = None,
) -> Iterator[Record]:
    """Every record of the shards once, in order. What is left out is counted by reason in `skipped` and logged.

    Errors: as list_shards; ValueError naming the shard for a damaged tar (a pass that must be complete cannot go on).
    """
    skipped = Counter() if skipped is None else skipped
    for path in list_shards(source, allow_pipe):
        index = index_shard(ShardFile(path))
        for sample in index.samples:
            try:
                yield from decode_sample(sample, language)
            except SampleError as error:
                skipped[error.reason] += 1
        if index.damage:
            raise ValueError(f"{path}: {index.damage} after {len(index.samples)} samples; copy or build it again")
    if skipped:
        _log.warning("left out of %s: %s", source, ", ".join(f"{n} x {reason}" for reason, n in skipped.items()))
