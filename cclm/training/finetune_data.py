"""What a model is fine-tuned on and chosen by: a split of a benchmark task, written as shards once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock

from cclm.data.image_ids import key_of
from cclm.data.shards import MANIFEST, write_shards
from cclm.errors import SampleError
from cclm.evaluation.cells import pictures_hash, texts_hash
from cclm.evaluation.items import Caption, Captions, Question, Questions
from cclm.evaluation.pictures import PictureFiles
from cclm.evaluation.protocol import ClassificationProtocol, RetrievalProtocol
from cclm.evaluation.runner import present
from cclm.evaluation.task import ClassificationTask, DataFolder, RetrievalTask, Task
from cclm.types import Record, Statement

log = logging.getLogger(__name__)

Examples: TypeAlias = Questions | Captions
_LABELLED = ClassificationProtocol(name="training", about="rows with a label", unlabelled="left_out")
_CAPTIONED = RetrievalProtocol(name="training", about="rows with a caption", blank="left_out")


@dataclass(frozen=True)
class Split:
    """A task's split in one language. `wanted`: the split that belongs there, where another takes its place."""

    task: Task
    name: str
    language: str
    wanted: str = ""

    def __str__(self) -> str:
        return f"{self.name} in {self.language}"

    def find(self, data: DataFolder, option: str) -> None:
        """Errors: ValueError where a file of it lacks, saying which splits there are for `option`."""
        source = self.task.source(self.name, self.language)
        if all(data.find(name) is not None for name in source.files(self.language)):
            return
        files = ", ".join(source.files(self.language))
        there = [f"{option} {self.task.name}={other.name}:{other.language}" for other in self._others(data)]
        raise ValueError(
            f"{self.task.name}: no file {files} for its official {self.name} in {self.language}; fetch it, or take "
            f"another split: {', '.join(there) or f'{option} {self.task.name}=SPLIT:LANGUAGE, of which none is there'}"
        )

    def _others(self, data: DataFolder) -> Iterator[Split]:
        """Those of the language that could take its place, or else of any language."""
        found = [
            Split(self.task, name, language)
            for name, source in self.task.splits.items()
            if not name.startswith("test") and not name.endswith("_translated")
            for language in source.languages
            if all(data.find(file) is not None for file in source.files(language))
        ]
        own = [split for split in found if split.language == self.language]
        yield from own or found

    def read(self, data: DataFolder, pictures: PictureFiles, partial: bool) -> Examples:
        """Its examples that can be learned from. Errors: ValueError, also for pictures that lack without `partial`."""
        if isinstance(self.task, ClassificationTask):
            asked = self.task.under(_LABELLED, data, self.language, self.name)
            known = frozenset(asked.labels)
            kept = tuple(question for question in asked.questions if question.label in known)
            if len(kept) < len(asked):
                log.warning("%s: %d left out: label none of the task's", self, len(asked) - len(kept))
            found: Examples = replace(asked, questions=kept, notes=())
        elif isinstance(self.task, RetrievalTask):
            found = replace(self.task.under(_CAPTIONED, data, self.language, self.name), notes=())
        else:
            raise ValueError(f"task {self.task.name} is of sentences or classes, which nothing is fine-tuned on")
        (there,) = present([found], pictures, partial)
        return there


@dataclass(frozen=True)
class ShardSet:
    """Shards of a split. `key`: tells its content from any other's."""

    folder: Path
    key: str
    split: Split
    examples: int
    images: int
    notes: tuple[str, ...]


def shards_of(split: Split, found: Examples, pictures: PictureFiles, below: Path) -> ShardSet:
    """Write examples as shards below a folder, unless they are there. Errors: ValueError for a damaged picture."""
    content = f"{texts_hash(found)}{pictures_hash(found, pictures)}"
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    folder = below / f"{split.task.name}-{split.name}-{split.language}-{key}"
    below.mkdir(parents=True, exist_ok=True)
    with FileLock(below / f".{folder.name}.lock"):  # another run may write them
        if not (folder / MANIFEST).is_file():
            write_shards(_records(found, pictures), folder)
    return ShardSet(folder, key, split, len(found), len(_by_images(found)), found.notes)


def _by_images(found: Examples) -> dict[tuple[str, ...], list[Question | Caption]]:
    """Examples about the same picture, or pictures, are one record."""
    grouped: dict[tuple[str, ...], list[Question | Caption]] = {}
    if isinstance(found, Questions):
        for question in found.questions:
            grouped.setdefault(question.images, []).append(question)
    else:
        for caption in found.captions:
            grouped.setdefault((caption.image,), []).append(caption)
    return grouped


def _records(found: Examples, pictures: PictureFiles) -> Iterator[Record]:
    taken: set[str] = set()
    for names, items in _by_images(found).items():
        key = key_of(names)
        while key in taken:  # two pictures that are called alike in different folders
            key += "_"
        taken.add(key)
        try:
            image, *others = map(pictures.read, names)
        except SampleError as error:
            raise ValueError(f"{found.task}: {' and '.join(names)}: {error.reason}; fetch it again") from None
        texts = [item.text for item in items if isinstance(item, Caption)]
        yield Record(
            key,
            image,
            captions={found.language: texts} if texts else {},
            others=tuple(others),
            statements=tuple(
                Statement({found.language: item.text}, {item.label: 1.0})
                for item in items
                if isinstance(item, Question) and item.label is not None
            ),
        )
