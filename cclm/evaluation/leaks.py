"""What of a test a model may have seen in training: images and texts of the test that are in the training's shards."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cclm.data.image_ids import ids_of_key, image_id
from cclm.data.records import texts_of
from cclm.errors import SampleError
from cclm.evaluation.items import Captions, Descriptions, Questions, Sentences, TestSet
from cclm.evaluation.pictures import PictureFiles
from cclm.types import Record

EXAMPLES = 5


@dataclass(frozen=True)
class Seen:
    """Something of the test, and the first training record that has it. `how`: by "name", "bytes" or "text"."""

    what: str  # an image's name, or a text
    key: str
    how: str
    language: str = ""  # of the training text


@dataclass(frozen=True)
class Overlap:
    """`total`: images of the test, or texts of its items that say something; `seen`: those in the training.

    `at_hand`: whether they could be looked for; nothing is known of those that could not.
    """

    total: int
    seen: tuple[Seen, ...]
    at_hand: bool = True

    @property
    def percent(self) -> float:
        return 100 * len(self.seen) / self.total if self.total else 0.0

    def examples(self) -> tuple[Seen, ...]:
        """The first that differ."""
        return tuple(dict.fromkeys(self.seen))[:EXAMPLES]

    def to_dict(self) -> dict[str, Any]:
        """Numbers are None where nothing was at hand."""
        if not self.at_hand:
            return {"at_hand": False, "leaked": None, "total": None, "percent": None, "examples": []}
        examples = [vars(found) for found in self.examples()]
        return {
            "at_hand": True,
            "leaked": len(self.seen),
            "total": self.total,
            "percent": self.percent,
            "examples": examples,
        }


@dataclass(frozen=True)
class Leak:
    """What of one test set, which is of one language, is in the training."""

    test: TestSet
    images: Overlap
    texts: Overlap

    def __bool__(self) -> bool:
        return bool(self.images.seen or self.texts.seen)

    def to_dict(self) -> dict[str, Any]:
        about = {"task": self.test.task, "language": self.test.language, "protocol": self.test.protocol.name}
        overlaps = {"images": self.images.to_dict(), "texts": self.texts.to_dict()}
        return about | {"split": self.test.split, "items": len(self.test)} | overlaps

    def __str__(self) -> str:
        where = f"{self.test.task} {self.test.split} in {self.test.language}"
        counts = [
            f"{len(found.seen):,} of {found.total:,} {kind} ({found.percent:.1f} %)"
            for kind, found in (("images", self.images), ("texts", self.texts))
            if found.total
        ]
        unknown = "" if self.texts.at_hand else "; texts: not at hand"
        lines = [f"{where}: {', '.join(counts) or 'neither images nor texts'} are in the training data{unknown}"]
        for found in (*self.images.examples(), *self.texts.examples()):
            by = "its bytes" if found.how == "bytes" else "its name" if found.how == "name" else found.language
            lines.append(f"  {found.what!r} in record {found.key} ({by})")
        return "\n".join(lines)


def normalised(text: str) -> str:
    """A text without what makes no difference: Unicode form, case, punctuation, spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(sign)[0] in "PSZC" else sign for sign in folded)
    return " ".join(kept.split())


def texts_in(test: TestSet) -> list[str]:
    """All texts that a model reads in a test or is compared with, both sides of sentence pairs; no names of classes."""
    if isinstance(test, Questions):
        return [question.text for question in test.questions]
    if isinstance(test, Captions):
        return [caption.text for caption in test.captions]
    if isinstance(test, Sentences):
        return [text for sentence in test.sentences for text in (sentence.text, sentence.english)]
    if isinstance(test, Descriptions):
        return [text for item in test.described for text in item.references]
    return []


@dataclass
class _Wanted:
    """Ways to know the images and texts of all tests, each with the training record that was first to match."""

    images: dict[str, Seen | None] = field(default_factory=dict)  # by image_id
    hashes: dict[str, Seen | None] = field(default_factory=dict)  # by SHA-256 of the picture's file
    texts: dict[str, Seen | None] = field(default_factory=dict)  # by normalised text

    def meet(self, record: Record) -> None:
        if record.image is not None:
            for name in ids_of_key(record.key):
                self._note(self.images, name, Seen("", record.key, "name"))
        if self.hashes:
            for image in filter(None, (record.image, *record.others)):
                self._note(self.hashes, hashlib.sha256(image).hexdigest(), Seen("", record.key, "bytes"))
        for language, text in texts_of(record):
            self._note(self.texts, normalised(text), Seen("", record.key, "text", language))

    @staticmethod
    def _note(wanted: dict[str, Seen | None], way: str, seen: Seen) -> None:
        if wanted.get(way, seen) is None:
            wanted[way] = seen


def _hashed(tests: Sequence[TestSet], pictures: PictureFiles | None) -> dict[str, str]:
    """Name -> SHA-256 of those of the tests' pictures that are at hand."""
    found = {}
    for name in dict.fromkeys(name for test in tests for name in test.images()) if pictures is not None else ():
        try:
            found[name] = hashlib.sha256(pictures.read(name)).hexdigest()
        except SampleError:
            continue
    return found


def find_leaks(records: Iterable[Record], tests: Sequence[TestSet], pictures: PictureFiles | None = None) -> list[Leak]:
    """One pass over the training's records, whatever their number, for a leak (or none) per test.

    An image is known by its name (`image_id`), and by the bytes of its file where `pictures` has it.
    """
    hashes = _hashed(tests, pictures)
    wanted = _Wanted(
        images={image_id(name): None for test in tests for name in test.images()},
        hashes=dict.fromkeys(hashes.values()),
        texts={normalised(text): None for test in tests for text in texts_in(test)},
    )
    wanted.texts.pop("", None)
    for record in records:
        wanted.meet(record)
    return [Leak(test, _images(test, wanted, hashes), _texts(test, wanted)) for test in tests]


def _images(test: TestSet, wanted: _Wanted, hashes: dict[str, str]) -> Overlap:
    names = test.images()
    found = {name: wanted.images[image_id(name)] or wanted.hashes.get(hashes.get(name, "")) for name in names}
    return Overlap(len(names), tuple(Seen(name, seen.key, seen.how) for name, seen in found.items() if seen))


def _texts(test: TestSet, wanted: _Wanted) -> Overlap:
    texts = [(text, normalised(text)) for text in texts_in(test)]
    found = [(text, wanted.texts[form]) for text, form in texts if form]
    seen = tuple(Seen(text, seen.key, "text", seen.language) for text, seen in found if seen)
    return Overlap(len(found), seen, not (isinstance(test, Questions) and test.textless))
