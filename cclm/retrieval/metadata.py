"""What is known of indexed pictures, as columns: an entry is one picture, a table many, a file of them Parquet.

N rows, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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


class MetadataWriter:
    """Writes `metadata.parquet` part by part, a new id in each row."""

    def __init__(self, path: Path, first_id: int) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self._next = first_id

    def write(self, entries: pa.Table) -> None:
        """Entries of `ENTRY_SCHEMA`; those that have an id already (`SCHEMA`) keep it."""
        if "id" not in entries.column_names:
            ids = pa.array(np.arange(self._next, self._next + len(entries)))
            entries = entries.add_column(0, "id", ids)
            self._next += len(entries)
        self._writer.write_table(entries.select(SCHEMA.names).cast(SCHEMA))

    def close(self) -> None:
        self._writer.close()


class Metadata:
    """The entries of a segment, looked up by row; they stay in Arrow's columns until asked for."""

    def __init__(self, path: Path) -> None:
        self.table = pq.read_table(path, schema=SCHEMA)
        self.ids: np.ndarray = self.table["id"].to_numpy()  # (N,) int64, ascending

    def __len__(self) -> int:
        return self.table.num_rows

    def entries(self, rows: Iterable[int]) -> list[Entry]:
        """The entries of these rows, in this order."""
        found = self.table.take(pa.array(list(rows), pa.int64())).drop_columns(["id"]).to_pylist()
        return [Entry(**(columns | {"captions": dict(columns["captions"])})) for columns in found]
