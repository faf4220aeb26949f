"""What an index reaches: its search parameters chosen, and recall and latency measured, against exact search.

Shapes: N rows, Q queries, E embedding, k neighbours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cclm.retrieval.embeddings import AGAIN, TEXTS, check_array
from cclm.retrieval.manifest import Measured
from cclm.retrieval.plan import Budget
from cclm.retrieval.vectors import Vectors, best

NEIGHBOURS = 10
QUERIES = 500
LATENCY_QUERIES, ROUNDS = 50, 3
_PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_FACTORS = (1, 2, 4, 8, 16, 32)
_WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class Sample:
    """Queries with their exact nearest rows."""

    queries: np.ndarray  # (Q, E) float32
    own: np.ndarray  # (Q,) the row that a query is, which is not counted as found; -1 for a text
    nearest: np.ndarray | None  # (Q, NEIGHBOURS) rows, -1 where there are no more; None where search is exact anyway
    origin: str

    @property
    def depth(self) -> int:
        return NEIGHBOURS + int((self.own >= 0).any())

    def recall(self, rows: np.ndarray) -> np.ndarray:
        """The share (Q,) of the exact neighbours that are among the rows (Q, depth) found."""
        if self.nearest is None:
            return np.ones(len(rows))
        rows = without(rows, self.own)
        real = self.nearest >= 0
        missed = ~(self.nearest[:, :, None] == rows[:, None, :]).any(2) & real
        return 1 - missed.sum(1) / np.maximum(real.sum(1), 1)


def draw(
    blocks: Callable[[], Iterable[np.ndarray]], rows: int, texts: np.ndarray | None, exact: bool = False
) -> Sample:
    """Queries and what an exact search finds for them: `texts` (any number, E), or else some of the rows themselves.

    `blocks`: the rows (N, E) float32, some at a time, as often as asked for. `exact`: the index will be.
    """
    generator = np.random.default_rng(0)
    if texts is not None and len(texts):
        queries = texts[np.sort(generator.permutation(len(texts))[:QUERIES])]
        own, origin = np.full(len(queries), -1), "texts"
    else:
        own, origin = np.sort(generator.permutation(rows)[:QUERIES]), "pictures, each without itself"
        queries = chosen(blocks(), own)
    return Sample(queries, own, None if exact else _nearest(blocks(), queries, own), origin)


def text_queries(folder: Path, dim: int) -> np.ndarray | None:
    """Embeddings of captions (up to QUERIES, E) out of an embeddings folder; None where none were embedded."""
    files = sorted((folder / TEXTS).glob(f"{TEXTS}_*.npy"))
    shapes = [check_array(file) for file in files]
    if any(width != dim for _, width in shapes):
        raise ValueError(f"texts in {folder / TEXTS} are not all of width {dim}; {AGAIN}")
    ends = np.cumsum([0, *(rows for rows, _ in shapes)])
    picked = np.sort(np.random.default_rng(0).permutation(ends[-1])[:QUERIES])
    found = [
        np.asarray(np.load(file, mmap_mode="r", allow_pickle=False)[own - start], np.float32)
        for file, start, own in zip(files, ends, np.split(picked, np.searchsorted(picked, ends[1:-1])), strict=False)
        if len(own)
    ]
    return np.concatenate(found) if found else None


def chosen(blocks: Iterable[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """These rows (R,), which must ascend, of all: (R, E) float32."""
    found, start = None, 0
    for block in blocks:
        if found is None:
            found = np.empty((len(rows), block.shape[1]), np.float32)
        first, last = np.searchsorted(rows, [start, start + len(block)])
        found[first:last] = block[rows[first:last] - start]
        start += len(block)
    assert found is not None and start > rows[-1]
    return found


def without(rows: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The NEIGHBOURS first of the rows (Q, k) that are not a query's own."""
    order = np.argsort(rows == own[:, None], axis=1, kind="stable")[:, :NEIGHBOURS]
    return np.where(own >= 0, np.take_along_axis(rows, order, 1).T, rows[:, :NEIGHBOURS].T).T


def _nearest(blocks: Iterable[np.ndarray], queries: np.ndarray, own: np.ndarray) -> np.ndarray:
    import faiss

    depth = NEIGHBOURS + 1
    found = np.full((len(queries), depth), -np.inf, np.float32), np.full((len(queries), depth), -1)
    start = 0
    for block in blocks:
        scores, rows = faiss.knn(queries, block, min(depth, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        found = best(found, (scores, rows + start), depth)
        start += len(block)
    return without(found[1], own)


def tune(vectors: Vectors, sample: Sample, budget: Budget) -> tuple[str, Measured]:
    """Search parameters that reach the recall in the least time, or else come nearest to it; they are set.

    The sample's recall is wanted a standard error above that of the budget: others' queries shall reach it as well.
    """
    if budget.search:
        vectors.tune(budget.search)
        return budget.search, measure(vectors, sample)
    reached: list[tuple[float, str]] = []  # seconds of the sample, parameters
    nearest = (-1.0, "")
    for searches in _searches(vectors):
        low, high = 0, len(searches)
        while low < high:  # the first that reaches it; recall grows with what is searched
            middle = (low + high) // 2 if high < len(searches) else min(len(searches) - 1, 2 * low + 4)
            recall, error, seconds = _tried(vectors, sample, searches[middle])
            nearest = max(nearest, (recall, searches[middle]))
            if recall - error >= budget.min_recall or recall == 1:
                reached.append((seconds, searches[middle]))
                high = middle
            else:
                low = middle + 1
    search = min(reached)[1] if reached else nearest[1]
    vectors.tune(search)
    return search, measure(vectors, sample)


def _searches(vectors: Vectors) -> Iterator[list[str]]:
    """Search parameters, each list from narrow to wide."""
    kind, lists, refined = vectors.shape
    widths = {
        "ivf": [f"nprobe={n}" for n in _PROBES if n <= max(lists // 2, 1)],
        "hnsw": [f"efSearch={n}" for n in _WIDTHS],
    }.get(kind, [""])
    for factor in _FACTORS if refined else (0,):
        refine = [f"k_factor_rf={factor}"] if factor else []
        yield [",".join(filter(None, [width, *refine])) for width in widths]


def _tried(vectors: Vectors, sample: Sample, search: str) -> tuple[float, float, float]:
    """Recall, its standard error, and seconds, the better of two."""
    vectors.tune(search)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        _, rows = vectors.search(sample.queries, sample.depth)
        times.append(time.perf_counter() - start)
    recalls = sample.recall(rows)
    return float(recalls.mean()), float(recalls.std() / np.sqrt(len(recalls))), min(times)


def measure(vectors: Vectors, sample: Sample) -> Measured:
    """Recall and latency with the parameters that are set."""
    together = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        _, rows = vectors.search(sample.queries, sample.depth)
        together.append(time.perf_counter() - start)
    alone = []
    for query in sample.queries[:LATENCY_QUERIES]:
        start = time.perf_counter()
        vectors.search(query[None], NEIGHBOURS)
        alone.append(time.perf_counter() - start)
    return Measured(
        recall=round(float(sample.recall(rows).mean()), 4),
        queries=len(sample.queries),
        latency_ms=round(1000 * statistics.median(alone), 3),
        queries_per_s=round(len(sample.queries) / statistics.median(together), 1),
        origin=sample.origin,
    )
