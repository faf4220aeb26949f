"""Exact retrieval metrics in bounded memory: ranks with ties, R@k, median rank, bootstrap intervals.

Shapes: Q queries, G gallery items, E embedding, P (query, relevant item) entries, C candidates per query.

Ties. Items of equal score stand in an unknown order, so every order of them is taken as equally likely. If `above`
items score higher than a query's best relevant one and `tied` items (itself included) score the same, `hits` of them
relevant, the first hit has the expected rank `above + (tied + 1) / (hits + 1)`, and lies within the first k with
probability `1 - C(tied - hits, m) / C(tied, m)`, m = clamp(k - above, 0, tied). R@k is the mean of that probability.
A model that gives everything the same score therefore gets exactly chance, whatever the order of the files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RECALLS = (1, 5, 10)
BLOCK_SCORES = 2**24  # scores held at once: 64 MiB as float32, twice that while they are summed
GALLERY_TILE = 2**14

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

    @classmethod
    def grouped(cls, owners: Tensor, queries: int) -> Relevance:
        """The other direction: gallery item g answers query `owners[g]`; every query needs at least one item."""
        counts = torch.bincount(owners, minlength=queries)
        if len(counts) != queries or bool((counts == 0).any()):
            raise ValueError(f"owners must name each of {queries} queries at least once, and no other")
        return cls(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), owners.argsort(stable=True))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def counts(self) -> Tensor:
        """Relevant items per query, (Q,)."""
        return self.offsets.diff()


@dataclass(frozen=True)
class Ranks:
    """Where each query's best relevant item stands; all (Q,)."""

    above: Tensor  # int64: items that score higher
    tied: Tensor  # int64: items of the same score, itself included
    hits: Tensor  # int64: relevant ones among the tied
    best: Tensor  # float32: its score

    def __len__(self) -> int:
        return len(self.above)

    def expected(self) -> Tensor:
        """Expected rank of the first hit, (Q,) float64, counted from 1."""
        return self.above + (self.tied + 1) / (self.hits + 1).double()

    def within(self, k: int) -> Tensor:
        """Probability of a hit among the first k, (Q,) float64."""
        taken = (k - self.above).clamp(min=0).minimum(self.tied)
        missed = log_choose(self.tied - self.hits, taken) - log_choose(self.tied, taken)
        return 1 - missed.exp()


def log_choose(n: Tensor, k: Tensor) -> Tensor:
    """Log of the binomial coefficient, float64; -inf where k > n, exactly 0 where k is 0."""
    n, k = n.double(), k.double()
    value = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)
    return torch.where(k == 0, 0.0, torch.where(k > n, -torch.inf, value))


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


def score_blocks(queries: Tensor, gallery: Tensor, block_scores: int = BLOCK_SCORES) -> Iterator[tuple[int, Tensor]]:
    """Yield (first query, scores (q, G) float32), block after block; at most max(block_scores, G) scores at once.

    Sums are float64 and then rounded: equal pairs of vectors then get equal scores wherever they stand in a block,
    which a float32 product does not promise, so that duplicates are seen as the ties they are.
    """
    size = max(1, block_scores // len(gallery))
    for start in range(0, len(queries), size):
        rows = queries[start : start + size].double()
        scores = rows.new_empty(len(rows), len(gallery), dtype=torch.float32)
        for left in range(0, len(gallery), GALLERY_TILE):
            tile = gallery[left : left + GALLERY_TILE].double()
            scores[:, left : left + len(tile)] = rows @ tile.T  # (q, g)
        yield start, scores


def rank(queries: Array, gallery: Array, relevance: Relevance, block_scores: int = BLOCK_SCORES) -> Ranks:
    """Rank of the best relevant item of every query by inner product; exact.

    Errors: ValueError for embeddings that are empty, not finite or of different widths.
    """
    queries, gallery = checked_embeddings(queries, "queries"), checked_embeddings(gallery, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have width {queries.shape[1]}, the gallery {gallery.shape[1]}: not of one model")
    if len(relevance) != len(queries):
        raise ValueError(f"relevance is given for {len(relevance)} queries, embeddings for {len(queries)}")
    parts = []
    for start, scores in score_blocks(queries, gallery, block_scores):
        offsets = relevance.offsets[start : start + len(scores) + 1]
        items = relevance.items[offsets[0] : offsets[-1]].to(scores.device)
        owners = torch.repeat_interleave(offsets.diff()).to(scores.device)
        relevant = scores[owners, items]
        best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, owners, relevant, "amax")
        hits = torch.zeros_like(best, dtype=torch.int64).index_add(0, owners, (relevant == best[owners]).long())
        above, tied = (scores > best[:, None]).sum(1), (scores == best[:, None]).sum(1)
        parts.append(torch.stack([above, tied, hits]).cpu())
        parts.append(best.cpu())
    above, tied, hits = torch.cat(parts[0::2], dim=1)
    return Ranks(above, tied, hits, torch.cat(parts[1::2]))


def top(queries: Array, gallery: Array, k: int, block_scores: int = BLOCK_SCORES) -> tuple[Tensor, Tensor]:
    """Scores (Q, k) and gallery rows (Q, k) of the k best, best first."""
    queries, gallery = checked_embeddings(queries, "queries"), checked_embeddings(gallery, "gallery")
    assert 0 < k <= len(gallery)
    parts = [scores.topk(k, dim=1) for _, scores in score_blocks(queries, gallery, block_scores)]
    return torch.cat([part.values for part in parts]).cpu(), torch.cat([part.indices for part in parts]).cpu()


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


def chance(relevance: Relevance, gallery: int) -> dict[str, float]:
    """R@k in percent when the order is random."""
    counts = relevance.counts()
    nothing = Ranks(torch.zeros_like(counts), torch.full_like(counts, gallery), counts, torch.zeros(len(counts)))
    return {f"R@{k}": 100 * float(nothing.within(k).mean()) for k in RECALLS}


def summarise(ranks: Ranks) -> dict[str, float]:
    """R@1, R@5, R@10 and their mean (percent), median and mean reciprocal of the expected rank."""
    metrics = {f"R@{k}": 100 * float(ranks.within(k).mean()) for k in RECALLS}
    expected = ranks.expected()
    metrics["mean_recall"] = sum(metrics.values()) / len(RECALLS)
    metrics["median_rank"] = float(np.median(expected.numpy()))
    metrics["mean_reciprocal_rank"] = float((1 / expected).mean())
    return metrics


def intervals(ranks: Ranks, groups: Tensor, draws: int, generator: np.random.Generator) -> dict[str, list[float]]:
    """Bootstrap 95 % interval (percentiles) of each recall and of their mean, in percent.

    Groups of queries are drawn with replacement, not single queries: captions of one image stand or fall together,
    and drawing them singly would make the interval too narrow. `groups` (Q,) int64; one query each gives the usual one.
    """
    _, group = torch.unique(groups, return_inverse=True)
    values = torch.stack([*(100 * ranks.within(k) for k in RECALLS)], dim=1)
    values = torch.cat([values, values.mean(1, keepdim=True), torch.ones(len(ranks), 1)], dim=1)  # last: query count
    sums = torch.zeros(int(group.max()) + 1, values.shape[1], dtype=torch.float64).index_add(0, group, values).numpy()
    means = np.empty((draws, values.shape[1] - 1))
    for draw in range(draws):
        weights = np.bincount(generator.integers(len(sums), size=len(sums)), minlength=len(sums))
        total = weights @ sums
        means[draw] = total[:-1] / total[-1]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    names = [*(f"R@{k}" for k in RECALLS), "mean_recall"]
    return {f"{name}_interval": [float(low[i]), float(high[i])] for i, name in enumerate(names)}


def share_interval(right: np.ndarray, groups: np.ndarray, draws: int, generator: np.random.Generator) -> list[float]:
    """Bootstrap 95 % interval of the share of `right` (N,) bool, in percent, drawing whole `groups` (N,)."""
    _, group = np.unique(groups, return_inverse=True)
    hits, sizes = np.bincount(group, right), np.bincount(group)
    chosen = generator.integers(len(sizes), size=(draws, len(sizes)))
    shares = 100 * hits[chosen].sum(1) / sizes[chosen].sum(1)
    low, high = np.percentile(shares, [2.5, 97.5])
    return [float(low), float(high)]
