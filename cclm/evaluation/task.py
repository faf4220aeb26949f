"""What a task is: which files hold which split, how a row becomes an item, what a protocol makes of the items.

A task is one declarative file in `cclm/evaluation/tasks` with a `TASK` in it; `find` knows it by its name.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

from cclm.data.build import nearest
from cclm.errors import first_line
from cclm.evaluation.items import (
    Caption,
    Captions,
    Described,
    Descriptions,
    Item,
    Picture,
    Pictures,
    Question,
    Questions,
    Sentence,
    Sentences,
    TestSet,
    Wording,
)
from cclm.evaluation.protocol import CaptioningProtocol, ClassificationProtocol, Protocol, RetrievalProtocol
from cclm.evaluation.sources import DataFolder, Source

TASKS = "cclm.evaluation.tasks"
CURE = "the file is cut or of another version: fetch it again, or score it as it is with --partial"
P = TypeVar("P", bound=Protocol)
T = TypeVar("T", bound=Item)


@dataclass(frozen=True)
class Shots:
    """The few-shot training sets of a task: splits `train_<name>`. `examples`: name -> labelled examples, smallest
    first; the few-shot score is an area over these numbers. `languages`: those that have them.
    """

    examples: Mapping[str, int]
    languages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Task(ABC, Generic[P, T]):
    """`languages`: of the test, English first where it has it. `splits`: "test", "dev", "train", "train_<shots>", each
    also as "<split>_translated", which is another language's split in English (test) or the English one in another
    language (dev). `counts`: items that the test of a protocol must have, by language; another number is refused, as
    the file is cut or of another version; "<protocol>_translated" where its translations have others. `images`:
    likewise, the different images of a test. `sizes`: items of other splits, the same in every language. `pictures`,
    `origin`: whose, and where files come from, for the doctor.
    """

    name: str
    about: str
    languages: tuple[str, ...]
    splits: Mapping[str, Source]
    protocols: tuple[P, ...]
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # protocol -> language -> items
    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)  # split -> items
    shots: Shots | None = None
    pictures: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        if not self.protocols:
            raise ValueError(f"task {self.name} has no protocol; give it one, as ..Protocol(name='official', about=..)")
        for protocol in self.protocols:
            if protocol.split not in self.splits:
                raise ValueError(
                    f"task {self.name}: protocol {protocol.name} scores split {protocol.split!r}, which has no source; "
                    f"{nearest(protocol.split, list(self.splits))}"
                )

    def protocol(self, name: str | None = None) -> P:
        """By name, the first without one. Errors: ValueError with the names there are."""
        known = {protocol.name: protocol for protocol in self.protocols}
        if name is not None and name not in known:
            raise ValueError(f"task {self.name} has no protocol {name!r}; {nearest(name, list(known))}")
        return known[name] if name is not None else self.protocols[0]

    def tested(self, protocol: P) -> tuple[str, ...]:
        """Languages that the protocol's split is there in."""
        return tuple(self.splits[protocol.split].languages)

    def averaged(self, protocol: P, few_shot: bool = False) -> tuple[str, ...]:
        """Languages that count in the task's average: without English unless the protocol says otherwise.

        `few_shot`: only those with few-shot sets, as every point of a curve must be of the same languages.
        """
        languages = [name for name in self.tested(protocol) if name != "en" or protocol.average_english]
        if few_shot:
            languages = [name for name in languages if self.shots is not None and name in self.shots.languages]
        return tuple(languages)

    def expected(self, protocol: P, language: str, translated: bool = False) -> int | None:
        """Items that the test must have; None where nobody says."""
        return _declared(self.counts, protocol, language, translated)

    def miscounted(self, found: TestSet, translated: bool = False) -> tuple[str, int, int] | None:
        """What a test has another number of than it must, its number and that: ("images", 791, 792); None for none."""
        for kind, declared, number in (
            ("items", self.counts, len(found)),
            ("images", self.images, len(found.images())),
        ):
            wanted = _declared(declared, found.protocol, found.language, translated)
            if wanted not in (None, number):
                return kind, number, wanted
        return None

    def source(self, split: str, language: str) -> Source:
        """Errors: ValueError for a split or a language that there is not."""
        if split not in self.splits:
            raise ValueError(f"task {self.name} has no split {split!r}; {nearest(split, list(self.splits))}")
        found = self.splits[split]
        if language not in found.languages:
            raise ValueError(
                f"task {self.name} has no {split} in language {language!r}; {nearest(language, list(found.languages))}"
            )
        return found

    def items(self, data: DataFolder, language: str, split: str) -> list[T]:
        """All items of a split, as they stand in the files. Errors: ValueError, also for none, or ids that repeat."""
        items = list(self.source(split, language).read(data, language))
        if not items:
            raise ValueError(f"{self.name} {split} in {language} holds no item; fetch it again")
        repeated = [(name, count) for name, count in Counter(item.id for item in items).items() if count > 1]
        if repeated:
            name, count = repeated[0]
            raise ValueError(
                f"{self.name} {split} in {language}: {len(repeated)} ids stand there more than once, first {name!r} "
                f"({count} times); fetch the file again"
            )
        return items  # type: ignore[return-value]  # a task's sources give its own kind of item

    def test_set(
        self, data: DataFolder, language: str, protocol: P, translated: bool = False, whole: bool = True
    ) -> TestSet:
        """The items that the protocol scores. `whole`: refuse any other number of them, or of their images, than the
        task declares; without it, a note tells.

        Errors: ValueError.
        """
        split = f"{protocol.split}_translated" if translated else protocol.split
        found = self.under(protocol, data, language, split)
        wrong = self.miscounted(found, translated)
        if wrong is None:
            return found
        kind, number, wanted = wrong
        if whole:
            raise ValueError(
                f"{self.name} in {language}: {number:,} {kind} where protocol {protocol.name} has {wanted:,}; {CURE}"
            )
        return replace(found, notes=(*found.notes, f"partial: {number:,} {kind} where there should be {wanted:,}"))

    @abstractmethod
    def under(self, protocol: P, data: DataFolder, language: str, split: str) -> TestSet:
        """A split's items as the protocol scores them."""


def _declared(
    numbers: Mapping[str, Mapping[str, int]], protocol: Protocol, language: str, translated: bool
) -> int | None:
    own = numbers.get(protocol.name, {}).get(language)
    return numbers.get(f"{protocol.name}_translated", {}).get(language, own) if translated else own


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(Task[ClassificationProtocol, Question]):
    """`labels` to choose among, or `label_file`: a JSON list of them. `rest`: a split whose other ids a file of
    predictions may hold too. `wording`: how language models are asked. `unlisted`: answers of the test that are known
    to be none of the labels, beside which another one is refused; None where any may be.
    """

    labels: tuple[str, ...] = ()
    label_file: str = ""
    rest: str = ""
    wording: Wording | None = None
    unlisted: tuple[str, ...] | None = None

    def known_labels(self, data: DataFolder) -> tuple[str, ...]:
        from cclm.models.labels import read_labels

        return self.labels or tuple(read_labels(data.path(self.label_file)))

    def under(self, protocol: ClassificationProtocol, data: DataFolder, language: str, split: str) -> Questions:
        questions = self.items(data, language, split)
        labels = self.known_labels(data)
        notes, spared = [], set()
        if bare := {question.id for question in questions if question.label is None}:
            if protocol.unlabelled == "wrong":
                notes.append(f"rows without a label of the task: {len(bare)}, count as wrong")
            else:
                questions = [question for question in questions if question.label is not None]
                notes.append(f"rows without a label of the task: {len(bare)}, left out")
                spared |= bare
        known = {None, *labels}
        if outside := [question for question in questions if question.label not in known]:
            if split.removesuffix("_translated") == protocol.split:
                self._check_unlisted(outside, split, language)
            notes.append(f"rows whose answer is none of the {len(labels):,} to choose among: {len(outside)}, kept")
        if protocol.match == "contains":
            notes.append("an answer is right where it contains the label")
        if self.rest and split != self.rest:
            spared |= {question.id for question in self.items(data, language, self.rest)}
        found = Questions(
            task=self.name,
            language=language,
            protocol=protocol,
            split=split,
            notes=tuple(notes),
            questions=tuple(questions),
            labels=labels,
            wording=self.wording,
            spared=frozenset(spared - {question.id for question in questions}),
        )
        if found.textless:
            return replace(found, notes=(*notes, "no texts at hand: predictions can be scored, not made"))
        return found

    def _check_unlisted(self, outside: list[Question], split: str, language: str) -> None:
        for question in outside:
            if self.unlisted is not None and question.label not in self.unlisted:
                file = self.splits[split].files(language)[0]
                raise ValueError(
                    f"{self.name} in {language}: the answer of {question.id} is {question.label!r}, which is no label "
                    f"of the task; fetch {file} again"
                )


@dataclass(frozen=True, kw_only=True)
class RetrievalTask(Task[RetrievalProtocol, Caption]):
    """Captions and the images they are about."""

    def under(self, protocol: RetrievalProtocol, data: DataFolder, language: str, split: str) -> Captions:
        captions = self.items(data, language, split)
        gallery = list(dict.fromkeys(caption.image for caption in captions))
        notes = []
        if protocol.gallery is not None:
            gallery = gallery[: protocol.gallery]
            kept = frozenset(gallery)
            captions = [caption for caption in captions if caption.image in kept]
        if protocol.captions is not None:
            captions = first_of_each(captions, protocol.captions)
        if blank := sum(not caption.text.strip() for caption in captions):
            if protocol.blank == "kept":
                notes.append(f"captions without text: {blank}, kept")
            else:
                captions = [caption for caption in captions if caption.text.strip()]
                named = frozenset(caption.image for caption in captions)
                gallery = [image for image in gallery if image in named]
                notes.append(f"captions without text: {blank}, left out")
        each = len(captions) / len(gallery)
        notes.append(f"captions per image: {each:.3g}")
        return Captions(
            task=self.name,
            language=language,
            protocol=protocol,
            split=split,
            notes=tuple(notes),
            captions=tuple(captions),
            gallery=tuple(gallery),
        )


def first_of_each(captions: list[Caption], count: int) -> list[Caption]:
    """The first so many captions of every image, in their order."""
    seen: Counter[str] = Counter()
    kept = []
    for caption in captions:
        seen[caption.image] += 1
        if seen[caption.image] <= count:
            kept.append(caption)
    return kept


@dataclass(frozen=True, kw_only=True)
class SentenceTask(Task[Protocol, Sentence]):
    """Sentences and their English translations, which find each other."""

    def under(self, protocol: Protocol, data: DataFolder, language: str, split: str) -> Sentences:
        sentences = tuple(self.items(data, language, split))
        notes = (f"pairs: {len(sentences):,}; the English sentences differ from language to language",)
        return Sentences(
            task=self.name, language=language, protocol=protocol, split=split, notes=notes, sentences=sentences
        )


@dataclass(frozen=True, kw_only=True)
class PictureTask(Task[Protocol, Picture]):
    """Pictures of classes. `names`: reads the names of the classes in a language; those without one are left out."""

    names: Callable[[DataFolder, str], dict[str, tuple[str, ...]]]

    def under(self, protocol: Protocol, data: DataFolder, language: str, split: str) -> Pictures:
        names, every = self.names(data, language), self.items(data, language, split)
        pictures = tuple(picture for picture in every if picture.label in names)
        if bare := set(names) - {picture.label for picture in pictures}:
            raise ValueError(
                f"{self.name}: no picture of {len(bare):,} of the {len(names):,} classes named in {language}"
            )
        notes = (
            f"classes named in {language}: {len(names):,}, {len(every) - len(pictures):,} pictures of others left out",
        )
        return Pictures(
            task=self.name,
            language=language,
            protocol=protocol,
            split=split,
            notes=notes,
            pictures=pictures,
            names=names,
        )


@dataclass(frozen=True, kw_only=True)
class CaptioningTask(Task[CaptioningProtocol, Described]):
    """Images to be described, and what people wrote of them. Blank references say nothing, and are left out."""

    def under(self, protocol: CaptioningProtocol, data: DataFolder, language: str, split: str) -> Descriptions:
        items, notes = self.items(data, language, split), []
        if blank := sum(not text.strip() for item in items for text in item.references):
            items = [replace(item, references=tuple(filter(str.strip, item.references))) for item in items]
            notes.append(f"references without text: {blank}, left out")
        if bare := sum(not item.references for item in items):
            items = [item for item in items if item.references]
            notes.append(f"images without a reference: {bare}, left out")
        described = tuple(replace(item, references=item.references[: protocol.references]) for item in items)
        return Descriptions(
            task=self.name, language=language, protocol=protocol, split=split, notes=tuple(notes), described=described
        )


def names() -> list[str]:
    """Names of all tasks."""
    return sorted(found.name for found in pkgutil.iter_modules(importlib.import_module(TASKS).__path__))


def find(name: str) -> Task:
    """The `TASK` of cclm/evaluation/tasks/<name>.py, or of a file of your own given by path, which is then run.

    Errors: ValueError with the nearest name, or for a file without a TASK.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"there is no task file {name}; check the path")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a user's file raises, they are told which file it is
            raise ValueError(f"task file {name} does not run ({type(error).__name__}: {first_line(error)})") from error
    elif name in names():
        module = importlib.import_module(f"{TASKS}.{name}")
    else:
        raise ValueError(f"no task {name!r}; {nearest(name, names())}")
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise ValueError(f"{module.__file__} has no TASK that is a Task; see README, Adding to it")
    return task
