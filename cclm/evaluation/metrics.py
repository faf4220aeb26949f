"""Exact retrieval metrics in bounded memory: ranks of both directions with ties, R@k, median rank, intervals.

Shapes: Q queries, G gallery items, E embedding, P (query, relevant item) entries, C candidates per query.

Ties. Items of equal score stand in an unknown order, so every order of them is taken as equally likely. If `above`
items score higher than a query's best relevant one and `tied` items (itself included) score the same, `hits` of them
relevant, the first hit has the expected rank `above + (tied + 1) / (hits + 1)`, and lies within the first k with
probability `1 - C(tied - m, hits) / C(tied, hits)`, m = clamp(k - above, 0, tied). R@k is the mean of that probability.
A model that gives everything the same score therefore gets exactly chance, whatever the order of the files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RECALLS = (1, 5, 10)
QUERY_TILE, GALLERY_TILE = 2**10, 2**11  # scores held at once: 16 MiB while they are summed, then 8
PAIRS_AT_ONCE = 2**14
DRAWS_AT_ONCE = 2**16  # of groups: few enough to stay in a processor's cache

Array = Tensor | np.ndarray


@dataclass(frozen=True)
class Relevance:
    """Which gallery items answer which query: entries grouped by query."""

    offsets: Tensor  # (Q + 1,) int64: entries of query q are items[offsets[q]:offsets[q + 1]]
    items: Tensor  # (P,) int64

    @classmethod
    def of(cls, relevant: Array | Sequence[int] | Sequence[Collection[int]], gallery: int) -> Relevance:
        """From one gallery row per query, or from a collection of rows per query; any of them is a hit.

        Errors: ValueError for a query without a relevant item or a row outside the gallery.
        """
        if isinstance(relevant, (Tensor, np.ndarray)) or all(isinstance(row, (int, np.integer)) for row in relevant):
            items = torch.as_tensor(relevant, dtype=torch.int64).cpu()
            offsets = torch.arange(len(items) + 1)
        else:
            groups = [sorted(set(rows)) for rows in relevant]
            empty = [query for query, rows in enumerate(groups) if not rows]
            if empty:
                raise ValueError(f"{len(empty)} queries have no relevant gallery item (first: query {empty[0]})")
            items = torch.tensor([row for rows in groups for row in rows], dtype=torch.int64)
            offsets = torch.tensor([0, *np.cumsum([len(rows) for rows in groups])])
        outside = (items < 0) | (items >= gallery)
        if bool(outside.any()):
            raise ValueError(f"relevant row {int(items[outside][0])} lies outside the gallery of {gallery} rows")
        return cls(offsets, items)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def counts(self) -> Tensor:
        """Relevant items per query, (Q,)."""
        return self.offsets.diff()

    def queries(self) -> Tensor:
        """The query of each entry, (P,)."""
        return torch.repeat_interleave(self.counts())

    def turned(self) -> Relevance:
        """The other direction: which queries answer each gallery item that answers one, in the order of the gallery."""
        counts = torch.bincount(self.items)
        counts = counts[counts > 0]
        return Relevance(
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]), self.queries()[self.items.argsort(stable=True)]
        )


@dataclass(frozen=True)
class Ranks:
    """Where each query's best relevant item stands; all (Q,)."""

    above: Tensor  # int64: items that score higher
    tied: Tensor  # int64: items of the same score, itself included
    hits: Tensor  # int64: relevant ones among the tied
    best: Tensor  # float32: its score

    def __len__(self) -> int:
        return len(self.above)

    def __getitem__(self, rows: Tensor) -> Ranks:
        """Those of some queries, in the order of `rows`."""
        return Ranks(self.above[rows], self.tied[rows], self.hits[rows], self.best[rows])

    @classmethod
    def joined(cls, parts: Sequence[Ranks]) -> Ranks:
        """Queries of several searches, one after another."""
        fields = ("above", "tied", "hits", "best")
        return cls(*(torch.cat([getattr(part, field) for part in parts]) for field in fields))

    def expected(self) -> Tensor:
        """Expected rank of the first hit, (Q,) float64, counted from 1."""
        return self.above + (self.tied + 1) / (self.hits + 1).double()

    def within(self, k: int) -> Tensor:
        """Probability of a hit among the first k, (Q,) float64."""
        tied, hits = self.tied.double(), self.hits
        free = tied - (k - self.above).clamp(min=0).minimum(self.tied)  # places of the tied that lie behind the first k
        missed = torch.ones_like(tied)
        for hit in range(int(hits.max()) if len(hits) else 0):  # one relevant item after another lands behind them
            missed = torch.where(hits > hit, missed * (free - hit).clamp(min=0) / (tied - hit), missed)
        return 1 - missed


def checked_embeddings(embeddings: Array, name: str) -> Tensor:
    """The embeddings as a tensor (N, E). Errors: ValueError for another shape, no rows, NaN or infinity."""
    tensor = torch.as_tensor(embeddings).detach()
    if tensor.ndim != 2 or not tensor.numel():
        raise ValueError(f"{name}: embeddings must have shape (rows, width) with both > 0, got {tuple(tensor.shape)}")
    broken = (~tensor.isfinite()).any(dim=1).nonzero().flatten()
    if len(broken):
        raise ValueError(
            f"{name}: {len(broken)} of {len(tensor)} embeddings hold NaN or infinity (first: row {int(broken[0])}); "
            "the model has diverged or overflowed: evaluate in float32 or take an earlier checkpoint"
        )
    return tensor


def tiles(queries: Tensor, gallery: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (first query, first gallery item, scores (q, g) float32), tile after tile.

    Sums are float64 and then rounded: equal pairs of vectors then get equal scores wherever they stand in a tile,
    which a float32 product does not promise, so that duplicates are seen as the ties they are.
    """
    for left in range(0, len(gallery), GALLERY_TILE):
        columns = gallery[left : left + GALLERY_TILE].double().T
        for start in range(0, len(queries), QUERY_TILE):
            yield start, left, (queries[start : start + QUERY_TILE].double() @ columns).float()  # (q, g)


@dataclass(frozen=True)
class Found:
    """One direction of a search: where the queries' relevant items stand, and the k best, best first."""

    ranks: Ranks
    scores: Tensor  # (Q, k) float32
    rows: Tensor  # (Q, k) int64, of the gallery

    def __getitem__(self, queries: Tensor) -> Found:
        """Those of some queries, in the order of `queries`."""
        return Found(self.ranks[queries], self.scores[queries], self.rows[queries])


def highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of scores (q, g), best first, and their columns: (q, k) both."""
    if scores.device.type != "cpu":
        return scores.topk(k, dim=1)
    found = scores.numpy()  # whose partition takes a third of the time of torch's on a processor
    columns = np.argpartition(found, -k, axis=1)[:, -k:]
    values, order = torch.from_numpy(np.take_along_axis(found, columns, axis=1)).sort(dim=1, descending=True)
    return values, torch.from_numpy(columns).gather(1, order)


class _Side:
    """What one direction has seen of the scores so far. `best` (Q,): of each query's relevant items."""

    def __init__(self, best: Tensor, k: int) -> None:
        self.best, self.k = best, k
        self.above = torch.zeros_like(best, dtype=torch.int64)
        self.tied = torch.zeros_like(self.above)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # first query of a tile -> scores and rows of the best

    def add(self, start: int, left: int, scores: Tensor) -> None:
        """Scores (q, g) of the queries from `start` with the items from `left`."""
        rows = slice(start, start + len(scores))
        best = self.best[rows, None]
        self.above[rows] += (scores > best).sum(1, dtype=torch.int32)
        self.tied[rows] += (scores == best).sum(1, dtype=torch.int32)
        if self.k:
            values, items = highest(scores, min(self.k, scores.shape[1]))
            items += left
            if start in self.kept:
                values, items = (torch.cat(pair, dim=1) for pair in zip(self.kept[start], (values, items), strict=True))
                values, places = highest(values, min(self.k, values.shape[1]))
                items = items.gather(1, places)
            self.kept[start] = values, items

    def top(self) -> tuple[Tensor, Tensor]:
        """Scores and rows (Q, k), best first."""
        if not self.kept:
            return self.best.new_empty(len(self.best), 0).cpu(), self.above.new_empty(len(self.best), 0).cpu()
        scores, rows = zip(*(self.kept[start] for start in sorted(self.kept)), strict=True)
        return torch.cat(scores).cpu(), torch.cat(rows).cpu()

    def found(self, hits: Tensor) -> Found:
        return Found(Ranks(*(found.cpu() for found in (self.above, self.tied, hits, self.best))), *self.top())


def _pair_scores(queries: Tensor, gallery: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Scores of relevant pairs, (P,) float32, summed and rounded like those of `tiles`."""
    parts = [
        (queries[query].double() * gallery[item].double()).sum(1).float()
        for query, item in zip(*(rows.split(PAIRS_AT_ONCE) for rows in pairs), strict=True)
    ]
    return torch.cat(parts)


def search(queries: Array, gallery: Array, relevance: Relevance, k: int = 0) -> tuple[Found, Found]:
    """Ranks and the `k` best by inner product in both directions, in one pass over the scores; exact.

    First the queries in the gallery; then the other way, those gallery items that answer a query among the queries, in
    the order of the gallery (`relevance.turned()`). Of fewer items than `k` all are told.

    Errors: ValueError for embeddings that are empty, not finite or of different widths.
    """
    queries, gallery = checked_embeddings(queries, "queries"), checked_embeddings(gallery, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have width {queries.shape[1]}, the gallery {gallery.shape[1]}: not of one model")
    if len(relevance) != len(queries):
        raise ValueError(f"relevance is given for {len(relevance)} queries, embeddings for {len(queries)}")
    query, item = relevance.queries().to(queries.device), relevance.items.to(queries.device)
    own = _pair_scores(queries, gallery, (query, item))
    return _found(tiles(queries, gallery), own, relevance, len(gallery), k)


def search_scores(scores: Tensor, relevance: Relevance, k: int = 0) -> tuple[Found, Found]:
    """Likewise from the scores (Q, G) themselves. Errors: ValueError for relevance of other queries."""
    if len(relevance) != len(scores):
        raise ValueError(f"relevance is given for {len(relevance)} queries, scores for {len(scores)}")
    own = scores[relevance.queries(), relevance.items]
    rows = ((start, 0, scores[start : start + QUERY_TILE]) for start in range(0, len(scores), QUERY_TILE))
    return _found(rows, own, relevance, scores.shape[1], k)


def _found(
    scores: Iterator[tuple[int, int, Tensor]], own: Tensor, relevance: Relevance, gallery: int, k: int
) -> tuple[Found, Found]:
    """Both directions from tiles of scores, and those of the relevant pairs, `own` (P,)."""
    query, item = relevance.queries().to(own.device), relevance.items.to(own.device)
    sides, hits = [], []
    for rows, count in ((query, len(relevance)), (item, gallery)):
        best = own.new_full((count,), -torch.inf).scatter_reduce(0, rows, own, "amax")
        hits.append(torch.zeros_like(best, dtype=torch.int64).index_add(0, rows, (own == best[rows]).long()))
        sides.append(_Side(best, k))
    for start, left, tile in scores:
        last = min(start + len(tile), len(relevance))
        entries = slice(int(relevance.offsets[start]), int(relevance.offsets[last]))
        here = (item[entries] >= left) & (item[entries] < left + tile.shape[1])
        # A relevant pair has one score wherever it is looked at, so that it always ties with itself.
        tile[query[entries][here] - start, item[entries][here] - left] = own[entries][here]
        sides[0].add(start, left, tile)
        sides[1].add(left, start, tile.T)
    return sides[0].found(hits[0]), sides[1].found(hits[1])[torch.unique(item).cpu()]


def top(queries: Array, gallery: Array, k: int) -> tuple[Tensor, Tensor]:
    """Scores (Q, k) and gallery rows (Q, k) of the k best, best first."""
    queries, gallery = checked_embeddings(queries, "queries"), checked_embeddings(gallery, "gallery")
    assert 0 < k <= len(gallery)
    side = _Side(queries.new_zeros(len(queries), dtype=torch.float32), k)
    for start, left, scores in tiles(queries, gallery):
        side.add(start, left, scores)
    return side.top()


def rerank(plain: Ranks, relevance: Relevance, candidates: tuple[Tensor, Tensor], matches: Tensor) -> Ranks:
    """Ranks once the candidates (scores (Q, C), rows (Q, C) from `top`) are reordered by `matches` (Q, C).

    Candidates come first, by match score; all other items follow in their former order. A query without a relevant
    candidate keeps its place among those others; its `best` is a similarity, the others' a match score.
    """
    scores, rows = candidates
    if not bool(matches.isfinite().all()):
        raise ValueError("matching head: scores hold NaN or infinity; rerank in float32 or take an earlier checkpoint")
    queries = torch.arange(len(relevance))
    stride = int(max(rows.max(), relevance.items.max())) + 1
    wanted = torch.repeat_interleave(queries, relevance.counts()) * stride + relevance.items
    relevant = torch.isin(queries[:, None] * stride + rows, wanted)  # (Q, C)
    best = matches.masked_fill(~relevant, -torch.inf).amax(1)
    same = matches == best[:, None]
    # Everything relevant lies behind the candidates: those of equal similarity now stand before it, not beside it.
    level = (scores == plain.best[:, None]).sum(1)
    found = relevant.any(1)
    return Ranks(
        above=torch.where(found, (matches > best[:, None]).sum(1), plain.above + level),
        tied=torch.where(found, same.sum(1), plain.tied - level),
        hits=torch.where(found, (same & relevant).sum(1), plain.hits),
        best=torch.where(found, best, plain.best),
    )


def chance(counts: Tensor, gallery: int) -> dict[str, float]:
    """R@k in percent when the order is random, of queries with so many relevant items, `counts` (Q,), each."""
    nothing = Ranks(torch.zeros_like(counts), torch.full_like(counts, gallery), counts, torch.zeros(len(counts)))
    return {f"R@{k}": 100 * float(nothing.within(k).mean()) for k in RECALLS}


def summarise(ranks: Ranks) -> dict[str, float]:
    """R@1, R@5, R@10 and their mean (percent), `median_rank` and `mean_reciprocal_rank`.

    `median_rank`: of the expected ranks, which count from 1; under ties, and of an even number of queries, no whole
    number. IGLUE's MedR is its floor. `mean_reciprocal_rank`: mean over the queries of 1 / expected rank, which under
    ties is at most the expected reciprocal rank.
    """
    metrics = {f"R@{k}": 100 * float(ranks.within(k).sum()) / len(ranks) for k in RECALLS}
    expected = ranks.expected()
    metrics["mean_recall"] = sum(metrics.values()) / len(RECALLS)
    metrics["median_rank"] = float(np.median(expected.numpy()))
    metrics["mean_reciprocal_rank"] = float((1 / expected).mean())
    return metrics


def intervals(
    ranks: Ranks, groups: Tensor, draws: int, generator: np.random.Generator, weights: Tensor | None = None
) -> dict[str, list[float]]:
    """Bootstrap 95 % interval (percentiles) of each recall and of their mean, in percent.

    Groups of queries are drawn with replacement, not single queries: captions of one image stand or fall together,
    and drawing them singly would make the interval too narrow. `groups` (Q,) int64; one query each gives the usual one.
    `weights` (Q,): of the queries, all equal without them.
    """
    weights = torch.ones(len(ranks), dtype=torch.float64) if weights is None else weights.double()
    values = torch.stack([*(100 * ranks.within(k) for k in RECALLS)], dim=1)
    values = torch.cat([values, values.mean(1, keepdim=True), torch.ones(len(ranks), 1)], dim=1)  # last: query count
    means = resampled_means((values * weights[:, None]).numpy(), groups.numpy(), draws, generator)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    names = [*(f"R@{k}" for k in RECALLS), "mean_recall"]
    return {f"{name}_interval": [float(low[i]), float(high[i])] for i, name in enumerate(names)}


def resampled_means(values: np.ndarray, groups: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Means (draws, V - 1) of values (N, V) over groups (N,) drawn with replacement; the last column holds weights."""
    _, group = np.unique(groups, return_inverse=True)
    sums = np.stack([np.bincount(group, column) for column in values.T], axis=1)  # (groups, V)
    count = len(sums)
    totals = np.empty((draws, values.shape[1]))
    step = max(1, DRAWS_AT_ONCE // count)
    for first in range(0, draws, step):
        chosen = generator.integers(count, size=(min(step, draws - first), count))
        cells = chosen + count * np.arange(len(chosen))[:, None]
        times = np.bincount(cells.ravel(), minlength=chosen.size).reshape(chosen.shape)
        totals[first : first + step] = times @ sums
    return totals[:, :-1] / totals[:, -1:]


def mean_rank_variance(ranks: Array) -> float:
    """How much the rank of one thing differs between languages: ranks (languages, N), variance over the languages.

    Of the population, averaged over the N; 0 where every language finds everything at the same place. After Nie et
    al. 2024 (CCRK), for whom it tells what recall hides.
    """
    values = torch.as_tensor(ranks, dtype=torch.float64)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"ranks have shape {tuple(values.shape)}; give those of two languages or more, (languages, N)")
    return float(values.var(dim=0, correction=0).mean())


def share_interval(right: np.ndarray, groups: np.ndarray, draws: int, generator: np.random.Generator) -> list[float]:
    """Bootstrap 95 % interval of the share of `right` (N,) bool, in percent, drawing whole `groups` (N,)."""
    values = np.stack([100.0 * right, np.ones(len(right))], axis=1)
    low, high = np.percentile(resampled_means(values, groups, draws, generator), [2.5, 97.5])
    return [float(low), float(high)]
