"""Captions that a model wrote of pictures: how much like people's are they, and are they in the language asked for?

CIDEr is pycocoevalcap's, BLEU-4 and chrF sacrebleu's; the words are ours (segmentation.py). All are in percent, CIDEr
as papers have it, 100 times what the package returns. An empty caption is scored like any other, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cclm.evaluation import metrics
from cclm.evaluation.items import Descriptions
from cclm.evaluation.language_fidelity import Identifier, Lingua, others
from cclm.evaluation.scoring import Scored, ScoreOptions, check_ids, result_of
from cclm.evaluation.segmentation import description, needed, words

METRICS = ("CIDEr", "BLEU-4", "chrF", "fidelity")


@dataclass(frozen=True)
class Overlap:
    """How much alike captions and references are. `interval`: bootstrap 95 %, None without draws. `signature`: of
    sacrebleu, by which others can repeat the number.
    """

    score: float
    interval: tuple[float, float] | None
    signature: str


def score_captions(
    test: Descriptions,
    captions: Mapping[str, str],
    options: ScoreOptions | None = None,
    identifier: Identifier | None = None,
) -> Scored:
    """CIDEr, BLEU-4, chrF and fidelity of captions by id of the image, with bootstrap intervals over images.

    `identifier`: what tells languages apart, lingua by default. Items are {"id", "images", "caption", "CIDEr" (as the
    package has it, up to 10), "language" (what it is written in), "faithful"}. Errors: ValueError for an id without a
    caption, or a caption of none; where a package lacks, or a language cannot be segmented.
    """
    options, identifier = options or ScoreOptions(), identifier or Lingua()
    check_ids(test.ids, captions, "images")
    written = [captions[name].strip() for name in test.ids]
    references = [list(item.references) for item in test.described]
    empty = sum(not caption for caption in written)
    notes = [f"references per image: {np.mean([len(own) for own in references]):.3g}"]
    if empty:
        notes.append(f"empty captions: {empty:,}")
    own_words = [" ".join(words(caption, test.language)) for caption in written]
    their_words = [[" ".join(words(text, test.language)) for text in own] for own in references]
    if not any(map(any, their_words)):
        raise ValueError(
            f"the references in {test.language} hold no word ({references[0][0]!r} ..); score captions against texts"
        )
    similar = cider(their_words, own_words)
    scores: dict[str, Any] = {"CIDEr": 100 * float(similar.mean())}
    if options.draws:
        scores["CIDEr_interval"] = _mean_interval(100 * similar, options)
    for name, found in (
        ("BLEU-4", bleu(their_words, own_words, options.draws)),
        ("chrF", chrf(references, written, options.draws)),
    ):
        scores[name] = found.score
        if found.interval is not None:
            scores[f"{name}_interval"] = list(found.interval)
        notes.append(f"{name}: {found.signature}")
    notes.append(f"words: {description(test.language)}")
    languages = identifier.identify(written)
    fidelity, said = _fidelity(languages, test, options, identifier)
    items = [
        {"id": item.id, "images": [item.image], "caption": caption, "CIDEr": float(value), "language": language}
        | {"faithful": language == test.language}
        for item, caption, value, language in zip(test.described, written, similar, languages, strict=True)
    ]
    return Scored(result_of(test, scores | fidelity | {"empty": empty}, (*notes, *said)), items)


def _fidelity(
    languages: Sequence[str | None], test: Descriptions, options: ScoreOptions, identifier: Identifier
) -> tuple[dict[str, Any], list[str]]:
    """The share of captions in the test's language; beside it the ceiling, that of the references."""
    if not identifier.knows(test.language):
        return {}, [f"fidelity: not measured, as {test.language} is not told apart ({identifier.about})"]
    right = np.array([language == test.language for language in languages])
    found: dict[str, Any] = {"fidelity": 100 * float(right.mean())}
    if options.draws:
        found["fidelity_interval"] = metrics.share_interval(
            right, np.arange(len(right)), options.draws, np.random.default_rng(options.seed)
        )
    theirs = identifier.identify([text for item in test.described for text in item.references])
    found["fidelity_ceiling"] = 100 * sum(language == test.language for language in theirs) / len(theirs)
    notes = [f"languages: {identifier.about}", f"fidelity of the references: {found['fidelity_ceiling']:.1f}"]
    if not right.all():
        told = others(languages, test.language)
        notes.append("captions in others: " + ", ".join(f"{count:,} {name}" for name, count in told.items()))
    return found, notes


def _mean_interval(values: np.ndarray, options: ScoreOptions) -> list[float]:
    """Bootstrap 95 % interval of the mean of values (N,) over images."""
    columns = np.stack([values, np.ones(len(values))], axis=1)
    generator = np.random.default_rng(options.seed)
    drawn = metrics.resampled_means(columns, np.arange(len(values)), options.draws, generator)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [float(low), float(high)]


def cider(references: Sequence[Sequence[str]], captions: Sequence[str]) -> np.ndarray:
    """CIDEr of each of N captions (N,) as pycocoevalcap computes it, from words joined by blanks.

    How rare words are is counted in these references: of one image alone every score is 0. Errors: ValueError without
    the package.
    """
    package = needed("pycocoevalcap.cider.cider", "pycocoevalcap", "CIDEr")
    theirs = {number: list(own) for number, own in enumerate(references)}
    _, each = package.Cider().compute_score(theirs, {number: [text] for number, text in enumerate(captions)})
    return np.asarray(each, dtype=np.float64)


def bleu(references: Sequence[Sequence[str]], captions: Sequence[str], draws: int) -> Overlap:
    """BLEU-4 of a corpus of words joined by blanks, which are not split further. Errors: ValueError."""
    package = needed("sacrebleu.metrics", "sacrebleu", "BLEU")
    return _overlap(package.BLEU(tokenize="none", lowercase=True, force=True), references, captions, draws)


def chrf(references: Sequence[Sequence[str]], captions: Sequence[str], draws: int) -> Overlap:
    """chrF2 of a corpus of texts as they stand but for their case; blanks do not count. Errors: ValueError."""
    package = needed("sacrebleu.metrics", "sacrebleu", "chrF")
    return _overlap(package.CHRF(lowercase=True), references, captions, draws)


def _overlap(metric: Any, references: Sequence[Sequence[str]], captions: Sequence[str], draws: int) -> Overlap:
    most = max(map(len, references))
    streams = [[own[place] if place < len(own) else None for own in references] for place in range(most)]
    found = metric.corpus_score(list(captions), streams, n_bootstrap=max(1, draws))
    interval = None
    if draws > 1:
        middle, half = float(found._mean), float(found._ci)  # it has no other name for them
        interval = (middle - half, middle + half)
    return Overlap(float(found.score), interval, str(metric.get_signature()))
