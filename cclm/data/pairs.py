"""Record -> two views: which views, and in which languages. Every draw depends only on (seed, epoch, key).

Temperature T: over the dataset, language l is drawn with a share of about count_l ^ (1 / T), count_l being the number
of records that have l (from the manifest). T = 1 leaves languages as frequent as they are; a larger T lifts rare ones.
Since records come one after another and hold few languages each, this takes two steps: l has the rate
r_l = (count_l / smallest count) ^ (1 / T - 1), at least 1/50; a record is used in this epoch with the largest rate of
its wanted languages, and of these l is chosen in proportion to r_l.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from cclm.data.records import SampleError
from cclm.types import Pair, Record

_LEAST_RATE = 0.02  # a bound on how many records are passed over for one that is used


class UnwantedError(SampleError):
    """A sound record that this drawer has no use for: counted, but no damage."""


class PairDrawer(ABC):
    """Draws a pair from a record. `languages`: those wanted, None for all. `temperature`: see the module's docstring.

    Errors: ValueError for a temperature of 0 or less.
    """

    def __init__(self, languages: list[str] | None = None, temperature: float = 1.0) -> None:
        if temperature <= 0:
            raise ValueError(f"{type(self).__name__}: temperature={temperature} must be above 0; 1 keeps frequencies")
        self.languages = languages
        self.temperature = temperature
        self._rates: dict[str, float] = {}

    def bind(self, counts: Mapping[str, int], dataset: str) -> None:
        """Learn the dataset's languages; `counts` is empty where no manifest tells. Errors: ValueError, unknown one."""
        wanted = set(self.languages or ()) | self._required()
        unknown = sorted(wanted - set(counts))
        if counts and unknown:
            there = ", ".join(sorted(counts))
            raise ValueError(f"{dataset}: no text in language {', '.join(unknown)}; there are {there}")
        used = {language: count for language, count in counts.items() if self._wants(language) and count > 0}
        least = min(used.values(), default=1)
        power = 1 / self.temperature - 1
        rates = {language: (count / least) ** power for language, count in used.items()}
        most = max(rates.values(), default=1.0)
        self._rates = {language: max(rate / most, _LEAST_RATE) for language, rate in rates.items()}

    @abstractmethod
    def draw(self, record: Record, draw: random.Random) -> Pair | None:
        """The pair of this epoch, or None where temperature passes over the record this time. Errors: UnwantedError."""

    def _required(self) -> set[str]:
        return set()

    def _wants(self, language: str) -> bool:
        return self.languages is None or language in self.languages

    def _wanted(self, languages: Iterable[str]) -> list[str]:
        return sorted(language for language in languages if self._wants(language))

    def _accepts(self, languages: list[str], draw: random.Random) -> bool:
        return draw.random() < max(self._rates.get(language, 1.0) for language in languages)

    def _choose(self, languages: list[str], draw: random.Random) -> str:
        if len(languages) == 1:
            return languages[0]
        return draw.choices(languages, [self._rates.get(language, 1.0) for language in languages])[0]


class ImageCaption(PairDrawer):
    """Context: the image. Target: one of its captions; each epoch draws anew."""

    def draw(self, record: Record, draw: random.Random) -> Pair | None:
        if record.image is None:
            raise UnwantedError("record without an image")
        languages = self._wanted(record.captions)
        if not languages:
            raise UnwantedError("no caption in a wanted language")
        if not self._accepts(languages, draw):
            return None
        language = self._choose(languages, draw)
        return Pair(record.key, record.image, draw.choice(record.captions[language]), (None, language))


class Translation(PairDrawer):
    """Two languages of the same sentence. With `anchor`, one side always is that language.

    The first language drawn (the anchor) is the context; with probability `swap` the sides change places.
    """

    def __init__(
        self,
        languages: list[str] | None = None,
        temperature: float = 1.0,
        anchor: str | None = None,
        swap: float = 0.5,
    ) -> None:
        super().__init__(languages, temperature)
        if not 0 <= swap <= 1:
            raise ValueError(f"{type(self).__name__}: swap={swap} is a probability, from 0 to 1")
        self.anchor = anchor
        self.swap = swap

    def _required(self) -> set[str]:
        return {self.anchor} if self.anchor is not None else set()

    def _wants(self, language: str) -> bool:
        return language != self.anchor and super()._wants(language)

    def _texts(self, record: Record) -> Mapping[str, list[str]]:
        return {language: [text] for language, text in record.parallel.items()}

    def draw(self, record: Record, draw: random.Random) -> Pair | None:
        texts = self._texts(record)
        languages = self._wanted(texts)
        if self.anchor is not None and self.anchor not in texts:
            raise UnwantedError(f"no text in the anchor language {self.anchor}")
        if len(languages) < (1 if self.anchor is not None else 2):
            raise UnwantedError("no two texts in wanted languages")
        if not self._accepts(languages, draw):
            return None
        first = self.anchor
        if first is None:
            first = self._choose(languages, draw)
            languages.remove(first)
        second = self._choose(languages, draw)
        context, target = draw.choice(texts[first]), draw.choice(texts[second])
        if draw.random() < self.swap:
            first, second, context, target = second, first, target, context
        return Pair(record.key, context, target, (first, second))


class CaptionCaption(Translation):
    """Two captions of one image in different languages: like Translation, over `captions` instead of `parallel`."""

    def _texts(self, record: Record) -> Mapping[str, list[str]]:
        return record.captions
