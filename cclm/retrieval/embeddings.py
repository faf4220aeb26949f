"""Embeddings as clip-retrieval lays them out, which autofaiss and the readers of that layout take as they are.

img_emb/img_emb_0.npy        (rows, E) float16 or float32
text_emb/text_emb_0.npy      (rows, E), where texts were embedded
metadata/metadata_0.parquet  image_path, caption, language
Row i of the three is of one picture and one caption. Parts are numbered from 0, all numbers as wide as that of parts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cclm.storage import check_replaceable, whole_folder

logger = logging.getLogger(__name__)

FILES = ("img_emb/img_emb_*.npy", "text_emb/text_emb_*.npy", "metadata/metadata_*.parquet")
SCHEMA = pa.schema([(name, pa.string()) for name in ("image_path", "caption", "language")])


@dataclass(frozen=True)
class EmbeddedRows:
    """Rows in the making: one list or array per column, all of one length."""

    image_path: Sequence[str]
    caption: Sequence[str | None]
    language: Sequence[str | None]
    images: np.ndarray  # (N, E)
    texts: np.ndarray | None = None  # (N, E)

    def __len__(self) -> int:
        return len(self.images)

    def cut(self, start: int, stop: int | None = None) -> Self:
        return type(self)(*(None if column is None else column[start:stop] for column in self._columns()))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        columns = zip(*(part._columns() for part in parts), strict=True)
        return cls(*(_joined(column) for column in columns))

    def _columns(self) -> list[Sequence | np.ndarray | None]:
        return [getattr(self, f.name) for f in fields(self)]


@dataclass(frozen=True)
class Written:
    """What an output folder holds."""

    rows: int
    parts: int
    width: int


def check_output(output: Path | str) -> Path:
    """Before the work. Errors: ValueError for a folder that holds anything but former embeddings."""
    return check_replaceable(output, FILES)


def write_embeddings(
    batches: Iterable[EmbeddedRows],
    output: Path | str,
    dtype: Literal["float16", "float32"] = "float16",
    rows_per_part: int = 100_000,
) -> Written:
    """Write rows part by part, no more than one part in memory; a former folder stands until the new one is whole.

    Errors: ValueError for no rows, for NaN or infinity, or a folder that holds something else.
    """
    check_options(dtype, rows_per_part)
    rows = parts = width = 0
    with whole_folder(check_output(output)) as folder:
        for part in _parts(batches, rows_per_part):
            for name, values in (("img_emb", part.images), ("text_emb", part.texts)):
                if values is None:
                    continue
                if not np.isfinite(values).all():
                    raise ValueError(f"{name} from row {rows} on: there is NaN or infinity in it; check the model")
                np.save(_file(folder, name, parts), values.astype(dtype))
            columns = {name: pa.array(getattr(part, name), pa.string()) for name in SCHEMA.names}
            pq.write_table(pa.table(columns, SCHEMA), _file(folder, "metadata", parts), compression="zstd")
            rows, parts, width = rows + len(part), parts + 1, part.images.shape[1]
            logger.info("%s: %d rows", output, rows)
        if not rows:
            raise ValueError("no image to embed: the source is empty, or nothing in it whole")
        for path in sorted(folder.glob("*/*")):
            name, _, number = path.stem.rpartition("_")
            path.rename(path.with_stem(f"{name}_{number.zfill(len(str(parts)))}"))
    return Written(rows, parts, width)


def check_options(dtype: str, rows_per_part: int) -> None:
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype is {dtype!r}; choose float16 or float32")
    if rows_per_part < 1:
        raise ValueError(f"rows_per_part is {rows_per_part}; give 1 or more")


def _file(folder: Path, name: str, part: int) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name / f"{name}_{part}.{'parquet' if name == 'metadata' else 'npy'}"


def _parts(batches: Iterable[EmbeddedRows], size: int) -> Iterator[EmbeddedRows]:
    """The same rows, `size` at a time."""
    waiting: list[EmbeddedRows] = []
    for batch in batches:
        waiting.append(batch)
        while sum(map(len, waiting)) >= size:
            rows = EmbeddedRows.joined(waiting)
            yield rows.cut(0, size)
            waiting = [rows.cut(size)]
    if sum(map(len, waiting)):
        yield EmbeddedRows.joined(waiting)


def _joined(column: Sequence) -> Sequence | np.ndarray | None:
    if column[0] is None:
        return None
    return np.concatenate(column) if isinstance(column[0], np.ndarray) else [value for part in column for value in part]
