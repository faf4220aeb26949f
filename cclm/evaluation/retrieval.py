"""Image-text retrieval, per language, in both directions: exact, with intervals, optionally reranked by matching.

Shapes: N images, T texts of one language, E embedding, Q queries, C candidates, P pairs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cclm.evaluation import metrics
from cclm.evaluation.encoding import ImageViews, image_identity
from cclm.evaluation.metrics import Array, Found, Ranks, Relevance
from cclm.evaluation.report import Provenance, Report
from cclm.models.encoding import (
    EncodedImages,
    EncodedTexts,
    EncodingOptions,
    Matcher,
    MatchScore,
    Processor,
    encode_images,
    encode_texts,
    match_scores,
)
from cclm.types import Encoder, Record

logger = logging.getLogger(__name__)

ScorePairs: TypeAlias = Callable[[Tensor], Tensor]

TEXT_RULES = {
    "auto": "captions; parallel sentences for a language in which no image has a caption",
    "captions": "captions only",
    "parallel": "parallel sentences only",
}


@dataclass(frozen=True)
class RetrievalOptions:
    """What is measured.

    `languages`: None for all found. `texts`: which texts of a record are queries; "auto" takes a language's captions,
    and its parallel sentences where no image has a caption in it; "captions" and "parallel" take only those.
    `rerank`: candidates per query reordered by the matching head, 0 for none. `rerank_similarity` w: candidates stand
    in the order of match score + w * similarity / temperature. 0 is the reference's rule; with 1 both judges of a
    pair count, as in BLIP; w = h gives back what the negatives of `Matching(hardness=h)` hid from the head.
    `rerank_score`: the match score is the "log_odds" of a match, or its "logit" alone, as in the original.
    `draws`: bootstrap draws, 0 for none.
    """

    languages: tuple[str, ...] | None = None
    texts: Literal["auto", "captions", "parallel"] = "auto"
    rerank: int = 0
    rerank_similarity: float = 0.0
    rerank_score: MatchScore = "log_odds"
    draws: int = 1000
    seed: int = 0
    encoding: EncodingOptions = field(default_factory=EncodingOptions)

    def __post_init__(self) -> None:
        if self.rerank < 0:
            raise ValueError(f"rerank is {self.rerank}; give the number of candidates per query, or 0 for none")
        if not self.rerank_similarity >= 0:
            raise ValueError(f"rerank_similarity is {self.rerank_similarity}; give 0 (match alone) or a weight above")
        if self.rerank_similarity and not self.rerank:
            raise ValueError("rerank_similarity is given without rerank; say how many candidates to rerank")
        if self.rerank_score not in ("log_odds", "logit"):
            raise ValueError(f"rerank_score is {self.rerank_score!r}; choose log_odds or logit")
        if self.draws < 0:
            raise ValueError(f"draws is {self.draws}; give the number of bootstrap draws, or 0 for none")
        if self.texts not in TEXT_RULES:
            raise ValueError(f"texts is {self.texts!r}; choose auto, captions or parallel")


@dataclass(frozen=True)
class LanguageTexts:
    """The texts of one language and the images they belong to."""

    source: str  # "captions" or "parallel"
    texts: list[str]
    images: list[int]  # row of each text's image
    left_out: int  # blank ones and repetitions within one image


@dataclass(frozen=True)
class Direction:
    """One way through the same embeddings."""

    name: str
    relevance: Relevance
    images: Tensor  # (Q,) image row that each query belongs to
    gallery: int

    def scores(self, ranks: Ranks, draws: int, seed: int) -> dict[str, object]:
        """Metrics of this direction, ready for a report."""
        result: dict[str, object] = {**metrics.summarise(ranks)}
        if draws:
            result |= metrics.intervals(ranks, self.images, draws, np.random.default_rng(seed))
        result |= {"queries": len(ranks), "gallery": self.gallery}
        return result | {"chance": metrics.chance(self.relevance.counts(), self.gallery)}


def directions(text_image_ids: Array, images: int) -> tuple[Direction, Direction]:
    """Text to image (every text a query, every image in the gallery) and image to text (any own text is a hit).

    An image without a text stays in the gallery of the first and is no query of the second.
    """
    owners = torch.as_tensor(text_image_ids, dtype=torch.int64).cpu()
    relevance = Relevance.of(owners, images)
    to_image = Direction("text_to_image", relevance, owners, images)
    return to_image, Direction("image_to_text", relevance.turned(), torch.unique(owners), len(owners))


def evaluate_retrieval(
    model: Encoder,
    processor: Processor,
    records: Iterable[Record],
    views: ImageViews,
    provenance: Provenance,
    options: RetrievalOptions | None = None,
) -> Report:
    """Encode each distinct image and, by language, each distinct text once; score both directions per language.

    `views` encodes the images of some records: `encoding.pixel_views`, or a look-up of states computed before.
    Errors: what `views` raises; ValueError for no records, a language without texts (names those present), or
    `rerank` on a model without a matching head.
    """
    options = options or RetrievalOptions()
    if options.rerank and not all(hasattr(model, part) for part in ("project", "fuse_first", "match_logits", "scale")):
        raise ValueError(f"rerank is {options.rerank}, but {type(model).__name__} has no matching head; give 0")
    seen: list[Record] = []
    noted = _noted(records, seen)
    images = encode_images(model, noted, views, image_identity, options.encoding, keep_states=options.rerank > 0)
    by_language = _texts(seen, options)
    languages = {}
    for language, texts in by_language.items():
        logger.info("retrieval: %s, %d %s, %d images", language, len(texts.texts), texts.source, len(seen))
        encoded = encode_texts(model, processor, texts.texts, options.encoding, keep_states=options.rerank > 0)
        both = directions(torch.tensor(texts.images), len(images.embeddings))
        found = metrics.search(encoded.embeddings, images.embeddings, both[0].relevance, options.rerank)
        stages = {"": found}
        if options.rerank:
            score, weight = _matcher(model, images, encoded, options), options.rerank_similarity * model.scale().item()
            stages["_rerank"] = reranked(found, both[0].relevance, score, weight)
        scores = {
            f"{way.name}{stage}": way.scores(one.ranks, options.draws, options.seed)
            for stage, ways in stages.items()
            for way, one in zip(both, ways, strict=True)
        }
        languages[language] = scores
    described = {
        language: {
            "source": texts.source,
            "left_out": texts.left_out,
            "images_without_text": len(seen) - len(set(texts.images)),
        }
        for language, texts in by_language.items()
    }
    return Report(languages, described, protocol(options), provenance)


def protocol(options: RetrievalOptions) -> dict[str, str]:
    """In words, what was measured and how."""
    rules = {
        "task": "image-text retrieval by inner product of unit-norm embeddings, exact",
        "text_to_image": "every text of the language is a query; all images, even those without one, are the gallery",
        "image_to_text": "every image with a text is a query; all such texts are the gallery; any of its own is a hit",
        "texts": TEXT_RULES[options.texts],
        "ties": "expected over every order of equal scores (scores compared as float32)",
        "units": "R@k, mean_recall and their intervals in percent; ranks from 1",
        "precision": options.encoding.precision,
    }
    if options.draws:
        rules["interval"] = f"95 % bootstrap over images, {options.draws} draws, seed {options.seed}"
    if options.rerank:
        weight, score = options.rerank_similarity, options.rerank_score.replace("_", "-")
        beside = f" + {weight:g} x similarity / temperature" if weight else " alone"
        rules["rerank"] = (
            f"the {options.rerank} best by similarity (all, if fewer) reordered by match {score}{beside}, "
            "the rest behind them in their order of similarity"
        )
    return rules


def _noted(records: Iterable[Record], seen: list[Record]) -> Iterator[Record]:
    """Pass records on and note what is needed later: everything but the image."""
    for record in records:
        seen.append(Record(record.key, captions=record.captions, parallel=record.parallel))
        yield record


def _texts(records: list[Record], options: RetrievalOptions) -> dict[str, LanguageTexts]:
    """The texts to evaluate, by language: English first, the others by code."""
    captioned = Counter(lang for record in records for lang, texts in record.captions.items() if texts)
    parallel = Counter(lang for record in records for lang in record.parallel)
    sources = dict.fromkeys(captioned, "captions") if options.texts != "parallel" else {}
    if options.texts != "captions":
        sources = dict.fromkeys(parallel, "parallel") | sources
    present = sorted(sources, key=lambda lang: (lang != "en", lang))
    if not present:
        raise ValueError(f"none of {len(records)} image records has {options.texts} texts; nothing to evaluate")
    wanted = present if options.languages is None else list(options.languages)
    if missing := [lang for lang in wanted if lang not in sources]:
        raise ValueError(f"no texts in language {', '.join(missing)} in this data; present: {', '.join(present)}")
    found = {}
    for language in wanted:
        texts, images, given = [], [], 0
        for row, record in enumerate(records):
            if sources[language] == "captions":
                own = record.captions.get(language, [])
            else:
                own = [record.parallel[language]] if language in record.parallel else []
            distinct = list(dict.fromkeys(text for text in own if text.strip()))
            texts += distinct
            images += [row] * len(distinct)
            given += len(own)
        if not texts:
            raise ValueError(f"all {given} texts in language {language} are blank; present: {', '.join(present)}")
        found[language] = LanguageTexts(sources[language], texts, images, given - len(texts))
        if given > len(texts):
            logger.info("retrieval: %s, %d blank or repeated texts left out", language, given - len(texts))
    return found


def reranked(
    found: tuple[Found, Found], relevance: Relevance, score: ScorePairs, weight: float = 0.0
) -> tuple[Found, Found]:
    """A search of texts in images (`metrics.search`) whose k best stand in the order of score + weight * similarity.

    `relevance`: of the texts. `score`: pairs (P, 2) of (image row, text row), all different -> (P,). A pair that is a
    candidate in both directions is scored once.
    """
    texts, asking = len(relevance), torch.unique(relevance.items)
    codes = [  # image row * T + text row
        found[0].rows * texts + torch.arange(texts)[:, None],  # (T, k)
        asking[:, None] * texts + found[1].rows,  # (Q, k)
    ]
    wanted = torch.unique(torch.cat([code.flatten() for code in codes]))
    scores = score(torch.stack([wanted // texts, wanted % texts], dim=1))
    ways = []
    for one, code, own in zip(found, codes, (relevance, relevance.turned()), strict=True):
        matches = scores[torch.searchsorted(wanted, code)] + weight * one.scores
        ranks = metrics.rerank(one.ranks, own, (one.scores, one.rows), matches)
        matches, order = matches.sort(dim=1, descending=True, stable=True)
        ways.append(Found(ranks, matches, one.rows.gather(1, order)))
    return ways[0], ways[1]


def _matcher(model: Matcher, images: EncodedImages, texts: EncodedTexts, options: RetrievalOptions) -> ScorePairs:
    def score(pairs: Tensor) -> Tensor:
        return match_scores(model, images, texts, pairs, options.encoding, options.rerank_score)

    return score
