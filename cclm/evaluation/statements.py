"""Statements and questions about images, per language: which label or answer does the model give? Accuracy.

Covers XVNLI (three labels), NLVR2 and MaRVL (two images for a text) and xGQA (a closed list, classified or spelt).
Shapes: B records, S statements.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from cclm.evaluation.answering import FIRST_TOKEN, RankOptions, Speller, rank_answers
from cclm.evaluation.encoding import ImageViews
from cclm.evaluation.metrics import share_interval
from cclm.evaluation.report import Provenance, Report
from cclm.models.encoding import EncodingOptions, Processor, batches, inference
from cclm.types import Memory, Record, TextInput, View

logger = logging.getLogger(__name__)

WAY = "statements"  # the one direction of these reports
HEADS = {
    "classify": "the classifier's best label",
    "answer": "the label that the answer decoder spells best",
}


class Judge(Speller, Protocol):
    """A model that classifies, or spells answers."""

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> View: ...

    def check_images(self, count: int) -> None: ...

    def readings(self, context: View) -> list[Memory]: ...

    def class_logits(self, target: View, readings: list[Memory]) -> Tensor: ...

    def project(self, context: View) -> Memory: ...

    def fuse(self, target: View, context: Memory) -> Tensor: ...

    def project_question(self, fused: Tensor, target: View) -> Memory: ...


@dataclass(frozen=True)
class StatementOptions:
    """What is measured. `languages`: None for all found. `labels`: those that the model chooses among, in the order of
    its logits. `draws`: bootstrap draws, 0 for none.
    """

    head: Literal["classify", "answer"]
    labels: tuple[str, ...]
    languages: tuple[str, ...] | None = None
    rank: RankOptions = field(default_factory=RankOptions)
    draws: int = 1000
    seed: int = 0
    encoding: EncodingOptions = field(default_factory=EncodingOptions)

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f"head is {self.head!r}; choose {' or '.join(HEADS)}")
        if not self.labels:
            raise ValueError("there are no labels to choose among; give those of the model, one a line or as JSON")


@dataclass(frozen=True)
class _Asked:
    """One statement in one language: which record it is about, its text, the label wanted and the one given."""

    record: int
    text: str
    wanted: frozenset[str]
    given: str

    @property
    def right(self) -> bool:
        return self.given in self.wanted


def evaluate_statements(
    model: Judge,
    processor: Processor,
    records: Iterable[Record],
    views: ImageViews,
    provenance: Provenance,
    options: StatementOptions,
) -> Report:
    """Accuracy on the statements of `records`, each image encoded once for all its statements and languages.

    Errors: ValueError where no record holds a statement, or none in a wanted language.
    """
    labeller = Labeller(model, processor, options)
    asked: dict[str, list[_Asked]] = defaultdict(list)
    done = 0
    for batch in batches(records, options.encoding.image_batch):
        for count in {1 + len(record.others) for record in batch}:
            model.check_images(count)
        with inference(model, options.encoding):
            contexts = labeller.contexts(views(batch))
        for language, items in _by_language(batch, done, options.languages).items():
            texts = [text for _, text, _ in items]
            rows = torch.tensor([record - done for record, _, _ in items])
            given = labeller.labels(texts, rows, contexts)
            asked[language] += [
                _Asked(record, text, wanted, label) for (record, text, wanted), label in zip(items, given, strict=True)
            ]
        done += len(batch)
    if missing := [language for language in options.languages or () if language not in asked]:
        raise ValueError(f"no statement in language {', '.join(missing)}; present: {', '.join(sorted(asked))}")
    if not asked:
        raise ValueError(f"none of {done} records holds a statement; build the data with a recipe that gives some")
    if not any(item.wanted & set(options.labels) for items in asked.values() for item in items):
        first = next(iter(next(iter(asked.values()))[0].wanted))
        raise ValueError(f"no statement has a label of the model's, such as {options.labels[0]!r}; one has {first!r}")
    ordered = sorted(asked, key=lambda language: (language != "en", language))
    languages = {language: {WAY: _scores(asked[language], options)} for language in ordered}
    described = {
        language: {"unknown_labels": sum(not item.wanted & set(options.labels) for item in asked[language])}
        for language in ordered
    }
    return Report(languages, described, _protocol(options), provenance)


def _by_language(
    records: tuple[Record, ...], first: int, wanted: tuple[str, ...] | None
) -> dict[str, list[tuple[int, str, frozenset[str]]]]:
    """(number of the record, text, best labels) of every statement, by language."""
    found = defaultdict(list)
    for number, record in enumerate(records, first):
        for statement in record.statements:
            most = max(statement.labels.values())
            best = frozenset(label for label, weight in statement.labels.items() if weight == most)
            for language, text in statement.texts.items():
                if wanted is None or language in wanted:
                    found[language].append((number, text, best))
    return found


class Labeller:
    """Gives texts about images one of `options.labels`, in batches on the model's device."""

    def __init__(self, model: Judge, processor: Processor, options: StatementOptions) -> None:
        self.model, self.processor, self.options = model, processor, options
        self.spelt: TextInput | None = None  # the labels, for a head that spells; not cleaned, as in the original
        if options.head == "answer":
            device = next(model.parameters()).device
            self.spelt = processor.texts(list(options.labels), clean=False).to(device)

    def contexts(self, view: View) -> list[Memory]:
        """What the head's fusions read of encoded images."""
        return self.model.readings(view) if self.spelt is None else [self.model.project(view)]

    def labels(self, texts: list[str], rows: Tensor, contexts: list[Memory]) -> list[str]:
        """The label of each text about the image in its row (T,) of `contexts`, in their order."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # so that little is padding
        given = [""] * len(texts)
        for chunk in _chunks(order, self.options.encoding.pair_batch):
            with inference(self.model, self.options.encoding) as device:
                best = self._best([texts[index] for index in chunk], rows[chunk].to(device), contexts)
            for index, row in zip(chunk, best.tolist(), strict=True):
                given[index] = self.options.labels[row]
        return given

    def _best(self, texts: list[str], rows: Tensor, contexts: list[Memory]) -> Tensor:
        tokens = self.processor.texts(texts, self.options.encoding.max_tokens).to(rows.device)
        target = self.model.encode_text(tokens.input_ids, tokens.attention_mask)
        read = [memory.select(rows) for memory in contexts]
        if self.spelt is None:
            return self.model.class_logits(target, read).argmax(1)
        question = self.model.project_question(self.model.fuse(target, read[0]), target)
        return rank_answers(self.model, self.spelt, question, self.options.rank)[0][:, 0]


def _chunks(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _scores(asked: list[_Asked], options: StatementOptions) -> dict[str, object]:
    right = np.array([item.right for item in asked])
    scores: dict[str, object] = {"accuracy": 100 * float(right.mean())}
    if options.draws:
        groups = np.array([item.record for item in asked])
        generator = np.random.default_rng(options.seed)
        scores["accuracy_interval"] = share_interval(right, groups, options.draws, generator)
    sentences: dict[str, list[bool]] = defaultdict(list)
    for item in asked:
        sentences[item.text].append(item.right)
    scores["consistency"] = 100 * float(np.mean([all(answers) for answers in sentences.values()]))
    commonest = Counter(label for item in asked for label in item.wanted).most_common(1)[0][1]
    return scores | {
        "statements": len(asked),
        "sentences": len(sentences),
        "images": len({item.record for item in asked}),
        "chance": {"accuracy": 100 * commonest / len(asked)},
    }


def _protocol(options: StatementOptions) -> dict[str, str]:
    rules = {
        "task": f"statements about images: {HEADS[options.head]} among {len(options.labels)}, right where it is the "
        "statement's own (of several, one of greatest weight)",
        "consistency": "share of distinct sentences of which every pair is right",
        "chance": "accuracy of always giving the commonest label",
        "units": "accuracy, consistency and the interval in percent",
        "precision": options.encoding.precision,
    }
    if options.head == "answer":
        kept = min(options.rank.candidates, len(options.labels))
        rules["answers"] = f"the {kept} best by their first token, ordered by {FIRST_TOKEN[options.rank.first_token]}"
    if options.draws:
        rules["interval"] = f"95 % bootstrap over records, {options.draws} draws, seed {options.seed}"
    return rules
