"""From what a system gave, answers, embeddings, ranks or ranked lists, to the number of a protocol and its items.

Shapes: N images, T texts, E embedding, Q queries, k ranked items.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cclm.evaluation import metrics
from cclm.evaluation.items import Captions, Pictures, Question, Questions, Sentences, TestSet
from cclm.evaluation.labels import contained
from cclm.evaluation.metrics import Array, Ranks, checked_embeddings
from cclm.evaluation.result import Result
from cclm.evaluation.ways import Ranking, Way, listed_ranks, searched, ways

TOLD = [f"R@{k}" for k in metrics.RECALLS]


@dataclass(frozen=True)
class ScoreOptions:
    """`draws`: of the bootstrap, 0 for no intervals. `listed`: items of a ranked list that are kept per query."""

    draws: int = 1000
    seed: int = 0
    listed: int = 100

    def __post_init__(self) -> None:
        if self.draws < 0:
            raise ValueError(f"draws is {self.draws}; give the number of bootstrap draws, or 0 for none")
        if self.listed < 0:
            raise ValueError(f"listed is {self.listed}; give how much of a ranked list is kept, or 0 for none of it")


@dataclass(frozen=True)
class Scored:
    """A result, and what it is made of: one JSON object per item, as `predictions.write` stores them.

    Of a question or picture: {"id", "images", "answer", "label", "right"}. Of a query: {"direction", "id", "images",
    "rank" (expected, from 1; None beyond the list), "R@1", "R@5", "R@10" (probabilities of a hit), "ranked" (ids of
    gallery items, best first), "scores" (theirs)}, the last two where they are known.
    """

    result: Result
    items: list[dict[str, Any]]


def check_ids(wanted: Collection[str], given: Collection[str], what: str, spared: Collection[str] = ()) -> int:
    """How many of `given` are spared ids, which are of the same test's rest. Errors: ValueError with the counts."""
    known, held = set(wanted), set(given)
    missing = [name for name in wanted if name not in held]
    extra = [name for name in given if name not in known and name not in spared]
    faults = []
    if missing:
        faults.append(f"{len(missing):,} of {len(known):,} {what} have no prediction, first {missing[0]!r}")
    if extra:
        told = f"{len(extra):,}, first {extra[0]!r}, where ids are as {next(iter(wanted))!r}"
        faults.append(f"predictions of none of the test's {what}: {told}")
    if faults:
        raise ValueError(f"{'; '.join(faults)}; give one for each, of this test, language and protocol")
    return len(held - known)


def score_answers(
    test: Questions | Pictures, answers: Mapping[str, str], options: ScoreOptions | None = None
) -> Scored:
    """Accuracy of labels by id of the question or picture; with the consistency of sentences about pairs of images.

    Errors: ValueError for an id without an answer, or an answer to none.
    """
    options = options or ScoreOptions()
    spared = test.spared if isinstance(test, Questions) else frozenset()
    others = check_ids(test.ids, answers, "questions" if isinstance(test, Questions) else "pictures", spared)
    notes = (f"predictions beside the test's, not scored: {others:,}",) if others else ()
    if isinstance(test, Questions):
        asked: Sequence[Question] = test.questions
        loose, choices = test.protocol.match == "contains", frozenset(test.labels)
    else:
        asked = [Question(picture.id, (picture.image,), "", picture.label) for picture in test.pictures]
        loose, choices = False, frozenset(test.names)
    said = Counter(answers[name] for name in test.ids)
    if loose:
        strange = sum(count for text, count in said.items() if not any(contained(label, text) for label in choices))
    else:
        strange = sum(count for text, count in said.items() if text not in choices)
    if choices and strange:
        told = "hold" if loose else "are"
        notes += (f"answers that {told} none of the {len(choices):,} labels: {strange:,}, count as wrong",)
    right = np.array(
        [
            question.label is not None
            and (contained(question.label, answers[question.id]) if loose else answers[question.id] == question.label)
            for question in asked
        ]
    )
    scores: dict[str, Any] = {"accuracy": 100 * int(right.sum()) / len(right)}
    if options.draws:
        _, groups = np.unique(["\n".join(question.images) for question in asked], return_inverse=True)
        generator = np.random.default_rng(options.seed)
        scores["accuracy_interval"] = metrics.share_interval(right, groups, options.draws, generator)
    if (consistency := _consistency(asked, right)) is not None:
        scores |= consistency
    if choices:
        scores["chance"] = 100 / len(choices)
    items = [
        {
            "id": question.id,
            "images": list(question.images),
            "answer": answers[question.id],
            "label": question.label,
            "right": bool(hit),
        }
        for question, hit in zip(asked, right, strict=True)
    ]
    return Scored(result_of(test, scores, notes), items)


def _consistency(asked: Sequence[Question], right: np.ndarray) -> dict[str, Any] | None:
    """Share of the sentences about pairs of images that are right with all their pairs; None where none repeats."""
    by_sentence: dict[str, list[bool]] = defaultdict(list)
    for question, hit in zip(asked, right, strict=True):
        by_sentence[question.text].append(bool(hit))
    if len(asked[0].images) < 2 or len(by_sentence) in (1, len(asked)):
        return None
    return {"consistency": 100 * fmean(map(all, by_sentence.values())), "sentences": len(by_sentence)}


def score_embeddings(test: Captions, images: Array, texts: Array, options: ScoreOptions | None = None) -> Scored:
    """Both directions by inner product, from (N, E) in the order of the gallery and (T, E) in that of the captions.

    Errors: ValueError for other numbers of rows, or embeddings that are not finite.
    """
    images, texts = _rows(images, "images", len(test.gallery)), _rows(texts, "captions", len(test.captions))
    options = options or ScoreOptions()
    return _searched(test, texts, images, options)


def score_sentences(test: Sentences, texts: Array, english: Array, options: ScoreOptions | None = None) -> Scored:
    """Sentences and translations finding each other, from two (T, E) in the order of the test. Errors: ValueError."""
    texts, english = _rows(texts, "sentences", len(test)), _rows(english, "translations", len(test))
    return _searched(test, texts, english, options or ScoreOptions())


def _rows(embeddings: Array, name: str, count: int) -> Tensor:
    found = checked_embeddings(embeddings, name)
    if len(found) != count:
        raise ValueError(
            f"{name}: {len(found):,} embeddings for {count:,} of the test; give one for each, in its order"
        )
    return found


def _searched(test: Captions | Sentences, queries: Tensor, gallery: Tensor, options: ScoreOptions) -> Scored:
    both = ways(test)
    found = searched(both, queries, gallery, options.listed)
    lists = [(one.scores, one.rows) for one in found] if options.listed else (None, None)
    return _scored(test, both, [one.ranks for one in found], lists, options)


def score_ranks(
    test: Captions,
    to_image: Ranks,
    to_text: Ranks,
    options: ScoreOptions | None = None,
    lists: Sequence[tuple[Tensor, Tensor] | None] = (None, None),
) -> Scored:
    """Both directions from ranks: of the captions in their order, and of the images that have one in the gallery's.

    `lists`: where they are known, scores (Q, k) and rows (Q, k) of both directions' best, as of `metrics.top`.
    """
    both = ways(test)
    for way, ranks in zip(both, (to_image, to_text), strict=True):
        if len(ranks) != len(way.queries):
            raise ValueError(f"{way.name}: ranks of {len(ranks):,} queries where the test has {len(way.queries):,}")
    return _scored(test, both, [to_image, to_text], lists, options or ScoreOptions())


def score_rankings(
    test: Captions | Sentences,
    rankings: Mapping[str, Mapping[str, Ranking]],
    options: ScoreOptions | None = None,
) -> Scored:
    """From ranked lists by direction and id of the query; a direction that is not there is None in the scores.

    Errors: ValueError for a query without a list or a list without one, a list with repeats, with items that are not
    in the gallery, or with fewer items than R@10 needs.
    """
    options = options or ScoreOptions()
    both = ways(test)
    if not rankings or (unknown := set(rankings) - {way.name for way in both}):
        raise ValueError(f"rankings are of {sorted(unknown) if rankings else 'no direction'}; give {both[0].name}")
    ranks: list[Ranks | None] = []
    lists: list[Sequence[Ranking] | None] = []
    notes: list[str] = []
    for way in both:
        if way.name not in rankings:
            ranks.append(None)
            lists.append(None)
            notes.append(f"{way.name}: not in the predictions")
            continue
        given = rankings[way.name]
        check_ids(way.queries, given, f"{way.name} queries")
        kept, found = listed_ranks(way, given)
        ranks.append(found)
        lists.append(kept)
        if lost := int((found.above >= len(way.gallery)).sum()):
            length = min(map(len, kept))
            notes.append(f"{way.name}: lists of {length} or more; in {lost:,} of them nothing relevant, rank unknown")
    return _scored(test, both, ranks, lists, options, tuple(notes))


def _scored(
    test: Captions | Sentences,
    both: Sequence[Way],
    ranks: Sequence[Ranks | None],
    lists: Sequence[tuple[Tensor, Tensor] | Sequence[Ranking] | None],
    options: ScoreOptions,
    notes: tuple[str, ...] = (),
) -> Scored:
    scores: dict[str, Any] = {}
    items: list[dict[str, Any]] = []
    for way, found, listed in zip(both, ranks, lists, strict=True):
        scores[way.name] = None if found is None else direction(way, found, options)
        if found is not None:
            items += _items(way, found, listed, options.listed)
    measured = [scores[way.name] for way in both if scores[way.name] is not None]
    if len(measured) == len(both):
        scores["mean_recall"] = fmean(one["mean_recall"] for one in measured)
    sizes = Counter(both[0].gallery_folds.tolist()).values()
    if len(sizes) > 1:
        told = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
        notes += (f"mean of {len(sizes)} disjoint galleries of {told} images",)
    return Scored(result_of(test, scores, notes), items)


def direction(way: Way, ranks: Ranks, options: ScoreOptions) -> dict[str, Any]:
    """Recalls, ranks, intervals and chance of one direction; where it has folds, their mean, and sizes of one.

    `median_rank`: median of the queries' expected ranks, from 1; IGLUE's MedR is its floor. `mean_reciprocal_rank`:
    mean of 1 / expected rank; where nothing ties, these are the usual ones (`metrics.summarise`).

    A rank beyond the gallery is one that nobody knows: the median is then told only if it does not depend on it, and
    the mean reciprocal rank is not.
    """
    folds = [(way.folds == fold).nonzero().flatten() for fold in range(way.fold_count)]
    result: dict[str, Any] = _mean([metrics.summarise(ranks[rows]) for rows in folds])
    if bool((ranks.above >= len(way.gallery)).any()):
        known = ranks.expected()[ranks.above < len(way.gallery)].max() if len(ranks) else 0
        result["median_rank"] = result["median_rank"] if result["median_rank"] <= known else None
        result["mean_reciprocal_rank"] = None
    if options.draws:
        weights = torch.zeros(len(ranks), dtype=torch.float64)
        for rows in folds:
            weights[rows] = 1 / len(rows)
        generator = np.random.default_rng(options.seed)
        result |= metrics.intervals(ranks, way.groups, options.draws, generator, weights)
    sizes = torch.bincount(way.gallery_folds)
    result |= {"queries": round(len(ranks) / len(folds)), "gallery": int(sizes.max())}
    counts = way.relevance.counts()
    pairs = zip(folds, sizes.tolist(), strict=True)
    return result | {"chance": _mean([metrics.chance(counts[rows], size) for rows, size in pairs])}


def _mean(each: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(one[name] for one in each) for name in each[0]}


def _items(
    way: Way, ranks: Ranks, listed: tuple[Tensor, Tensor] | Sequence[Ranking] | None, count: int
) -> list[dict[str, Any]]:
    """What `Scored` says of a query."""
    unknown = (ranks.above >= len(way.gallery)).tolist()
    columns = [ranks.expected().tolist(), *(ranks.within(k).tolist() for k in metrics.RECALLS)]
    items = []
    for row, (name, image, rank, *hits) in enumerate(zip(way.queries, way.images, *columns, strict=True)):
        item = {"direction": way.name, "id": name, "images": [image], "rank": None if unknown[row] else rank}
        items.append(item | dict(zip(TOLD, hits, strict=True)))
    if listed is None:
        return items
    if isinstance(listed, tuple):
        scores, rows = (tensor[:, :count] for tensor in listed)
        named = np.array(way.gallery, dtype=object)[rows.numpy()].tolist()
        for item, names, values in zip(items, named, scores.tolist(), strict=True):
            item |= {"ranked": names, "scores": values}
    else:
        for item, one in zip(items, listed, strict=True):
            item["ranked"] = list(one.items[:count])
            if one.scores is not None:
                item["scores"] = list(one.scores[:count])
    return items


def result_of(test: TestSet, scores: dict[str, Any], notes: tuple[str, ...]) -> Result:
    """The scores beside what the test says of itself."""
    return Result(
        task=test.task,
        language=test.language,
        protocol=test.protocol.name,
        items=len(test),
        scores=scores,
        ids=test.fingerprint(),
        split=test.split,
        notes=(*test.notes, *notes),
    )
