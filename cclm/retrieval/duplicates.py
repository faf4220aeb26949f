"""Pictures that an index holds twice, or nearly: equal bytes, or embeddings that all but coincide.

N rows that are there, E embedding, P pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cclm.retrieval.index import ImageIndex
from cclm.retrieval.metadata import Entry, as_array

BLOCK_ROWS = 4096  # are compared with as many at a time: 64 MB of similarities
_PENDING_PAIRS = 4_000_000
_ROUNDING = 1e-6  # equal embeddings may fall short of 1 by that


@dataclass(frozen=True)
class Duplicate:
    """A picture of a group. `similarity`: cosine of its embedding and that of the group's first, whose bytes it has
    where that is below the threshold.
    """

    id: int
    entry: Entry
    similarity: float


def find_duplicates(
    index: ImageIndex, threshold: float = 0.96, progress: Callable[[float], None] = lambda done: None
) -> list[list[Duplicate]]:
    """Groups of pictures, the largest first: one, and all that have its bytes or an embedding within `threshold` of its
    own and are of no group yet. Those of most pixels are first to have a group, and of these the oldest in the index.

    Every pair is compared: the time grows with N squared, the memory with N. `progress` is told the share that is
    done. Errors: ValueError for a threshold that is no cosine.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give a cosine above 0, up to 1, such as 0.96")
    places = [
        np.arange(segment.segment.rows) if segment.live is None else np.flatnonzero(segment.live)
        for segment in index.segments
    ]
    own = [segment.metadata.ids[rows] for segment, rows in zip(index.segments, places, strict=True)]
    ids = np.concatenate([np.zeros(0, np.int64), *own])
    joined = _Joined(len(ids))
    joined.add(*_equal_bytes(index, places))
    with tempfile.TemporaryDirectory(prefix="cclm-duplicates-") as folder:
        vectors = _gathered(index, ids, Path(folder) / "vectors")
        for done, pairs in _close_pairs(vectors, threshold):
            joined.add(*pairs)
            progress(done)
        found = [group for rows in joined.several() for group in _stars(index, ids[rows], vectors[rows], threshold)]
    return sorted(found, key=lambda group: (-len(group), group[0].id))


class _Joined:
    """Sets of rows that chains of pairs join; of the pairs, only some are kept at a time."""

    def __init__(self, rows: int) -> None:
        self._labels = np.arange(rows)
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        self._pairs.append((first, second))
        if sum(len(pair[0]) for pair in self._pairs) > _PENDING_PAIRS:
            self._join()

    def several(self) -> list[np.ndarray]:
        """The sets of more than one row."""
        self._join()
        order = np.argsort(self._labels, kind="stable")
        cuts = np.flatnonzero(np.diff(self._labels[order])) + 1
        return [rows for rows in np.split(order, cuts) if len(rows) > 1]

    def _join(self) -> None:
        if not self._pairs or not len(self._labels):
            return
        first, second = (self._labels[np.concatenate(side)] for side in zip(*self._pairs, strict=True))
        size = len(self._labels)
        graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(size, size))
        self._labels = connected_components(graph, directed=False)[1][self._labels]
        self._pairs = []


def _equal_bytes(index: ImageIndex, places: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P,), (P,) of rows, counted over all segments, whose pictures have one SHA-256."""
    columns = [
        segment.metadata.column("sha256").take(pa.array(rows))
        for segment, rows in zip(index.segments, places, strict=True)
    ]
    hashes = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    numbers = pc.fill_null(as_array(hashes).dictionary_encode().indices, -1).to_numpy()
    order = np.argsort(numbers, kind="stable")
    same = np.flatnonzero((numbers[order[1:]] == numbers[order[:-1]]) & (numbers[order[1:]] >= 0))
    return order[same], order[same + 1]


def _gathered(index: ImageIndex, ids: np.ndarray, path: Path) -> np.ndarray:
    """The embeddings (N, E) float32 of unit norm, in a file."""
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (len(ids), index.manifest.dim))
    for start in range(0, len(ids), BLOCK_ROWS):
        vectors[start : start + BLOCK_ROWS] = index.vectors(ids[start : start + BLOCK_ROWS])
    return vectors


def _close_pairs(vectors: np.ndarray, threshold: float) -> Iterator[tuple[float, tuple[np.ndarray, np.ndarray]]]:
    """Pairs (P,), (P,) of rows within the threshold, block by block, and the share of blocks that are done."""
    starts = range(0, len(vectors), BLOCK_ROWS)
    total, done = len(starts) * (len(starts) + 1) // 2, 0
    for start in starts:
        block = np.asarray(vectors[start : start + BLOCK_ROWS])
        for other in range(start, len(vectors), BLOCK_ROWS):
            near = block @ vectors[other : other + BLOCK_ROWS].T >= threshold - _ROUNDING
            first, second = np.nonzero(np.triu(near, 1) if other == start else near)
            done += 1
            yield done / total, (first + start, second + other)


def _stars(index: ImageIndex, ids: np.ndarray, vectors: np.ndarray, threshold: float) -> Iterator[list[Duplicate]]:
    """Of pictures that chains of pairs join, groups around one each: the ends of a chain may be quite different."""
    entries = index.entries(ids)
    hashes = np.array([entry.sha256 or f"none {place}" for place, entry in enumerate(entries)])
    pixels = np.array([(entry.width or 0) * (entry.height or 0) for entry in entries])
    left = np.lexsort((ids, -pixels))
    while len(left) > 1:
        similarities = np.minimum(vectors[left] @ vectors[left[0]], 1)
        alike = (similarities >= threshold - _ROUNDING) | (hashes[left] == hashes[left[0]])
        alike[0] = True
        if alike.sum() > 1:
            found = zip(left[alike], similarities[alike], strict=True)
            yield [Duplicate(int(ids[place]), entries[place], float(cosine)) for place, cosine in found]
        left = left[~alike]
