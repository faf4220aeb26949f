"""Retrieval by what a pair scorer says: of the best by similarity, or of every pair where nothing embeds.

Shapes: N images, T texts, E embedding, P (image, text) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cclm.evaluation import metrics
from cclm.evaluation.embedder import System, pair_scores
from cclm.evaluation.items import Captions
from cclm.evaluation.metrics import Found
from cclm.evaluation.retrieval import reranked
from cclm.evaluation.scoring import Scored, score_ranks
from cclm.evaluation.ways import Way, searched, ways
from cclm.models.encoding import batches

if TYPE_CHECKING:
    from cclm.evaluation.runner import RunOptions

PAIRS_AT_ONCE = 2**16  # asked of the scorer, which has batches of its own


@dataclass(frozen=True)
class Rows:
    """Inputs as rows of distinct ones, which are embedded once, so that equal ones tie exactly."""

    distinct: Tensor  # (D, E) float32; (0, 0) where nothing embeds
    rows: Tensor  # (N,) int64: where each input is among them

    @property
    def embeddings(self) -> Tensor:
        """(N, E) float32."""
        return self.distinct[self.rows]


def two_stages(system: System, test: Captions, images: Rows, texts: Rows, options: RunOptions) -> Scored:
    """The `rerank` best by similarity, ordered by the pair scorer; an equal picture with an equal text counts once.

    Errors: ValueError for scores that break the contract.
    """
    both, distinct = ways(test), list(dict.fromkeys(caption.text for caption in test.captions))

    def score(pairs: Tensor) -> Tensor:
        pairs = torch.stack([images.rows[pairs[:, 0]], texts.rows[pairs[:, 1]]], dim=1)
        pairs, places = torch.unique(pairs, dim=0, return_inverse=True)
        return pair_scores(system, distinct, pairs, options.language(test))[places]

    found = searched(both, texts.embeddings, images.embeddings, options.rerank)
    weight = options.rerank_similarity * system.pairs.similarity_scale if options.rerank_similarity else 0.0
    found = reranked(found, both[0].relevance, score, weight)
    beside = f" with {options.rerank_similarity:g} x similarity" if options.rerank_similarity else ""
    taken = [_taken(one, way) for one, way in zip(found, both, strict=True)]
    best = taken[0] if taken[0] == taken[1] else f"{taken[0]} images and {taken[1]} texts"
    return _scored(test, found, options, f"{best} of each query reordered by {_scorer(system)}{beside}")


def _taken(found: Found, way: Way) -> str:
    count = found.rows.shape[1]
    return f"all {count:,}" if count >= int(torch.bincount(way.gallery_folds).min()) else f"the {count:,} best"


def _scorer(system: System) -> str:
    """With the kind of its score, where it has one of several."""
    kind = system.pair_settings.get("match_score")
    return f"the {str(kind).replace('_', '-')} of the matching head" if kind else "the matching head"


def every_pair(system: System, test: Captions, images: Rows, options: RunOptions) -> Scored:
    """All that a fold's texts and images score together, (T, N) held at once; equal pairs are scored once.

    Errors: ValueError for scores that break the contract.
    """
    there, _ = both = ways(test)
    places = {text: row for row, text in enumerate(dict.fromkeys(caption.text for caption in test.captions))}
    texts, rows = list(places), torch.tensor([places[caption.text] for caption in test.captions])
    scores = torch.full((len(test.captions), len(test.gallery)), -torch.inf)  # in another fold nothing is found
    for fold in range(there.fold_count):
        asking, asked = ((of == fold).nonzero().flatten() for of in (there.folds, there.gallery_folds))
        own, text_places = torch.unique(rows[asking], return_inverse=True)
        pictures, image_places = torch.unique(images.rows[asked], return_inverse=True)
        parts = []
        for some in batches(own.tolist(), max(1, PAIRS_AT_ONCE // len(pictures))):
            pairs = torch.cartesian_prod(torch.arange(len(some)), pictures).flip(1)  # (P, 2)
            found = pair_scores(system, [texts[row] for row in some], pairs, options.language(test))
            parts.append(found.unflatten(0, (len(some), -1)))
        scores[asking[:, None], asked] = torch.cat(parts)[text_places][:, image_places]
    sizes = [size for of in (there.folds, there.gallery_folds) for size in torch.bincount(of).tolist()]
    best = metrics.search_scores(scores, both[0].relevance, min(options.scoring.listed, *sizes))
    return _scored(test, best, options, f"every pair scored by {_scorer(system)}")


def _scored(test: Captions, found: tuple[Found, Found], options: RunOptions, note: str) -> Scored:
    lists = [(one.scores, one.rows) for one in found] if options.scoring.listed else (None, None)
    scored = score_ranks(test, found[0].ranks, found[1].ranks, options.scoring, lists)
    return replace(scored, result=replace(scored.result, notes=(*scored.result.notes, note)))
