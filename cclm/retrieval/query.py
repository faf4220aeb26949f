"""What is asked of an index: terms, each with a weight, and the text that people write them as.

T terms, E embedding.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_TERMS, MAX_CHARACTERS, MAX_WEIGHT = 16, 2000, 100.0
MIN_WEIGHT = 1e-6  # less is nothing beside others, and, alone, no sum that can be scaled
# Of a minus term that names none: the largest that costs no photo of a among the first 20 for `a -b`, of which less
# than half as many show b as without it (benchmarks/minus_terms.py).
MINUS_WEIGHT = 0.6

_MINUS = "-\N{MINUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}"
_CARET = "^\N{FULLWIDTH CIRCUMFLEX ACCENT}"
_CLOSING = {  # opening quotation mark -> those that close it: typed, full-width, and what phones make of them
    '"': '"',
    "\N{FULLWIDTH QUOTATION MARK}": "\N{FULLWIDTH QUOTATION MARK}",
    "\N{LEFT DOUBLE QUOTATION MARK}": "\N{RIGHT DOUBLE QUOTATION MARK}",
    "\N{DOUBLE LOW-9 QUOTATION MARK}": "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}",
}
# Direction marks and the like, which keyboards of right-to-left languages put before a minus; joiners stay, as emoji
# and Persian are spelled with them.
_UNSEEN = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_PUNCTUATION = frozenset(string.punctuation + _MINUS + _CARET)


@dataclass(frozen=True)
class TextTerm:
    """A text in any language."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class ImageTerm:
    """A picture of one's own."""

    image: Image.Image
    weight: float = 1.0


@dataclass(frozen=True)
class IndexedTerm:
    """A picture of the index, by its id: more like this one."""

    id: int
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class VectorTerm:
    """An embedding (E,) of the model of the index; of any length, as only its direction counts."""

    vector: np.ndarray
    weight: float = 1.0


Term: TypeAlias = TextTerm | ImageTerm | IndexedTerm | VectorTerm


@dataclass(frozen=True)
class Query:
    """Terms that a picture should be near to, those of negative weight that it should be far from.

    Errors: ValueError for no term, too many, none of positive weight, or a weight that is 0, not finite or too large.
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("the query is empty; give a text, or the path of an image file")
        if len(self.terms) > MAX_TERMS:
            raise ValueError(f"the query has {len(self.terms)} terms; give at most {MAX_TERMS}")
        for term in self.terms:
            if not MIN_WEIGHT <= abs(term.weight) <= MAX_WEIGHT:
                raise ValueError(f"a weight is {term.weight:g}; give one from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}")
        if all(term.weight < 0 for term in self.terms):
            raise ValueError("the query has minus terms only; add a term without a minus, for what should be found")

    @classmethod
    def of(cls, text: str) -> Self:
        """One text as it is, whatever signs are in it."""
        return cls((TextTerm(text),))

    @classmethod
    def parse(cls, text: str, also: Sequence[Term] = ()) -> Self:
        """A query as people write it, such as `beach -people` or `"red car"^2 -"blue car"`; `also`: terms beside it.

        All words without a sign are one text. A minus before a word makes it a term of its own that is subtracted,
        quotation marks make a term of several words, `^2` behind a word or a closing mark gives the term that weight
        (1, or `MINUS_WEIGHT` of a minus term, where there is none). Signs count only where a word begins or ends: a
        hyphen, an apostrophe or a quotation mark inside a word, as Hebrew has them, is a character like any other,
        and so is a word of nothing but punctuation.

        Errors: ValueError, one line, for a quotation mark that is not closed, a weight that is no number, a text that
        is too long, and as of `Query`.
        """
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"the query has {len(text)} characters; give at most {MAX_CHARACTERS}")
        words: list[str] = []
        terms: list[Term] = []
        for piece in _pieces(_UNSEEN.sub("", text)):
            if isinstance(piece, str):
                words.append(piece)
            else:
                terms.append(piece)
        plain = [TextTerm(" ".join(words))] if words else []
        return cls((*plain, *terms, *also))

    @property
    def texts(self) -> tuple[TextTerm, ...]:
        return tuple(term for term in self.terms if isinstance(term, TextTerm))

    @property
    def subject(self) -> str | None:
        """The text that is explained: the heaviest one without a minus, the first of equals; None where none is."""
        wanted = [term for term in self.texts if term.weight > 0]
        return max(wanted, key=lambda term: term.weight).text if wanted else None

    def combined(self, vectors: np.ndarray) -> np.ndarray:
        """The unit-norm embedding (E,) of the query, from those of its terms (T, E): their weighted sum.

        Errors: ValueError where the terms cancel out, or one is zeros or not finite.
        """
        vectors = np.asarray(vectors, np.float64)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise ValueError("an embedding of the query holds NaN, infinity or only zeros; give another")
        weights = np.array([term.weight for term in self.terms])
        total = weights @ (vectors / norms)  # (E,)
        norm = np.linalg.norm(total)
        if norm < 1e-6 * np.abs(weights).sum():
            raise ValueError("the terms of the query cancel each other out; leave one out or change a weight")
        return (total / norm).astype(np.float32)


def _pieces(text: str) -> Iterator[str | TextTerm]:
    """What the text is made of, in order: plain words, and terms of their own."""
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        start, minus = place, text[place] in _MINUS
        place += minus
        if text[place : place + 1] in _CLOSING:
            stop = _closed(text, place)
            inside, place = " ".join(text[place + 1 : stop].split()), stop + 1
            weight = None
            if text[place : place + 1] in _CARET and place < len(text):
                stop = _word_end(text, place)
                weight, place = text[place + 1 : stop], stop
            if not inside:
                raise ValueError(f"a quotation mark in the query {text!r} encloses nothing; write a text in it")
            yield _term(inside, minus, weight)
        else:
            place = _word_end(text, start)
            yield _word(text[start:place])


def _word(word: str) -> str | TextTerm:
    """A word with what is before and behind it: plain, or a term of its own."""
    if set(word) <= _PUNCTUATION:
        return word
    minus = word[0] in _MINUS and word[1] not in _MINUS
    body = word[1:] if minus else word
    caret = max(map(body.rfind, _CARET))
    if caret > 0:
        return _term(body[:caret], minus, body[caret + 1 :])
    return _term(body, minus, None) if minus else body


def _term(text: str, minus: bool, weight: str | None) -> TextTerm:
    size = (MINUS_WEIGHT if minus else 1.0) if weight is None else _number(text, weight)
    return TextTerm(text, -size if minus else size)


def _number(text: str, weight: str) -> float:
    how = f'write a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, or "quotation marks" around a text with ^ in it'
    try:
        value = float(weight if "_" not in weight else "")
    except ValueError:
        raise ValueError(f"the weight {weight!r} of {text!r} in the query is no number; {how}") from None
    if not MIN_WEIGHT <= value <= MAX_WEIGHT:
        raise ValueError(f"the weight of {text!r} in the query is {weight}; {how}")
    return value


def _closed(text: str, opening: int) -> int:
    """Where the quotation mark at `opening` is closed."""
    for place in range(opening + 1, len(text)):
        if text[place] in _CLOSING[text[opening]] and not _abbreviates(text, place):
            return place
    raise ValueError(f"a quotation mark in the query {text!r} is not closed; close it, or leave it out")


def _abbreviates(text: str, place: int) -> bool:
    """Whether the mark stands between two Hebrew letters, where it is part of a word."""
    beside = text[place - 1 : place + 2 : 2]
    return len(beside) == 2 and all("\N{HEBREW LETTER ALEF}" <= letter <= "\N{HEBREW LETTER TAV}" for letter in beside)


def _word_end(text: str, start: int) -> int:
    return next((place for place in range(start, len(text)) if text[place].isspace()), len(text))


def query_kind(query: str) -> Literal["image", "text"]:
    """Whether a query is the path of an image file or a text.

    Errors: ValueError for an empty query; FileNotFoundError for what looks like an image path but names no file: a
    typing error, hardly a text.
    """
    if not query.strip():
        raise ValueError("the query is empty; give a text, or the path of an image file")
    path = Path(query)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        if path.suffix and path.is_file():
            raise ValueError(
                f"query {query!r} is a file, but of none of {', '.join(sorted(IMAGE_SUFFIXES))}; convert it"
            )
        return "text"
    if not path.is_file():
        raise FileNotFoundError(f"query {query!r} looks like an image file, but there is none; check the path")
    return "image"
