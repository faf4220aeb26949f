"""What a test set is made of, once a benchmark's files are read: items, and what a protocol makes of them.

An item's images are names, as the files have them; pictures are found by name when a model is to see them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from cclm.evaluation.protocol import CaptioningProtocol, ClassificationProtocol, Protocol, RetrievalProtocol


@dataclass(frozen=True)
class Question:
    """A text about one image or several, and the label that it should get."""

    id: str
    images: tuple[str, ...]
    text: str
    label: str | None  # None: the row has none of the task's labels


@dataclass(frozen=True)
class Caption:
    """A text about one image, which it should find and be found by."""

    id: str  # of the text: two captions of one image have two ids
    image: str
    text: str


@dataclass(frozen=True)
class Sentence:
    """A sentence and its English translation, which should find each other."""

    id: str
    text: str
    english: str


@dataclass(frozen=True)
class Picture:
    """An image and its class, to be recognised by the name of the class in some language."""

    id: str
    image: str
    label: str


@dataclass(frozen=True)
class Described:
    """An image to be described, and what people wrote of it in the language."""

    id: str
    image: str
    references: tuple[str, ...]  # one at least


Item: TypeAlias = Question | Caption | Sentence | Picture | Described


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """What is measured: a task in one language under one protocol.

    `notes` say in words, with counts, what the protocol's policies did: "14 rows without a label count as wrong".
    """

    __test__ = False  # pytest collects classes of this name

    task: str
    language: str
    protocol: Protocol
    split: str
    notes: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the items, in the order of the files."""
        raise NotImplementedError

    def images(self) -> tuple[str, ...]:
        """Names of the images, each once, in the order of the files."""
        return ()

    def fingerprint(self) -> str:
        """SHA-256 in hex of the id list, whatever its order: equal where two numbers are of the same items."""
        return hashlib.sha256("\n".join(sorted(self.ids)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Wording:
    """How a language model is asked. `prompt`: <image> for each picture, {text} for the question. `answers`: label ->
    what stands for it, in English; the others stand for themselves.
    """

    prompt: str
    answers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Questions(TestSet):
    """`spared`: ids that a file of predictions may hold beside the questions', as they are of the same test's rest.

    `wording`: for models that answer prompts, which alone read it.
    """

    protocol: ClassificationProtocol
    questions: tuple[Question, ...]
    labels: tuple[str, ...]  # those that a model chooses among
    spared: frozenset[str] = frozenset()
    wording: Wording | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(question.id for question in self.questions)

    @property
    def textless(self) -> bool:
        """Only the labels are at hand, not what is asked: predictions can be scored, but no model can make them."""
        return not any(question.text for question in self.questions)

    def images(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for question in self.questions for name in question.images))


@dataclass(frozen=True, kw_only=True)
class Captions(TestSet):
    """`gallery`: images by name, each once, in the order of the files; captions name these."""

    protocol: RetrievalProtocol
    captions: tuple[Caption, ...]
    gallery: tuple[str, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(caption.id for caption in self.captions)

    def images(self) -> tuple[str, ...]:
        return self.gallery


@dataclass(frozen=True, kw_only=True)
class Sentences(TestSet):
    """Texts of one language, their translations, both ways."""

    sentences: tuple[Sentence, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(sentence.id for sentence in self.sentences)


@dataclass(frozen=True, kw_only=True)
class Pictures(TestSet):
    """`names`: of each class in the set's language, several where there are; a class without one is left out."""

    pictures: tuple[Picture, ...]
    names: dict[str, tuple[str, ...]]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(picture.id for picture in self.pictures)

    def images(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(picture.image for picture in self.pictures))


@dataclass(frozen=True, kw_only=True)
class Descriptions(TestSet):
    """Images to be described in the set's language."""

    protocol: CaptioningProtocol
    described: tuple[Described, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(item.id for item in self.described)

    def images(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item.image for item in self.described))
