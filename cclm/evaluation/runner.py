"""Runs a model on test sets: pictures and texts in, answers or ranks out, scored.

Shapes: N images, T texts, E embedding, C classes, P (image, text) pairs.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cclm.evaluation.cells import RunFolder, key_of, pictures_hash, texts_hash
from cclm.evaluation.describing import describe
from cclm.evaluation.embedder import Asked, System, embeddings, texts_given
from cclm.evaluation.items import Captions, Descriptions, Pictures, Question, Questions, Sentences, TestSet
from cclm.evaluation.pairs import Rows, every_pair, two_stages
from cclm.evaluation.pictures import PictureFiles, lacking, opened, refuse, restricted, whole
from cclm.evaluation.protocol import TranslateTest, ZeroShot
from cclm.evaluation.result import Result
from cclm.evaluation.scoring import (
    Scored,
    ScoreOptions,
    score_answers,
    score_embeddings,
    score_sentences,
)
from cclm.evaluation.verbalising import labeller
from cclm.models.encoding import batches

logger = logging.getLogger(__name__)
Test = TypeVar("Test", bound=TestSet)


@dataclass(frozen=True)
class RunOptions:
    """How a model is run, and what the results say of where it comes from.

    `rerank`: candidates per query for the pair scorer, 0 for none; `rerank_similarity`: see RetrievalOptions.
    `partial`: leave out items whose pictures lack, rather than refuse. `templates`: of zero-shot classification, with
    {} for the name of a class. `regime`, `shots`: as in Result; `translator`: what translated the texts to English.
    `notes`: what every result says of the model's training; `training`: how that went, for its provenance.
    """

    rerank: int = 0
    rerank_similarity: float = 0.0
    partial: bool = False
    templates: tuple[str, ...] = ("{}",)
    image_batch: int = 64
    regime: str = ZeroShot.name
    shots: str = ""
    translator: str = ""
    notes: tuple[str, ...] = ()
    training: Mapping[str, object] = field(default_factory=dict)
    scoring: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        if self.rerank < 0 or self.rerank_similarity < 0:
            raise ValueError(f"rerank is {self.rerank}, beside {self.rerank_similarity}; give 0 or more candidates")
        if self.rerank_similarity and not self.rerank:
            raise ValueError("rerank_similarity is given without rerank; say how many candidates to rerank")
        if self.image_batch < 1:
            raise ValueError(f"image_batch is {self.image_batch}; it must be at least 1")
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise ValueError(
                f"templates are {list(self.templates)}; give some, each with one {{}} for the class's name"
            )

    def language(self, test: TestSet) -> str:
        """The one that its texts are in."""
        return "en" if self.regime == TranslateTest.name else test.language

    def regime_of(self, test: TestSet, system: System) -> str:
        """Zero-shot is only what the model's folder does not tell otherwise."""
        asked = self.regime == ZeroShot.name and system.met is not None
        return system.met.regime(test.language).name if asked else self.regime

    def settings(self, test: TestSet) -> dict[str, object]:
        """What of these changes a number of such a test, in the form of JSON."""
        others = {"partial", "image_batch", "training"}
        others |= {name for name, kind in _ONLY_OF.items() if not isinstance(test, kind)}
        return json.loads(json.dumps({name: value for name, value in asdict(self).items() if name not in others}))


_ONLY_OF = {"rerank": Captions, "rerank_similarity": Captions, "templates": Pictures}  # settings of a kind of test


def settings_of(system: System, test: TestSet, options: RunOptions) -> dict[str, object]:
    """All settings that a test's number depends on, and no others: what its cell is told by."""
    own: dict[str, object] = {}
    if isinstance(test, Captions) and (options.rerank or system.dual is None):
        own = system.pair_settings
    elif isinstance(test, Questions) and system.labels is None:
        own = system.label_settings | (asdict(test.wording) if test.wording else {})
    elif isinstance(test, Descriptions):
        own = system.caption_settings
    return system.settings | own | options.settings(test)


def check(system: System, tests: Sequence[TestSet], options: RunOptions) -> None:
    """Errors: ValueError where the model cannot do what a test asks for; nothing is run."""
    for test in tests:
        need, there = _NEEDS[type(test)](system, test)
        if there is None:
            raise ValueError(
                f"{system.name} is a {system.kind}: it {need}, as task {test.task} asks; choose another, or fine-tune "
                "a model of cclm with `cclm iglue run`"
            )
        if isinstance(test, Questions):
            if test.textless:
                raise ValueError(f"{test.task} in {test.language}: no texts are at hand, so no model can answer them")
            counts = {len(question.images) for question in test.questions}
            for count in counts:
                there.check_labels(test.labels, count)
        if isinstance(test, Descriptions):
            system.captioner.check_language(test.language)
        if isinstance(test, Captions) and options.rerank:
            _check_stages(system, options)


def _check_stages(system: System, options: RunOptions) -> None:
    who = f"{system.name} is a {system.kind}"
    if system.pairs is None:
        raise ValueError(f"{who}: it has no matching head to rerank by; leave rerank out")
    if system.dual is None:
        raise ValueError(f"{who}: it embeds nothing to rerank the best of; leave rerank out, and it scores every pair")
    if options.rerank_similarity and not hasattr(system.pairs, "similarity_scale"):
        raise ValueError(f"{who} without a similarity_scale; give it one, or leave rerank_similarity out")


_NEEDS: dict[type, Callable[[System, Any], tuple[str, Any]]] = {
    Questions: lambda system, test: ("gives no labels to texts about images", labeller(system, test)),
    Captions: lambda system, test: (
        "does not embed images and texts or score pairs of them",
        system.dual or system.pairs,
    ),
    Pictures: lambda system, test: ("does not embed images and texts", system.dual),
    Sentences: lambda system, test: ("does not embed texts", system.texts),
    Descriptions: lambda system, test: ("writes no captions", system.captioner),
}


def present(tests: Sequence[Test], pictures: PictureFiles, partial: bool) -> list[Test]:
    """The tests with what pictures there are. Errors: ValueError where some lack and `partial` is not wanted."""
    names = list(dict.fromkeys(name for test in tests for name in test.images()))
    reasons = lacking(pictures, names)
    if tests:
        refuse(tests[0].task, reasons, names, partial)
    return [restricted(test, reasons) for test in tests]


def evaluate(system: System, test: TestSet, pictures: PictureFiles, options: RunOptions) -> Scored:
    """A model's scores on one test. Errors: ValueError."""
    return next(evaluate_all(system, [test], pictures, options))


def evaluate_all(
    system: System, tests: Sequence[TestSet], pictures: PictureFiles, options: RunOptions
) -> Iterator[Scored]:
    """Scores on the tests of one task in several languages, in their order; each picture is encoded once for all.

    Errors: ValueError as of `check`, for pictures that are not there, and for damaged ones.
    """
    check(system, tests, options)
    tests = present(tests, pictures, options.partial)
    for test, scored in zip(tests, _RUNS[type(tests[0])](system, tests, pictures, options), strict=True):
        yield replace(scored, result=_described(scored.result, test, system, pictures, options))


def cached(
    system: System, tests: Sequence[TestSet], pictures: PictureFiles, options: RunOptions, folder: RunFolder
) -> Iterator[Result]:
    """Like `evaluate_all`, but what the folder holds is not run again; what is run is written there at once."""
    check(system, tests, options)
    tests = present(tests, pictures, options.partial)
    keys = [
        key_of(
            system.sha256,
            test,
            pictures,
            options.regime_of(test, system),
            options.shots,
            settings_of(system, test, options),
        )
        for test in tests
    ]
    found = {key: folder.find(key) if system.known else None for key in keys}
    missing = {key: test for key, test in zip(keys, tests, strict=True) if found[key] is None}
    if missing:
        for key, scored in zip(missing, evaluate_all(system, list(missing.values()), pictures, options), strict=True):
            folder.write(key, scored)
            found[key] = scored.result
    for key in keys:
        result = found[key]
        assert result is not None
        if result.system != system.name:
            result = replace(result, system=system.name)
            folder.tell(key, result)
        folder.renew(key)
        yield result


def _described(result: Result, test: TestSet, system: System, pictures: PictureFiles, options: RunOptions) -> Result:
    drawn = [pictures.note] if pictures.note and test.images() else []
    notes = [*result.notes, *options.notes, *system.notes, *drawn]
    if isinstance(test, Questions) and system.labels is None and test.wording is not None:
        notes.append(f"the likeliest answer to: {test.wording.prompt!r}")
    if options.translator:
        notes.append(f"translated to English by {options.translator}")
    provenance = {
        "model": system.name,
        "kind": system.kind,
        "model_sha256": system.sha256,
        "texts_sha256": texts_hash(test),
        "pictures_sha256": pictures_hash(test, pictures),
        "settings": settings_of(system, test, options),
        "date": date.today().isoformat(),
    } | ({"training": dict(options.training)} if options.training else {})
    return replace(
        result,
        system=system.name,
        regime=options.regime_of(test, system),
        shots=options.shots,
        notes=tuple(dict.fromkeys(notes)),
        provenance=result.provenance | provenance,
    )


# -- questions -----------------------------------------------------------------------------------------------------


def _questions(
    system: System, tests: Sequence[Questions], pictures: PictureFiles, options: RunOptions
) -> Iterator[Scored]:
    about: dict[tuple[str, ...], list[tuple[int, Question]]] = defaultdict(list)
    for number, test in enumerate(tests):
        for question in test.questions:
            about[question.images].append((number, question))
    given: list[dict[str, str]] = [{} for _ in tests]
    labelling = labeller(system, tests[0])
    damaged: dict[str, str] = {}
    languages = [options.language(test) for test in tests]
    for done, names in enumerate(batches(about, options.image_batch)):
        logger.info("%s: images %d of %d", tests[0].task, done * options.image_batch, len(about))
        found = [(own, opened(pictures, own, system.image_size, damaged)) for own in names]
        there = [(own, images) for own, images in found if images is not None]
        items = [(row, number, question) for row, (own, _) in enumerate(there) for number, question in about[own]]
        asked = [Asked(row, question.text, languages[number]) for row, number, question in items]
        if asked:
            said = labelling.label([images for _, images in there], asked, tests[0].labels)
            labels = texts_given(system, said, len(asked), "label")
            for (_, number, question), label in zip(items, labels, strict=True):
                given[number][question.id] = label
    for test, answers in zip(whole(tests, damaged, options.partial), given, strict=True):
        yield score_answers(test, {name: answers[name] for name in test.ids}, options.scoring)


# -- embeddings ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """Pictures in one pass."""

    distinct: Tensor  # (D, E) float32; (0, 0) where nothing embeds
    places: dict[str, int]  # name -> row

    def of(self, names: Sequence[str]) -> Rows:
        return Rows(self.distinct, torch.tensor([self.places[name] for name in names]))


def _seen(
    system: System, tests: Sequence[Test], pictures: PictureFiles, options: RunOptions, hold: bool = False
) -> tuple[_Seen, list[Test]]:
    """Embed the pictures of all tests, equal files once; with `hold` the pair scorer takes them in too."""
    owners: dict[str, list[str]] = defaultdict(list)  # digest -> names
    for name in dict.fromkeys(name for test in tests for name in test.images()):
        owners[pictures.digest(name)].append(name)
    places: dict[str, int] = {}
    damaged: dict[str, str] = {}
    parts: list[Tensor] = []
    seen = 0
    for batch in batches(owners.values(), options.image_batch):
        logger.info("%s: %d of %d images seen", tests[0].task, len(places), len(owners))
        images: list[Image.Image] = []
        start = seen
        for names in batch:
            decoded = opened(pictures, names[:1], system.image_size, damaged)
            if decoded is None:
                damaged |= dict.fromkeys(names, damaged[names[0]])
            else:
                places |= dict.fromkeys(names, start + len(images))
                images += decoded
        if images:
            if system.dual is not None:
                given = system.dual.embed_images(images)
                parts.append(embeddings(system, given, len(images), "embed_images", parts[0] if parts else None))
            if hold:
                system.pairs.hold_images(images)
            seen += len(images)
    return _Seen(torch.cat(parts) if parts else torch.empty(0, 0), places), whole(tests, damaged, options.partial)


def _read(system: System, texts: Sequence[str], language: str, like: Tensor | None = None) -> Rows:
    """Embed texts, equal ones once. `like`: what they are to be compared with."""
    distinct = list(dict.fromkeys(texts))
    places = {text: row for row, text in enumerate(distinct)}
    found = embeddings(system, system.texts.embed_texts(distinct, language), len(distinct), "embed_texts", like)
    return Rows(found, torch.tensor([places[text] for text in texts]))


def _captions(
    system: System, tests: Sequence[Captions], pictures: PictureFiles, options: RunOptions
) -> Iterator[Scored]:
    hold = options.rerank > 0 or system.dual is None
    try:
        seen, tests = _seen(system, tests, pictures, options, hold)
        for test in tests:
            logger.info("%s in %s: %d captions", test.task, test.language, len(test))
            images = seen.of(test.gallery)
            if system.dual is None:
                yield every_pair(system, test, images, options)
                continue
            texts = _read(system, [caption.text for caption in test.captions], options.language(test), seen.distinct)
            if options.rerank:
                yield two_stages(system, test, images, texts, options)
            else:
                yield score_embeddings(test, images.embeddings, texts.embeddings, options.scoring)
    finally:
        if hold:
            system.pairs.forget_images()


def _sentences(
    system: System, tests: Sequence[Sentences], pictures: PictureFiles, options: RunOptions
) -> Iterator[Scored]:
    for test in tests:
        logger.info("%s in %s: %d sentences", test.task, test.language, len(test))
        texts = _read(system, [item.text for item in test.sentences], test.language)
        english = _read(system, [item.english for item in test.sentences], "en", texts.distinct)
        yield score_sentences(test, texts.embeddings, english.embeddings, options.scoring)


def _pictures(
    system: System, tests: Sequence[Pictures], pictures: PictureFiles, options: RunOptions
) -> Iterator[Scored]:
    """The class whose names, in all templates, are nearest on the mean."""
    seen, tests = _seen(system, tests, pictures, options)
    for test in tests:
        names = [(label, name) for label, own in test.names.items() for name in own]
        spelt = [template.replace("{}", name) for _, name in names for template in options.templates]
        texts = _read(system, spelt, options.language(test), seen.distinct).embeddings
        texts = texts.unflatten(0, (-1, len(options.templates))).sum(1)  # (names, E)
        classes = list(test.names)
        places = {label: row for row, label in enumerate(classes)}
        owners = torch.tensor([places[label] for label, _ in names])
        means = F.normalize(texts.new_zeros(len(classes), texts.shape[1]).index_add(0, owners, texts), dim=-1)  # (C, E)
        images = seen.of([item.image for item in test.pictures]).embeddings  # (N, E)
        best = (images @ means.T).argmax(1).tolist()
        answers = {item.id: classes[row] for item, row in zip(test.pictures, best, strict=True)}
        yield score_answers(test, answers, options.scoring)


_RUNS: dict[type, Callable[..., Iterator[Scored]]] = {
    Questions: _questions,
    Captions: _captions,
    Sentences: _sentences,
    Pictures: _pictures,
    Descriptions: describe,
}
