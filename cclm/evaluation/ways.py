"""The two ways through a retrieval test: who asks, among what, in which of its disjoint galleries, and what answers.

Shapes: Q queries, G gallery items, E embedding, k ranked items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from cclm.evaluation import metrics
from cclm.evaluation.items import Captions, Sentences
from cclm.evaluation.metrics import Found, Ranks, Relevance

LENGTH = max(metrics.RECALLS)  # that a ranked list must have


@dataclass(frozen=True)
class Ranking:
    """The best of the gallery for a query by their ids, best first; `scores` where they are known: equal ones tie."""

    items: tuple[str, ...]
    scores: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.items)


Rankings: TypeAlias = dict[str, dict[str, Ranking]]  # direction -> id of the query -> list


@dataclass(frozen=True)
class Way:
    """One direction. `images`: of each query, by name, and as number in `groups`: what is drawn together."""

    name: str
    queries: tuple[str, ...]  # ids
    gallery: tuple[str, ...]  # ids
    relevance: Relevance
    images: tuple[str, ...]
    groups: Tensor  # (Q,) int64
    folds: Tensor  # (Q,) int64: which of the disjoint galleries the query is asked of
    gallery_folds: Tensor  # (G,) int64

    @property
    def fold_count(self) -> int:
        return int(self.gallery_folds.max()) + 1


def ways(test: Captions | Sentences) -> tuple[Way, Way]:
    """Captions: text to image, then image to text, where any caption of the image is a hit. Sentences: to English and
    from it.

    An image without a caption stays in the gallery of the first way and is no query of the second.
    """
    if isinstance(test, Sentences):
        rows = torch.arange(len(test))
        same = Relevance.of(rows, len(rows))
        return tuple(  # type: ignore[return-value]
            Way(name, test.ids, test.ids, same, test.ids, rows, torch.zeros_like(rows), torch.zeros_like(rows))
            for name in ("to_english", "from_english")
        )
    row = {name: number for number, name in enumerate(test.gallery)}
    owners = torch.tensor([row[caption.image] for caption in test.captions])
    relevance = Relevance.of(owners, len(row))
    asking = torch.unique(owners)
    folds = torch.arange(len(row)) * test.protocol.folds // len(row)
    images = tuple(caption.image for caption in test.captions)
    to_image = Way("text_to_image", test.ids, test.gallery, relevance, images, owners, folds[owners], folds)
    names = tuple(test.gallery[number] for number in asking.tolist())
    to_text = Way("image_to_text", names, test.ids, relevance.turned(), names, asking, folds[asking], folds[owners])
    return to_image, to_text


def searched(both: tuple[Way, Way], queries: Tensor, gallery: Tensor, k: int) -> tuple[Found, Found]:
    """Both ways by inner product, every query in its own fold; rows are of the whole gallery.

    `queries` (Q, E) and `gallery` (G, E) are those of the first way, whose queries have one answer each.
    """
    there, back = both
    if there.fold_count == 1:
        return metrics.search(queries, gallery, there.relevance, k)
    k = min(k, *torch.bincount(there.folds).tolist(), *torch.bincount(there.gallery_folds).tolist())
    parts = []
    for fold in range(there.fold_count):
        asking, asked = ((of == fold).nonzero().flatten() for of in (there.folds, there.gallery_folds))
        answers = torch.searchsorted(asked, there.relevance.items[asking])
        found = metrics.search(queries[asking], gallery[asked], Relevance.of(answers, len(asked)), k)
        rows = (asking, (back.folds == fold).nonzero().flatten())
        parts.append((rows, found, (asked, asking)))
    joined = []
    for way in (0, 1):
        order = torch.cat([rows[way] for rows, _, _ in parts]).argsort()
        whole = Found(
            Ranks.joined([found[way].ranks for _, found, _ in parts]),
            torch.cat([found[way].scores for _, found, _ in parts]),
            torch.cat([names[way][found[way].rows] for _, found, names in parts]),
        )
        joined.append(whole[order])
    return joined[0], joined[1]


def listed_ranks(way: Way, rankings: Mapping[str, Ranking]) -> tuple[list[Ranking], Ranks]:
    """Each query's list within its fold, in the order of the queries, and where its first hit stands.

    A list without a hit ends before it: `above` is then the whole gallery. Errors: ValueError, as `score_rankings`.
    """
    fold_of = dict(zip(way.gallery, way.gallery_folds.tolist(), strict=True))
    offsets, items = way.relevance.offsets.tolist(), way.relevance.items.tolist()
    needed = min(LENGTH, int(torch.bincount(way.gallery_folds).min()))
    kept, places = [], []
    faults: dict[str, list[str]] = {"hold an item twice": [], f"hold fewer than {needed} items": []}
    outside = []
    for row, (query, fold) in enumerate(zip(way.queries, way.folds.tolist(), strict=True)):
        given = rankings[query]
        if strange := [name for name in given.items if name not in fold_of]:
            outside.append((query, strange[0]))
            continue
        if len(set(given.items)) < len(given):
            faults["hold an item twice"].append(query)
        own = within(given, [fold_of[name] == fold for name in given.items]) if way.fold_count > 1 else given
        if len(own) < needed:
            faults[f"hold fewer than {needed} items"].append(query)
        relevant = {way.gallery[item] for item in items[offsets[row] : offsets[row + 1]]}
        kept.append(own)
        places.append(place(own, relevant, len(way.gallery)))
    if outside:
        query, name = outside[0]
        raise ValueError(
            f"{way.name}: {len(outside):,} of {len(way.queries):,} lists hold an item that is not in the gallery of "
            f"{len(way.gallery):,}, first {name!r} for query {query!r}; rank the gallery of this task and protocol, by "
            f"ids as {way.gallery[0]!r} or rows as numbers from 0"
        )
    for fault, queries in faults.items():
        if queries:
            raise ValueError(
                f"{way.name}: {len(queries):,} of {len(way.queries):,} lists {fault}, first that of query "
                f"{queries[0]!r}; R@{LENGTH} needs the {needed} best, each once"
            )
    above, tied, hits = torch.tensor(places).T
    return kept, Ranks(above, tied, hits, torch.zeros(len(places)))


def within(ranking: Ranking, keep: Sequence[bool]) -> Ranking:
    """The items of a list that are kept, in its order."""
    items = tuple(name for name, kept in zip(ranking.items, keep, strict=True) if kept)
    if ranking.scores is None:
        return Ranking(items)
    return Ranking(items, tuple(score for score, kept in zip(ranking.scores, keep, strict=True) if kept))


def place(ranking: Ranking, relevant: set[str], gallery: int) -> tuple[int, int, int]:
    """`above`, `tied` and `hits` of the best relevant item, as `Ranks` has them."""
    first = next((number for number, name in enumerate(ranking.items) if name in relevant), None)
    if first is None:
        return gallery, 1, 1
    if ranking.scores is None:
        return first, 1, 1
    best = ranking.scores[first]
    tied = [name for name, score in zip(ranking.items, ranking.scores, strict=True) if score == best]
    return sum(score > best for score in ranking.scores), len(tied), sum(name in relevant for name in tied)
