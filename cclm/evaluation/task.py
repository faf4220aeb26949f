"""What a task is: which files hold which split, how a row becomes an item, what a protocol makes of the items.

A task is one declarative file in `cclm/evaluation/tasks` with a `TASK` in it; `find` knows it by its name.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from cclm.data.annotations import json_lines, json_rows
from cclm.data.build import nearest
from cclm.data.records import parse_json
from cclm.errors import SampleError
from cclm.evaluation.items import Caption, Captions, Item, Question, Questions, TestSet
from cclm.evaluation.protocol import ClassificationProtocol, Protocol, RetrievalProtocol

TASKS = "cclm.evaluation.tasks"
P = TypeVar("P", bound=Protocol)
T = TypeVar("T", bound=Item)
ReadRow: TypeAlias = Callable[[str, dict[str, Any]], Item | Iterable[Item]]  # place in the file, row


@dataclass(frozen=True)
class DataFolder:
    """The folder that the benchmarks' files lie in: the bundle's own, or IGLUE's `datasets`."""

    root: Path
    _INSIDE: ClassVar[tuple[str, ...]] = ("", "iglue", "datasets")

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ValueError(f"--data {self.root} is no folder; give the one that holds iglue/ or XVNLI/, xGQA/ ..")

    def find(self, name: str) -> Path | None:
        """The file of this name, where there is one."""
        places = (self.root / inside / name for inside in self._INSIDE)
        return next((place for place in places if place.is_file()), None)

    def path(self, name: str) -> Path:
        """Errors: ValueError naming the file that is missing."""
        found = self.find(name)
        if found is None:
            raise ValueError(f"{self.root} has no {name}; `cclm iglue check --data {self.root}` tells what is there")
        return found


class Source(ABC):
    """Where a split lies in one or several languages, and how it is read."""

    languages: tuple[str, ...]

    @abstractmethod
    def files(self, language: str) -> tuple[str, ...]:
        """The files that a language needs, below the data folder."""

    @abstractmethod
    def read(self, data: DataFolder, language: str) -> Iterator[Item]:
        """Items in the order of the files. Errors: ValueError naming file and row."""


@dataclass(frozen=True)
class Rows(Source):
    """One file of JSON lines, or one JSON list or object, per language: `path` holds {language}.

    `row` gets the row's place (its key, in a JSON object) and the row; what it refuses with a SampleError ends the
    reading, as a test set is whole or is none.
    """

    path: str
    row: ReadRow
    languages: tuple[str, ...]

    def files(self, language: str) -> tuple[str, ...]:
        return (self.path.format(language=language),)

    def read(self, data: DataFolder, language: str) -> Iterator[Item]:
        path = data.path(self.files(language)[0])
        for place, given in (json_lines if path.suffix == ".jsonl" else json_rows)(path):
            try:
                row = parse_json(given) if isinstance(given, str) else given
                if not isinstance(row, dict):
                    raise SampleError("no JSON object")
                found = self.row(place, row)
            except SampleError as error:
                raise ValueError(f"{path}, {place}: {error.reason}; fetch the file again") from None
            if isinstance(found, Iterable):
                yield from found
            else:
                yield found


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
    the file is cut or of another version. `pictures`: whose, for the doctor.
    """

    name: str
    about: str
    languages: tuple[str, ...]
    splits: Mapping[str, Source]
    protocols: tuple[P, ...]
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # protocol -> language -> items
    shots: Shots | None = None
    pictures: str = ""

    def protocol(self, name: str | None = None) -> P:
        """By name, the first without one. Errors: ValueError with the names there are."""
        known = {protocol.name: protocol for protocol in self.protocols}
        if name is not None and name not in known:
            raise ValueError(f"task {self.name} has no protocol {name!r}; {nearest(name, list(known))}")
        return known[name] if name is not None else self.protocols[0]

    def source(self, split: str, language: str) -> Source:
        """Errors: ValueError for a split or a language that there is not."""
        if split not in self.splits:
            raise ValueError(f"task {self.name} has no split {split!r}; {nearest(split, list(self.splits))}")
        source = self.splits[split]
        if language not in source.languages:
            raise ValueError(
                f"task {self.name} has no {split} in language {language!r}; {nearest(language, list(source.languages))}"
            )
        return source

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
        """The items that the protocol scores. `whole`: refuse any other number of them than `counts` says.

        Errors: ValueError.
        """
        split = f"{protocol.split}_translated" if translated else protocol.split
        found = self.under(protocol, data, language, split)
        wanted = self.counts.get(protocol.name, {}).get(language)
        if whole and not translated and wanted not in (None, len(found)):
            raise ValueError(
                f"{self.name} in {language}: {len(found):,} items where protocol {protocol.name} has {wanted:,}; the "
                "file is cut or of another version: fetch it again, or score it as it is with --partial"
            )
        return found

    @abstractmethod
    def under(self, protocol: P, data: DataFolder, language: str, split: str) -> TestSet:
        """A split's items as the protocol scores them."""


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(Task[ClassificationProtocol, Question]):
    """`labels` to choose among, or `label_file`: a JSON list of them."""

    labels: tuple[str, ...] = ()
    label_file: str = ""

    def known_labels(self, data: DataFolder) -> tuple[str, ...]:
        from cclm.models.labels import read_labels

        return self.labels or tuple(read_labels(data.path(self.label_file)))

    def under(self, protocol: ClassificationProtocol, data: DataFolder, language: str, split: str) -> Questions:
        questions = self.items(data, language, split)
        bare = sum(question.label is None for question in questions)
        notes: tuple[str, ...] = ()
        if bare and protocol.unlabelled == "wrong":
            notes = (f"rows without a label of the task: {bare}, count as wrong",)
        elif bare:
            questions = [question for question in questions if question.label is not None]
            notes = (f"rows without a label of the task: {bare}, left out",)
        return Questions(
            task=self.name,
            language=language,
            protocol=protocol,
            split=split,
            notes=notes,
            questions=tuple(questions),
            labels=self.known_labels(data),
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
            seen: Counter[str] = Counter()
            first = []
            for caption in captions:
                seen[caption.image] += 1
                if seen[caption.image] <= protocol.captions:
                    first.append(caption)
            captions = first
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
        spec.loader.exec_module(module)
    elif name in names():
        module = importlib.import_module(f"{TASKS}.{name}")
    else:
        raise ValueError(f"no task {name!r}; {nearest(name, names())}")
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise ValueError(f"{module.__file__} has no TASK that is a Task; see cclm/evaluation/tasks/xvnli.py")
    return task
