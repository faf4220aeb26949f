"""What is known of indexed pictures, as columns: an entry is one picture, a table many, a file of them Parquet.

N rows, E embedding.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cclm.errors import first_line

ENTRY_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("captions", pa.map_(pa.string(), pa.list_(pa.string()))),
        ("root", pa.int32()),
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("date", pa.timestamp("s")),
        ("sha256", pa.string()),
    ]
)
SCHEMA = pa.schema([("id", pa.int64()), *ENTRY_SCHEMA])  # of metadata.parquet
_GROUP_ROWS = 1024  # are read together: few enough for a hit's row to come in half a millisecond
_CACHED_GROUPS = 64


@dataclass(frozen=True)
class Entry:
    """One picture. Its bytes are `size` bytes from `offset` on of the file `path`, or the whole file where `offset` is
    None; `path` has forward slashes and starts at folder number `root` of the index's roots.
    """

    key: str  # one picture of an index; another of the same key takes its place
    captions: dict[str, list[str]] = field(default_factory=dict)  # language -> texts
    root: int = 0
    path: str | None = None
    offset: int | None = None
    size: int | None = None
    width: int | None = None  # pixels
    height: int | None = None
    date: datetime | None = None  # when it was taken, or else the file was changed; no time zone
    sha256: str | None = None  # of the picture's bytes, hex

    def caption(self, language: str = "en") -> str:
        """The first text in this language, or in any; "" where there is none."""
        return next(iter(self.captions.get(language) or next(iter(self.captions.values()), [])), "")


def table_of(entries: Sequence[Entry]) -> pa.Table:
    """Entries as a table of `ENTRY_SCHEMA`."""
    columns = {f.name: [getattr(entry, f.name) for entry in entries] for f in fields(Entry)}
    columns["captions"] = [list(captions.items()) for captions in columns["captions"]]
    return pa.table({name: pa.array(values, ENTRY_SCHEMA.field(name).type) for name, values in columns.items()})


@dataclass(frozen=True)
class Rows:
    """Pictures on their way into an index: what is known of them, and their embeddings, row by row."""

    entries: pa.Table  # of ENTRY_SCHEMA, N rows
    vectors: np.ndarray  # (N, E) float16 or float32, perhaps memory-mapped

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def of(cls, entries: Sequence[Entry], vectors: np.ndarray) -> Self:
        """Errors: ValueError where they are not as many."""
        if len(entries) != len(vectors):
            raise ValueError(f"{len(entries)} entries came with {len(vectors)} embeddings; each needs one")
        return cls(table_of(entries), vectors)


@dataclass(frozen=True)
class Outline:
    """What is to be known of rows before they are indexed; made in one pass over them.

    Neither this nor `MetadataWriter` uses what of pyarrow imports pandas where that is installed, which takes 60 MB of
    what an index may cost: `pa.array`, `pa.scalar`, `to_numpy`.
    """

    keys: pa.ChunkedArray  # of all rows
    widths: set[int]  # of their embeddings

    @classmethod
    def of(cls, parts: Sequence[Rows]) -> Self:
        """Errors: ValueError where a key is missing."""
        chunks: list[pa.Array] = []
        widths = set()
        for rows in parts:
            chunks += rows.entries["key"].chunks
            widths |= {rows.vectors.shape[-1]} if len(rows) else set()
        keys = pa.chunked_array(chunks, pa.string())
        missing = len(keys) - len(pc.indices_nonzero(pc.binary_length(keys)))  # absent or empty
        if missing:
            raise ValueError(f"{missing} of {len(keys)} pictures have no key; give each one of its own")
        return cls(keys, widths)

    def check_unique(self, cure: str = "give each picture a key of its own") -> None:
        """Errors: ValueError where a key is there twice."""
        counts = self.keys.value_counts()
        if len(counts) == len(self.keys):
            return
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        if len(twice):
            raise ValueError(f"{len(twice)} keys are there more than once (first: {twice[0].as_py()!r}); {cure}")


def as_array(texts: Sequence[str] | pa.ChunkedArray) -> pa.Array:
    """Texts in one piece."""
    return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else pa.array(texts, pa.string())


class MetadataWriter:
    """Writes `metadata.parquet` part by part, a new id in each row."""

    def __init__(self, path: Path, first_id: int) -> None:
        # Least and greatest values of each column of each group would be held in memory by whoever opens the file.
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", write_statistics=False)
        self._next = first_id
        self._waiting: list[pa.Table] = []  # less than a group

    def write(self, entries: pa.Table) -> None:
        """Entries of `ENTRY_SCHEMA`; those that have an id already (`SCHEMA`) keep it."""
        if "id" not in entries.column_names:
            numbers = np.arange(self._next, self._next + len(entries))
            ids = pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])
            entries = entries.add_column(0, "id", ids)
            self._next += len(entries)
        rows = pa.concat_tables([*self._waiting, entries.select(SCHEMA.names).cast(SCHEMA)])
        whole = len(rows) // _GROUP_ROWS * _GROUP_ROWS
        if whole:
            self._writer.write_table(rows.slice(0, whole), row_group_size=_GROUP_ROWS)
        self._waiting = [rows.slice(whole)]

    def close(self) -> None:
        for rows in self._waiting:
            self._writer.write_table(rows)
        self._writer.close()


class Metadata:
    """The entries of a segment, read from its file when they are asked for; only the ids are held, and a few groups of
    rows that were read last. Threads may share it.
    """

    def __init__(self, path: Path) -> None:
        """Errors: ValueError, one line, for a file that no `MetadataWriter` has written."""
        self._path, self._reading = path, threading.Lock()
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        try:
            self._file = pq.ParquetFile(path)
            self._check_schema(self._file.schema_arrow)
            self.ids: np.ndarray = self.column("id").to_numpy()  # (N,) int64, ascending
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is no readable Parquet file ({first_line(error)[:200]})") from error
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])  # (groups + 1,) rows
        if self.ids.dtype != np.int64 or len(self.ids) != self._starts[-1]:
            raise ValueError(f"{path}: {self._starts[-1]} rows, but not as many ids")
        if len(self.ids) and (self.ids[0] < 0 or (np.diff(self.ids) <= 0).any()):
            raise ValueError(f"{path}: ids are negative, repeated or do not ascend")

    def __len__(self) -> int:
        return len(self.ids)

    def entries(self, rows: Iterable[int]) -> list[Entry]:
        """The entries of these rows, in this order."""
        wanted = np.fromiter(rows, np.int64)
        groups = self._group_of(wanted)
        found: dict[int, Entry] = {}
        for group in np.unique(groups).tolist():
            places = np.flatnonzero(groups == group)
            table = self._group(group).take(pa.array(wanted[places] - self._starts[group]))
            found |= zip(places.tolist(), map(_entry, table.to_pylist()), strict=True)
        return [found[place] for place in range(len(wanted))]

    def tables(self, columns: Sequence[str], rows: int = 65_536) -> Iterator[pa.Table]:
        """These columns of all rows, in their order, some groups of them at a time."""
        for first in range(0, len(self), rows):
            yield self.table(first, min(first + rows, len(self)), columns)

    def table(self, start: int, stop: int, columns: Sequence[str] = tuple(SCHEMA.names)) -> pa.Table:
        """These columns of rows `start` up to `stop`."""
        if start >= stop:
            return pa.schema([SCHEMA.field(name) for name in columns]).empty_table()
        first, last = self._group_of(np.array([start, stop - 1])).tolist()
        with self._reading:
            read = self._file.read_row_groups(list(range(first, last + 1)), list(columns))
        return _as_schema(read.select(list(columns))).slice(start - self._starts[first], stop - start)

    def rows_of(self, keys: Sequence[str] | pa.ChunkedArray) -> np.ndarray:
        """The row (K,) int64 of each key, -1 for none. Of several rows of a key it is the last."""
        wanted = as_array(keys).dictionary_encode()
        places = pc.fill_null(pc.index_in(self.column("key"), value_set=wanted.dictionary), -1).to_numpy()
        rows = np.flatnonzero(places >= 0)
        found = np.full(len(wanted.dictionary), -1)
        found[places[rows]] = rows
        return found[wanted.indices.to_numpy()]

    def column(self, name: str) -> pa.ChunkedArray:
        """Of all rows, deleted ones too."""
        with self._reading:  # a Parquet file is not for two threads at a time
            return self._file.read([name])[name]

    def _check_schema(self, found: pa.Schema) -> None:
        expected = dict(zip(SCHEMA.names, SCHEMA.types, strict=True)) | {"date": pa.timestamp("ms")}  # Parquet's least
        stored = dict(zip(found.names, found.types, strict=True))
        wrong = [name for name in {**expected, **stored} if expected.get(name) != stored.get(name)]
        if wrong:
            raise ValueError(f"{self._path}: columns missing, unknown or of another type: {', '.join(wrong)}")

    def _group_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _group(self, group: int) -> pa.Table:
        with self._reading:
            if group not in self._groups:
                self._groups[group] = _as_schema(self._file.read_row_group(group, use_threads=False))
                if len(self._groups) > _CACHED_GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            return self._groups[group]


def _as_schema(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([SCHEMA.field(name) for name in table.column_names]))


def _entry(columns: dict) -> Entry:
    del columns["id"]
    return Entry(**(columns | {"captions": dict(columns["captions"] or ())}))
