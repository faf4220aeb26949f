"""Captions of the pictures of shards: tests made of records, captions as a model writes them or as the nearest training
picture has them, scored by language.

Two kinds of reference: all `captions` of a language, or the one `parallel` sentence, which says the same in every
language, so that a language's number compares with another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cclm.errors import SampleError
from cclm.evaluation import metrics, predictions
from cclm.evaluation.captioning import score_captions
from cclm.evaluation.embedder import Images, System, texts_given
from cclm.evaluation.items import Described, Descriptions
from cclm.evaluation.language_fidelity import Identifier
from cclm.evaluation.protocol import CaptioningProtocol
from cclm.evaluation.scoring import Scored, ScoreOptions
from cclm.images import open_image
from cclm.models.encoding import batches
from cclm.types import Record

CHUNK = 128  # pictures between two times that captions are kept
ENGLISH = "en"
PROTOCOLS = {
    "captions": CaptioningProtocol(name="captions", about="against all captions of the language"),
    "parallel": CaptioningProtocol(name="parallel", about="against the one sentence that is the same in all languages"),
}

Texts: TypeAlias = dict[str, Sequence[str]]  # language -> texts
Tests: TypeAlias = dict[str, dict[str, Descriptions]]  # kind of reference -> language -> test
Captions: TypeAlias = Mapping[str, Mapping[str, str]]  # language -> id -> caption


def _texts(record: Record) -> dict[str, Texts]:
    """Kind of reference -> what the record has of it."""
    return {"captions": dict(record.captions), "parallel": {code: [text] for code, text in record.parallel.items()}}


def tests_of(records: Iterable[Record], languages: Sequence[str], kinds: Sequence[str]) -> Tests:
    """What there is of each kind of reference in each language. Pictures without one are no part of that test.

    Errors: ValueError for a language without any, a key that repeats, or records without pictures.
    """
    found: dict[str, dict[str, list[Described]]] = {kind: {} for kind in kinds}
    keys: set[str] = set()
    named: set[str] = set()  # languages of references, asked for or not
    for record in records:
        if record.image is None or record.others:
            raise ValueError(
                f"record {record.key} has not one image; captions are of single pictures: give such shards"
            )
        if record.key in keys:
            raise ValueError(f"record {record.key} is there twice; build the data again")
        keys.add(record.key)
        texts = _texts(record)
        named.update(*(texts[kind] for kind in kinds))
        for kind in kinds:
            for language in languages:
                if own := tuple(filter(str.strip, texts[kind].get(language, ()))):
                    found[kind].setdefault(language, []).append(Described(record.key, record.key, own))
    if bare := [language for language in languages if not any(language in own for own in found.values())]:
        there = sorted(named)
        raise ValueError(
            f"no {' or '.join(kinds)} in {', '.join(bare)}; there are some in {', '.join(there)}: ask for those"
        )
    return {
        kind: {language: _test(kind, language, own[language]) for language in languages if language in own}
        for kind, own in found.items()
    }


def _test(kind: str, language: str, items: list[Described]) -> Descriptions:
    return Descriptions(task="captions", language=language, protocol=PROTOCOLS[kind], split="", described=tuple(items))


def wanted(tests: Tests) -> dict[str, dict[str, None]]:
    """Language -> ids of the pictures that need a caption in it, each once."""
    found: dict[str, dict[str, None]] = {}
    for own in tests.values():
        for language, test in own.items():
            found.setdefault(language, {}).update(dict.fromkeys(test.ids))
    return found


# -- captions that a model writes ------------------------------------------------------------------------------------


@dataclass
class Kept:
    """Captions by language and id, in a file of JSON lines {language, id, caption, source}. `source`: what made them;
    those of another are not read.
    """

    path: Path
    source: str
    captions: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, source: str) -> Self:
        """With what the file holds of the source. Errors: ValueError for a file that is none of these."""
        own = cls(path, source)
        for row in predictions.read(path) if path.is_file() else ():
            if row.get("source") == source:
                own.captions.setdefault(row["language"], {})[row["id"]] = row["caption"]
        return own

    def save(self) -> None:
        rows = ({"language": language, "id": name} for language, own in self.captions.items() for name in own)
        predictions.write(
            (row | {"caption": self.captions[row["language"]][row["id"]], "source": self.source} for row in rows),
            self.path,
        )


def write_captions(
    system: System, records: Iterable[Record], tests: Tests, kept: Kept, told: Callable[[int], object] = lambda _: None
) -> None:
    """What `kept` lacks, picture after picture in all languages, kept every some pictures. `told`: of each some.

    Errors: ValueError for a picture that is damaged: without it the test would be another.
    """
    lacking = {
        language: {name for name in names if name not in kept.captions.get(language, {})}
        for language, names in wanted(tests).items()
    }
    for some in batches(_among(records, set().union(*lacking.values())), CHUNK):
        images = {record.key: _opened(record, system.image_size) for record in some}
        for language, names in lacking.items():
            keys = [key for key in images if key in names]
            if keys:
                given = system.captioner.describe([images[key] for key in keys], language)  # type: ignore[union-attr]
                texts = texts_given(system, given, len(keys), "describe")
                kept.captions.setdefault(language, {}).update(zip(keys, texts, strict=True))
                told(len(keys))
        kept.save()


def _among(records: Iterable[Record], keys: set[str]) -> Iterator[Record]:
    return (record for record in records if record.key in keys)


def _opened(record: Record, size: int | None) -> Any:
    try:
        return open_image(record.image or b"", size)
    except SampleError as error:
        raise ValueError(f"record {record.key}: {error}; repair or remove it, then build the data again") from error


# -- captions of the nearest training picture ------------------------------------------------------------------------


def nearest_captions(
    embed: Callable[[Images], Tensor],
    size: int | None,
    training: Iterable[Record],
    records: Iterable[Record],
    tests: Tests,
) -> dict[str, dict[str, dict[str, str]]]:
    """For each kind of reference and picture of its tests, the first such text in the language of the training picture
    that is nearest: kind -> language -> id -> text.

    `embed`: images -> (N, E) of unit norm. Languages in which no training picture has one are left out. Errors:
    ValueError for a training picture that is one of the test's, and for damaged ones.
    """
    keys, queries, _ = _embedded(embed, size, _among(records, set().union(*wanted(tests).values())))
    known, gallery, texts = _embedded(embed, size, training)
    if both := set(keys) & set(known):
        raise ValueError(
            f"{len(both):,} pictures are of the test and of --nearest, first {min(both)}; give training data"
        )
    place = {key: row for row, key in enumerate(keys)}
    found: dict[str, dict[str, dict[str, str]]] = {kind: {} for kind in tests}
    for kind, own in tests.items():
        for language, test in own.items():
            rows = [row for row, each in enumerate(texts) if each[kind].get(language)]
            if rows:
                _, best = metrics.top(queries[[place[name] for name in test.ids]], gallery[rows], 1)
                near = [texts[rows[row]][kind][language][0] for row in best[:, 0].tolist()]
                found[kind][language] = dict(zip(test.ids, near, strict=True))
    return found


def _embedded(
    embed: Callable[[Images], Tensor], size: int | None, records: Iterable[Record]
) -> tuple[list[str], Tensor, list[dict[str, Texts]]]:
    keys, parts, texts = [], [], []
    for some in batches(records, CHUNK):
        parts.append(embed([_opened(record, size) for record in some]).float())
        keys += [record.key for record in some]
        texts += [_texts(record) for record in some]
    return keys, torch.cat(parts), texts


# -- scores ----------------------------------------------------------------------------------------------------------


def score_all(
    tests: Tests, captions: Mapping[str, Captions], options: ScoreOptions, identifier: Identifier | None = None
) -> dict[str, dict[str, Scored]]:
    """Language -> kind of reference -> scores; with `of_en`: CIDEr in percent of English CIDEr on the same pictures.

    `captions`: for each kind of reference. Errors: ValueError where some lack.
    """
    found: dict[str, dict[str, Scored]] = {}
    for language, kind in product(dict.fromkeys(code for own in captions.values() for code in own), tests):
        own = captions.get(kind, {}).get(language)
        if own is not None and (test := tests[kind].get(language)):
            given = {name: own[name] for name in test.ids if name in own}
            found.setdefault(language, {})[kind] = score_captions(test, given, options, identifier)
    for language, kinds in found.items():
        for kind, scored in kinds.items():
            english = found.get(ENGLISH, {}).get(kind)
            if english is not None and language != ENGLISH:
                scores = scored.result.scores | _share(scored, english, options)
                kinds[kind] = replace(scored, result=replace(scored.result, scores=scores))
    return found


def _share(scored: Scored, english: Scored, options: ScoreOptions) -> dict[str, Any]:
    theirs = {item["id"]: item["CIDEr"] for item in english.items}
    values = np.array([(item["CIDEr"], theirs[item["id"]], 1) for item in scored.items if item["id"] in theirs])
    if not len(values) or not values[:, 1].any():
        return {}
    found: dict[str, Any] = {"of_en": 100 * float(values[:, 0].mean() / values[:, 1].mean())}
    if options.draws:
        generator = np.random.default_rng(options.seed)
        own, others = metrics.resampled_means(values, np.arange(len(values)), options.draws, generator).T
        drawn = own[others > 0] / others[others > 0]
        found["of_en_interval"] = [100 * float(bound) for bound in np.percentile(drawn, [2.5, 97.5])]
    return found
