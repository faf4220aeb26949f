"""The vectors of a segment: a FAISS index, read within bounds, searched among all rows or some of them.

Shapes: N rows, Q queries, E embedding, k neighbours.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cclm.errors import first_line
from cclm.retrieval.among import Found, Lists, in_graph, inner_of, nothing, parameters, probes
from cclm.retrieval.manifest import INDEX_FILE, REBUILD, VECTORS_FILE
from cclm.retrieval.partitions import ends_in_lists
from cclm.retrieval.plan import check_factory, check_search

if TYPE_CHECKING:
    import faiss

MAPPED_FROM = 2**30  # bytes of an index that is mapped into memory rather than read; lists always are
GATHERED_ROWS = 16_384  # at a time
MANY_QUERIES = 3  # from so many on, a product of matrices is faster than one query after the other
THREAD_SCORES = 2**15  # that are worth a thread
FEW_ROWS = 20_000  # of them, and of less than FEW of all, an exact search costs no more than an approximate one
FEW = 0.02
TUNED_FOR = 10  # neighbours: what a search for them finds is known; for fewer, so many are looked for, and cut
AT_ONCE = 16  # queries in an approximate search, which holds tables for each of them and each list
PROBED = 16  # lists, where it is tried whether a kind of index leaves rows out
MORE_REFINED = 4096  # times its candidates is as many as a search for 1 may refine; for k, a k-th of that
_WIDEST = 2**16


def unit(vectors: np.ndarray, name: str) -> np.ndarray:
    """The vectors (N, E) as float32 of unit norm. Errors: ValueError for NaN, infinity, zeros or another shape."""
    if vectors.ndim != 2:
        raise ValueError(f"{name}: shape is {vectors.shape}, expected (rows, width)")
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    broken = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(broken):
        raise ValueError(
            f"{name}: {len(broken)} hold NaN, infinity or only zeros (first: {broken[0]}); check the model"
        )
    return np.ascontiguousarray(vectors / norms)


class Vectors:
    """Searched by several threads at once, if need be: nothing in it changes but `tune`."""

    def __init__(self, folder: Path, factory: str, search: str) -> None:
        """Errors: ValueError, one line, for files that are not what `factory` says, or parameters that do not fit."""
        self._folder = folder
        self._index = _read(folder / INDEX_FILE, factory)
        self._flat = flat_part(self._index)
        # (N, E) float16; mapped from now on, as a writer may remove the file of a former version
        self._stored = _mapped(folder / VECTORS_FILE) if self._flat is None else None
        self.tune(search)

    @property
    def dim(self) -> int:
        return self._index.d

    def __len__(self) -> int:
        return self._index.ntotal

    @property
    def shape(self) -> tuple[str, int, bool]:
        """What can be tuned: "ivf", "hnsw" or ""; the number of lists; whether candidates are refined."""
        import faiss

        inner, refined = inner_of(self._index), isinstance(self._index, faiss.IndexRefine)
        if isinstance(inner, faiss.IndexIVF):
            return "ivf", inner.nlist, refined
        return "hnsw" if isinstance(inner, faiss.IndexHNSW) else "", 0, refined

    def tune(self, search: str) -> None:
        """Set search parameters. Errors: ValueError for those that this kind of index has not."""
        import faiss

        try:
            check_search(search)
            faiss.ParameterSpace().set_index_parameters(self._index, search)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"search parameters {search!r} do not fit the index in {self._folder} ({first_line(error)}); {REBUILD}"
            ) from error

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """The k nearest rows of queries (Q, E) of unit norm; all of them where there are fewer.

        `allowed`: (N,) bool, the rows to search among. Where these are few, the result is exact whatever the index.
        """
        if allowed is None and self._flat is self._index:
            return self._exact(queries, k)
        count = len(self) if allowed is None else int(np.count_nonzero(allowed))
        if allowed is not None and self._by_hand(count, len(queries)):
            return self._exact(queries, k, allowed)
        found = nothing(len(queries), k)
        for start in range(0, len(queries), AT_ONCE):
            some = np.arange(start, min(start + AT_ONCE, len(queries)))
            _put(found, some, self._approximate(queries[some], k, allowed, count))
        return found

    def _approximate(self, queries: np.ndarray, k: int, allowed: np.ndarray | None, count: int) -> Found:
        if k < TUNED_FOR:
            scores, rows = self._approximate(queries, TUNED_FOR, allowed, count)
            return scores[:, :k], rows[:, :k]
        usual = allowed is None and k <= 2 * TUNED_FOR
        found = self._index.search(queries, k) if usual else self._widened(queries, k, allowed)
        if (found[1][:, -1] >= 0).all():
            return found
        for again in (self._widened, self._exact):
            short = np.flatnonzero((found[1] >= 0).sum(1) < min(k, count))
            if len(short):
                allowed = np.ones(len(self), bool) if allowed is None else allowed
                _put(found, short, again(queries[short], k, allowed))
        return found

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings (R, E) float32 of these rows."""
        if self._flat is not None:
            return self._flat.reconstruct_batch(np.ascontiguousarray(rows, np.int64))
        stored = self._stored
        if stored is None:
            raise FileNotFoundError(f"{self._folder / VECTORS_FILE} is missing; {REBUILD}")
        if stored.shape != (len(self), self.dim) or stored.dtype != np.float16:
            raise ValueError(f"{self._folder / VECTORS_FILE}: {stored.dtype} of shape {stored.shape}; {REBUILD}")
        return unit(stored[rows], "stored vectors") if len(rows) else np.empty((0, self.dim), np.float32)

    def _by_hand(self, count: int, queries: int) -> bool:
        """Whether so many rows are better gathered and compared one by one."""
        if self._flat is self._index:  # which takes no products of matrices where it is to leave rows out
            return count == 0 or queries >= MANY_QUERIES
        return count <= max(FEW_ROWS, FEW * len(self)) or not self._takes_selector

    @cached_property
    def _takes_selector(self) -> bool:
        """Whether this kind leaves rows out if told to: some refuse, some do not listen."""
        import faiss

        selector = faiss.IDSelectorBitmap(np.zeros(len(self) // 8 + 1, np.uint8))
        query = np.full((1, self.dim), self.dim**-0.5, np.float32)
        width = min(PROBED, self.shape[1]) if self.shape[0] == "ivf" else TUNED_FOR
        try:
            chosen = parameters(self._index, None if self.shape[0] == "hnsw" else selector, width)
            found = self._index.search(query, 1, params=chosen)[1]
        except RuntimeError:
            return False
        return self.shape[0] == "hnsw" or bool((found < 0).all())

    @cached_property
    def _lists(self) -> Lists:
        return Lists(inner_of(self._index))

    def _widened(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> Found:
        """Approximately, each query as wide as the allowed rows around it, and the number wanted, demand."""
        import faiss

        kind, wider = self.shape[0], max(1, k / TUNED_FOR) ** 0.85
        if not self._takes_selector:
            return self._index.search(queries, k) if allowed is None else nothing(len(queries), k)
        if allowed is None:
            inner = inner_of(self._index)
            width = min(math.ceil(inner.nprobe * wider), inner.nlist) if kind == "ivf" else 0
            width = math.ceil(max(inner.hnsw.efSearch, k) * wider**0.5) if kind == "hnsw" else width
            return self._index.search(queries, k, params=parameters(self._index, None, width) if kind else None)
        if kind == "hnsw":
            return in_graph(self._index, queries, k, allowed)
        selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if not kind:
            return self._index.search(queries, k, params=parameters(self._index, selector))
        found, widths = nothing(len(queries), k), probes(self._index, self._lists, queries, k, allowed, wider)
        usual = inner_of(self._index).nprobe * wider * len(self) / np.count_nonzero(allowed)
        for width in np.unique(widths).tolist():
            some, excess = np.flatnonzero(widths == width), min(width / usual, (MORE_REFINED / k) ** 2)
            chosen = parameters(self._index, selector, width, excess)
            _put(found, some, self._index.search(queries[some], k, params=chosen))
        return found

    def _exact(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """Compare queries with all rows, or those allowed. Each thread has rows of its own, reads them once, and waits
        for no other, as threads within one product do.
        """
        import faiss

        rows = None if allowed is None else np.flatnonzero(allowed)
        count = len(self) if rows is None else len(rows)
        threads = max(1, min(faiss.omp_get_max_threads(), count * len(queries) // THREAD_SCORES))
        ends = np.linspace(0, count, threads + 1).astype(int).tolist()

        def share(start: int, stop: int) -> Found:
            if threads > 1:
                faiss.omp_set_num_threads(1)  # of this thread
            return (
                self._among(queries, k, rows[start:stop])
                if rows is not None
                else self._between(queries, k, start, stop)
            )

        if threads == 1:
            return share(0, count)
        with ThreadPoolExecutor(threads) as pool:
            found, *others = pool.map(share, ends[:-1], ends[1:])
        for other in others:
            found = best(found, other, k)
        return found

    def _between(self, queries: np.ndarray, k: int, start: int, stop: int) -> Found:
        """Among these rows of a flat index, where they lie."""
        import faiss

        all_rows = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * self.dim).reshape(len(self), self.dim)
        scores, rows = faiss.knn(queries, all_rows[start:stop], k, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, np.where(rows >= 0, rows + start, -1)

    def _among(self, queries: np.ndarray, k: int, rows: np.ndarray) -> Found:
        import faiss

        scores, found = nothing(len(queries), k)
        for start in range(0, len(rows), GATHERED_ROWS):
            some = rows[start : start + GATHERED_ROWS]
            own, places = faiss.knn(queries, self.take(some), min(k, len(some)), metric=faiss.METRIC_INNER_PRODUCT)
            scores, found = best((scores, found), (own, some[places]), k)
        return scores, found


def _mapped(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no readable array ({first_line(error)[:200]}); {REBUILD}") from error


def best(one: Found, other: Found, k: int) -> Found:
    """The k best of two results."""
    scores, rows = (np.concatenate(pair, axis=1) for pair in zip(one, other, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def flat_part(index: faiss.Index) -> faiss.IndexFlat | None:
    """That part of an index which holds the vectors as they are, row by row; None where there is none."""
    import faiss

    if isinstance(index, faiss.IndexFlat):
        return index
    if isinstance(index, faiss.IndexRefine):
        return flat_part(faiss.downcast_index(index.refine_index))
    if isinstance(index, faiss.IndexHNSW):
        return flat_part(faiss.downcast_index(index.storage))
    return None


def _put(found: Found, places: np.ndarray, some: Found) -> None:
    """What some queries found, at their places among all."""
    for into, values in zip(found, some, strict=True):
        into[places] = values


def _read(path: Path, factory: str) -> faiss.Index:
    """Read a FAISS file within the bounds that its size allows: no header may ask for more memory than it can hold.

    The limits belong to the process, not to the call; they are set back afterwards.
    """
    import faiss

    with open(path, "rb") as handle:
        width = int.from_bytes(handle.read(8)[4:], "little")  # of every kind
    if not 0 < width <= _WIDEST:
        raise ValueError(f"{path} is no readable FAISS index (width {width}); {REBUILD}")
    expected = check_factory(factory, width)
    # For the process: FAISS would compare up to 500 queries of this width one by one, in five times the time.
    faiss.cvar.distance_compute_blas_threshold = MANY_QUERIES * width
    size = path.stat().st_size
    names = ("deserialization_vector_byte_limit", "deserialization_loop_limit")
    before = {name: getattr(faiss, f"get_{name}")() for name in names}
    try:
        faiss.set_deserialization_vector_byte_limit(max(size, _table_bytes(expected)) + 8)
        faiss.set_deserialization_loop_limit(max(1024, size // 8))  # a list takes 8 bytes in the file at the least
        flags = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE  # it is for distances, not for inner products
        flags |= faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY  # no path in a file leads out of the folder
        mapped = size >= MAPPED_FROM or ends_in_lists(expected)
        index = faiss.read_index(str(path), flags | (faiss.IO_FLAG_MMAP_IFC if mapped else 0))
    except RuntimeError as error:
        reason = first_line(error)[:200]
        raise ValueError(f"{path} is no readable FAISS index ({reason}); {REBUILD}") from error
    finally:
        for name, value in before.items():
            getattr(faiss, f"set_{name}")(value)
    if _kinds(expected) != _kinds(index):
        raise ValueError(f"{path} holds {'/'.join(_kinds(index))}, not {factory} as manifest.json says; {REBUILD}")
    if index.metric_type != faiss.METRIC_INNER_PRODUCT or not index.is_trained:
        raise ValueError(f"{path} is not trained for inner products; {REBUILD}")
    return index


def _table_bytes(index: faiss.Index) -> int:
    """Of the table of an inverted file of product codes, which is no part of its file, but held against the limit."""
    import faiss

    inner = inner_of(index)
    if isinstance(inner, faiss.IndexIVF) and hasattr(inner, "pq"):
        return 4 * inner.nlist * inner.pq.M * inner.pq.ksub
    return 0


def _kinds(index: faiss.Index) -> list[str]:
    """The classes that an index is made of, its lists among them: those in a file of their own are another one."""
    import faiss

    actual = faiss.downcast_index(index)  # does not own it: `index` has to be kept as well
    own = "IndexFlat" if isinstance(actual, faiss.IndexFlat) else type(actual).__name__
    parts = [getattr(actual, name, None) for name in ("base_index", "refine_index", "index", "quantizer", "storage")]
    lists = [type(faiss.downcast_InvertedLists(actual.invlists)).__name__] if isinstance(actual, faiss.IndexIVF) else []
    return [own, *lists, *(kind for part in parts if part is not None for kind in _kinds(part))]
