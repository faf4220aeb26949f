"""Record -> pairs of views: which views, and in which languages. Every draw depends only on (seed, epoch, key).

Temperature T: over the dataset, language l is drawn with a share of about count_l ^ (1 / T), count_l being the number
of records that have l (from the manifest). T = 1 leaves languages as frequent as they are; a larger T lifts rare ones.
Since records come one after another and hold few languages each, this takes two steps: l has the rate
r_l = (count_l / smallest count) ^ (1 / T - 1), at least 1/50; a record is used in this epoch with the largest rate of
its wanted languages, and of these l is chosen in proportion to r_l. A record of statements is so judged statement by
statement; one of regions as a whole, so that no image is decoded for few of its texts.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from cclm.data.seeding import random_of
from cclm.errors import SampleError
from cclm.types import Pair, Part, Record, Region

Box: TypeAlias = tuple[float, float, float, float]  # left, top, width, height in pixels

_LEAST_RATE = 0.02  # a bound on how many records are passed over for one that is used


class UnwantedError(SampleError):
    """A sound record that this drawer has no use for: counted, but no damage."""


class PairDrawer(ABC):
    """Draws pairs from a record. `languages`: those wanted, None for all. `temperature`: see the module's docstring.

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

    def spoken(self, there: Iterable[str]) -> set[str]:
        """Languages of its texts, `there` being those of the dataset: the wanted ones, else all."""
        return {*(there if self.languages is None else self.languages), *self._required()}

    @abstractmethod
    def draw(self, record: Record, draw: random.Random) -> list[Pair]:
        """The pairs of this epoch, none where temperature passes over the record this time. Errors: UnwantedError.

        Only `record` and `draw` decide: images are not read yet, and b"" in a stream.
        """

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
    """Context: the image. Target: one of its captions; each epoch draws anew.

    `texts`: "captions", or "parallel" for the record's sentence and its translations. `share`: of the records, the same
    ones in every epoch and for every seed, as where only some have been translated.
    """

    def __init__(
        self,
        languages: list[str] | None = None,
        temperature: float = 1.0,
        texts: Literal["captions", "parallel"] = "captions",
        share: float = 1.0,
    ) -> None:
        super().__init__(languages, temperature)
        if texts not in ("captions", "parallel"):
            raise ValueError(f"ImageCaption: texts={texts!r}; allowed: captions, parallel")
        if not 0 < share <= 1:
            raise ValueError(f"ImageCaption: share={share} of the records; give a number above 0, up to 1")
        self.texts = texts
        self.share = share

    def draw(self, record: Record, draw: random.Random) -> list[Pair]:
        image = _image_of(record)
        if self.share < 1 and random_of("share", record.key).random() >= self.share:
            raise UnwantedError("not of the share of records that is read")
        texts = record.captions
        if self.texts == "parallel":
            texts = {language: [text] for language, text in record.parallel.items()}
        languages = self._wanted(texts)
        if not languages:
            raise UnwantedError("no caption in a wanted language")
        if not self._accepts(languages, draw):
            return []
        language = self._choose(languages, draw)
        return [Pair(record.key, image, draw.choice(texts[language]), (None, language))]


class Translation(PairDrawer):
    """Two languages of the same sentence. With `anchor`, one side always is that language.

    The first language drawn (the anchor) is the context; with probability `swap` the sides change places. With
    probability `copy` both sides are the same text (the anchor's), so that who translates also learns to repeat.
    """

    def __init__(
        self,
        languages: list[str] | None = None,
        temperature: float = 1.0,
        anchor: str | None = None,
        swap: float = 0.5,
        copy: float = 0.0,
    ) -> None:
        super().__init__(languages, temperature)
        for name, value in (("swap", swap), ("copy", copy)):
            if not 0 <= value <= 1:
                raise ValueError(f"{type(self).__name__}: {name}={value} is a probability, from 0 to 1")
        self.anchor = anchor
        self.swap = swap
        self.copy = copy

    def _required(self) -> set[str]:
        return {self.anchor} if self.anchor is not None else set()

    def _wants(self, language: str) -> bool:
        return language != self.anchor and super()._wants(language)

    def _texts(self, record: Record) -> Mapping[str, list[str]]:
        return {language: [text] for language, text in record.parallel.items()}

    def draw(self, record: Record, draw: random.Random) -> list[Pair]:
        texts = self._texts(record)
        languages = self._wanted(texts)
        if self.anchor is not None and self.anchor not in texts:
            raise UnwantedError(f"no text in the anchor language {self.anchor}")
        copied = self.copy > 0 and draw.random() < self.copy
        if copied and self.anchor is not None:
            languages = [self.anchor]
        if len(languages) < (1 if self.anchor is not None or copied else 2):
            raise UnwantedError("no two texts in wanted languages")
        if not self._accepts(languages, draw):
            return []
        if copied:
            language = self._choose(languages, draw)
            text = draw.choice(texts[language])
            return [Pair(record.key, text, text, (language, language))]
        first = self.anchor
        if first is None:
            first = self._choose(languages, draw)
            languages.remove(first)
        second = self._choose(languages, draw)
        context, target = draw.choice(texts[first]), draw.choice(texts[second])
        if draw.random() < self.swap:
            first, second, context, target = second, first, target, context
        return [Pair(record.key, context, target, (first, second))]


class CaptionCaption(Translation):
    """Two captions of one image in different languages: like Translation, over `captions` instead of `parallel`."""

    def _texts(self, record: Record) -> Mapping[str, list[str]]:
        return record.captions


class Statements(PairDrawer):
    """Context: the image, or all images of the record where it has several. Target: a statement, with its labels.

    Every statement is one pair of every epoch, in a language drawn for it; their order is drawn too. `flip_unless`:
    the image's left and right change places by even odds, but not where the statement or a label contains one of these
    words ("left", "right"). Set processor.image.flip to 0 beside it, which flips whatever is said.
    """

    def __init__(
        self, languages: list[str] | None = None, temperature: float = 1.0, flip_unless: list[str] | None = None
    ) -> None:
        super().__init__(languages, temperature)
        self.flip_unless = flip_unless

    def _flip(self, said: Iterable[str], draw: random.Random) -> bool:
        if self.flip_unless is None or draw.random() < 0.5:
            return False
        return not any(word in text.lower() for text in said for word in self.flip_unless)

    def draw(self, record: Record, draw: random.Random) -> list[Pair]:
        image = _image_of(record)
        context = (image, *record.others) if record.others else image
        wanted = [(each, languages) for each in record.statements if (languages := self._wanted(each.texts))]
        if not wanted:
            raise UnwantedError("no statement in a wanted language")
        draw.shuffle(wanted)
        pairs = []
        for statement, languages in wanted:
            if self._accepts(languages, draw):
                language = self._choose(languages, draw)
                target = statement.texts[language]
                flip = self._flip((target, *statement.labels), draw)
                pairs.append(Pair(record.key, context, target, (None, language), statement.labels, flip=flip))
        return pairs


class Regions(PairDrawer):
    """Context: a crop of the image, its left and right swapped by even odds. Targets: captions of the regions in it.

    The crop holds one whole region, drawn among those with a caption in a wanted language; its edges lie anywhere
    between that region's and the image's. A caption of the whole image comes first where the record has one, then
    regions in drawn order of which more than `least_visible` (a share) lies in the crop, up to `max_regions` texts.
    `attributes`: "same" puts an attribute of the caption's language before it ("red ball"), "any" one of any wanted
    language, "none" none. Which texts, which crop: as the original (reference/cclm.md 3.1, 7.2).
    """

    def __init__(
        self,
        languages: list[str] | None = None,
        temperature: float = 1.0,
        max_regions: int = 5,
        least_visible: float = 0.5,
        attributes: Literal["same", "any", "none"] = "same",
    ) -> None:
        super().__init__(languages, temperature)
        if max_regions < 1:
            raise ValueError(f"Regions: max_regions={max_regions}; give 1 or more")
        if not 0 <= least_visible < 1:
            raise ValueError(f"Regions: least_visible={least_visible} is a share, from 0 to below 1")
        if attributes not in ("same", "any", "none"):
            raise ValueError(f"Regions: attributes={attributes!r}; allowed: same, any, none")
        self.max_regions = max_regions
        self.least_visible = least_visible
        self.attributes = attributes

    def draw(self, record: Record, draw: random.Random) -> list[Pair]:
        image = _image_of(record)
        regions = [region for region in record.regions if self._wanted(region.captions)]
        if not regions:
            raise UnwantedError("no region with a caption in a wanted language")
        assert record.size is not None  # the decoder lets no regions through without it
        whole = self._wanted(record.captions)
        spoken = {language for region in regions for language in self._wanted(region.captions)}
        if not self._accepts(sorted(spoken.union(whole)), draw):
            return []
        crop = _draw_crop(_clip(draw.choice(regions).box, (0.0, 0.0, *record.size)), record.size, draw)
        flip = draw.random() < 0.5
        pairs = []
        if whole:
            language = self._choose(whole, draw)
            part = Part(crop, flip, (0.5, 0.5, 1.0, 1.0), whole=True)
            pairs.append(Pair(record.key, image, draw.choice(record.captions[language]), (None, language), part=part))
        for region in draw.sample(regions, len(regions)):
            if len(pairs) >= self.max_regions:
                break
            full = _clip(region.box, (0.0, 0.0, *record.size))
            seen = _clip(full, crop)
            if _area(seen) > self.least_visible * _area(full):
                language, text = self._text(region, draw)
                part = Part(crop, flip, _shares(seen, crop, flip), whole=False)
                pairs.append(Pair(record.key, image, text, (None, language), part=part))
        return pairs

    def _text(self, region: Region, draw: random.Random) -> tuple[str, str]:
        """Language and text of a region."""
        language = self._choose(self._wanted(region.captions), draw)
        text = draw.choice(region.captions[language])
        if self.attributes == "none":
            return language, text
        spoken = self._wanted(region.attributes) if self.attributes == "any" else [language]
        spoken = [each for each in spoken if each in region.attributes]
        if spoken:
            text = f"{draw.choice(region.attributes[self._choose(spoken, draw)])} {text}"
        return language, text


def _image_of(record: Record) -> bytes:
    if record.image is None:
        raise UnwantedError("record without an image")
    return record.image


def _draw_crop(box: Box, size: tuple[int, int], draw: random.Random) -> Box:
    """A crop on whole pixels that holds all of `box`; each edge is uniform between the box's and the image's."""
    left, top = draw.randint(0, math.floor(box[0])), draw.randint(0, math.floor(box[1]))
    right = draw.randint(min(math.ceil(box[0] + box[2]), size[0]), size[0])
    bottom = draw.randint(min(math.ceil(box[1] + box[3]), size[1]), size[1])
    return float(left), float(top), float(right - left), float(bottom - top)


def _clip(box: Box, frame: Box) -> Box:
    """The part of `box` inside `frame`; where there is none, its width or height is 0."""
    left, top = max(box[0], frame[0]), max(box[1], frame[1])
    right, bottom = min(box[0] + box[2], frame[0] + frame[2]), min(box[1] + box[3], frame[1] + frame[3])
    return left, top, max(right - left, 0.0), max(bottom - top, 0.0)


def _area(box: Box) -> float:
    return box[2] * box[3]


def _shares(box: Box, crop: Box, flip: bool) -> Box:
    """Centre and extent of `box` as shares of the crop, left and right swapped where it is flipped."""
    x, y = (box[0] - crop[0] + box[2] / 2) / crop[2], (box[1] - crop[1] + box[3] / 2) / crop[3]
    return (1 - x if flip else x), y, box[2] / crop[2], box[3] / crop[3]
