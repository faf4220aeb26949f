"""How wide an approximate index is searched for what is near among some of its rows.

Shapes: N rows, Q queries, E embedding, L inverted lists, k neighbours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import faiss

ENOUGH = 0.75  # of the rows that are compared in a search among all
_HELD = 2**22  # results of a graph that are filtered at a time

Found: TypeAlias = tuple[np.ndarray, np.ndarray]  # scores (Q, k) float32, best first; rows (Q, k) int64, -1 for none


def nothing(queries: int, k: int) -> Found:
    return np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1)


class Lists:
    """The rows that each list of an inverted file holds."""

    def __init__(self, index: faiss.IndexIVF) -> None:
        import faiss

        self._list_of = np.zeros(index.ntotal, np.int32)  # (N,)
        for number in range(index.nlist):
            rows = index.invlists.list_size(number)
            if rows:
                self._list_of[faiss.rev_swig_ptr(index.invlists.get_ids(number), rows)] = number
        self.sizes = np.bincount(self._list_of, minlength=index.nlist)  # (L,)

    def counts(self, allowed: np.ndarray) -> np.ndarray:
        """How many rows (L,) of each list are allowed."""
        mostly = 2 * np.count_nonzero(allowed) > len(allowed)
        counts = np.bincount(self._list_of[np.flatnonzero(allowed ^ mostly)], minlength=len(self.sizes))
        return self.sizes - counts if mostly else counts


def probes(
    index: faiss.Index, lists: Lists, queries: np.ndarray, k: int, allowed: np.ndarray, wider: float
) -> np.ndarray:
    """In how many lists (Q,) of an inverted file to look among the allowed rows.

    In so many that they hold the allowed rows that `_wanted` tells. `wider`: times the lists that are usual.
    """
    import faiss

    inner = inner_of(index)
    quantizer, queries = faiss.downcast_index(inner.quantizer), _as_inner_sees(index, queries)
    allowed_in = lists.counts(allowed)
    share = allowed_in.sum() / len(allowed)  # which is not 0
    width = min(math.ceil(inner.nprobe * wider), inner.nlist)

    def held(counts: np.ndarray, some: np.ndarray) -> np.ndarray:
        nearest = quantizer.search(queries[some], width)[1]
        return np.where(nearest >= 0, counts[nearest], 0).sum(1)

    found, left = np.full(len(queries), inner.nlist), np.arange(len(queries))
    nearest = np.maximum(quantizer.search(queries, 1)[1][:, 0], 0)
    wanted = np.maximum(_wanted(held(lists.sizes, left), allowed_in[nearest], share * lists.sizes[nearest]), 2 * k)
    while len(left) and width < inner.nlist:
        enough = held(allowed_in, left) >= wanted[left]
        found[left[enough]] = width
        left, width = left[~enough], min(2 * width, inner.nlist)
    return found


def _wanted(compared: np.ndarray, near: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How many allowed rows (Q,) to compare with each query.

    Nearly as many as the rows that would be `compared` if all were allowed. Where fewer are allowed `near` it than are
    `expected` by their share of all, what it looks for is further off, in more directions: then so many times as many.
    """
    return ENOUGH * compared * np.maximum(1, expected / np.maximum(near, 0.5))


def in_graph(index: faiss.Index, queries: np.ndarray, k: int, allowed: np.ndarray) -> Found:
    """What is allowed of the nearest rows in a graph, which is asked for more of them until these are enough.

    A graph that is told what is allowed stops where nothing near is. Queries (Q, E) for which it is less work to
    compare all allowed rows find nothing.
    """
    graph, count = inner_of(index).hnsw, int(np.count_nonzero(allowed))
    width, degree = max(k, graph.efSearch), graph.nb_neighbors(0)
    found, left, wanted = nothing(len(queries), k), np.arange(len(queries)), np.zeros(len(queries))
    while len(left) and width * degree <= count:
        missed = []
        for some in np.array_split(left, -(-len(left) * width // _HELD)):
            scores, rows = index.search(queries[some], width, params=parameters(index, None, width))
            chosen = (rows >= 0) & allowed[rows]
            near = chosen.sum(1)
            if not wanted[some[0]]:
                compared = (rows >= 0).sum(1)
                wanted[some] = np.maximum(_wanted(compared, near, compared * count / len(allowed)), k)
            enough = near >= wanted[some]
            first = np.argsort(~chosen[enough], axis=1, kind="stable")[:, :k]
            for into, values in zip(found, (scores, rows), strict=True):
                into[some[enough]] = np.take_along_axis(values[enough], first, 1)
            missed.append(some[~enough])
        left, width = np.concatenate(missed), 2 * width
    return found


def inner_of(index: faiss.Index) -> faiss.Index:
    """The index that is searched within wrappers."""
    import faiss

    if isinstance(index, faiss.IndexRefine):
        return inner_of(faiss.downcast_index(index.base_index))
    if isinstance(index, faiss.IndexPreTransform):
        return inner_of(faiss.downcast_index(index.index))
    return index


def _as_inner_sees(index: faiss.Index, queries: np.ndarray) -> np.ndarray:
    """The queries as they reach the index within wrappers."""
    import faiss

    if isinstance(index, faiss.IndexRefine):
        return _as_inner_sees(faiss.downcast_index(index.base_index), queries)
    if isinstance(index, faiss.IndexPreTransform):
        for step in range(index.chain.size()):
            queries = faiss.downcast_VectorTransform(index.chain.at(step)).apply(queries)
        return _as_inner_sees(faiss.downcast_index(index.index), queries)
    return queries


def parameters(
    index: faiss.Index, selector: faiss.IDSelector | None, width: int = 0, excess: float = 1
) -> faiss.SearchParameters:
    """The parameters that the index has, with a selector, and a width of its own: of lists, or of a walk in a graph.

    `excess`: times as many rows are compared as is usual; where candidates are refined, more of them are then.
    """
    import faiss

    if isinstance(index, faiss.IndexRefine):
        base = parameters(faiss.downcast_index(index.base_index), selector, width)
        factor = index.k_factor * max(1, excess) ** 0.5
        return faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=base)
    if isinstance(index, faiss.IndexPreTransform):
        base = parameters(faiss.downcast_index(index.index), selector, width)
        return faiss.SearchParametersPreTransform(index_params=base)
    if isinstance(index, faiss.IndexIVFRaBitQ):
        return faiss.IVFRaBitQSearchParameters(nprobe=width, qb=index.qb, sel=selector)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=width, sel=selector)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=width, sel=selector)
    return faiss.SearchParameters(sel=selector)
