"""How exactly a number is measured: protocols, whose every policy has a name, and regimes.

Numbers of two protocols are never the same number; a report names both beside each (reference/iglue.md 1.7, 1.8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """`about`: in words, and who measures so. `split`: of the task's, that is scored. `average_english`: English counts
    in the average over languages; officially it never does.
    """

    name: str
    about: str
    split: str = "test"
    average_english: bool = False


@dataclass(frozen=True, kw_only=True)
class ClassificationProtocol(Protocol):
    """`unlabelled`: rows with none of the task's labels count as wrong, or are left out. `match`: an answer is right
    where it equals the label, or already where it contains it.
    """

    unlabelled: Literal["wrong", "left_out"] = "wrong"
    match: Literal["exact", "contains"] = "exact"


@dataclass(frozen=True, kw_only=True)
class RetrievalProtocol(Protocol):
    """`blank`: captions without text are kept as queries, or their rows left out; an image that then has no caption
    leaves the gallery too. `captions`: the first so many of an image, None for all. `gallery`: the first so many images
    of the file, None for all; `folds`: equal parts of it, scored apart and averaged.
    """

    blank: Literal["kept", "left_out"] = "kept"
    captions: int | None = None
    gallery: int | None = None
    folds: int = 1


@dataclass(frozen=True, kw_only=True)
class CaptioningProtocol(Protocol):
    """`references`: the first so many captions of an image that one is compared with, None for all."""

    references: int | None = None


@dataclass(frozen=True)
class Regime:
    """What the model had learned from before it was tested, and in which language it reads the test."""

    name: ClassVar[str]
    translated: ClassVar[bool] = False  # the test is read in English, machine-translated


@dataclass(frozen=True)
class ZeroShot(Regime):
    """Fine-tuned in English, tested in the language."""

    name: ClassVar[str] = "zero-shot"


@dataclass(frozen=True)
class FewShot(Regime):
    """Goes on from the English model with N examples of the language; the best rate by a dev set is kept.

    `shots`: names of the training sets, None for all that the task has. Rates and epochs as in IGLUE.
    """

    name: ClassVar[str] = "few-shot"
    shots: tuple[str, ...] | None = None
    rates: tuple[float, ...] = (1e-4, 5e-5, 1e-5)
    epochs: int = 20

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f"rates are {list(self.rates)}; give learning rates above 0, as 1e-4,5e-5,1e-5")
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; give 1 or more")


@dataclass(frozen=True)
class MaxShot(FewShot):
    """Few-shot with the largest of the training sets only ("most-shot" in IGLUE's logs)."""

    name: ClassVar[str] = "max-shot"


@dataclass(frozen=True)
class TranslateTest(Regime):
    """The English model reads the test translated to English: as the benchmark ships it, or by a model of transformers.

    `translator`: "shipped", or the name or folder of a translation model.
    """

    name: ClassVar[str] = "translate-test"
    translated: ClassVar[bool] = True
    translator: str = "shipped"


@dataclass(frozen=True)
class TranslateTrain(Regime):
    """Fine-tuned on the English training set translated to the language, tested in the language."""

    name: ClassVar[str] = "translate-train"


@dataclass(frozen=True)
class QuasiZeroShot(Regime):
    """Some texts of the language stood beside pictures in training, all of them translations."""

    name: ClassVar[str] = "quasi-zero-shot"


@dataclass(frozen=True)
class Supervised(Regime):
    """Texts of the language itself stood beside pictures in training."""

    name: ClassVar[str] = "supervised"


@dataclass(frozen=True)
class Unstated(Regime):
    """Nobody says what the model learned from, as of captions in a file."""

    name: ClassVar[str] = "unstated"


@dataclass(frozen=True)
class Met:
    """`languages`: those of texts that stood beside pictures in a model's training, as its folder tells; `translated`:
    those of them of which all such texts were translations.
    """

    languages: frozenset[str]
    translated: frozenset[str] = frozenset()

    def regime(self, language: str) -> type[Regime]:
        """What a test in the language is to the model."""
        if language not in self.languages:
            return ZeroShot
        return QuasiZeroShot if language in self.translated else Supervised


REGIMES: dict[str, type[Regime]] = {  # those that are asked for; the others a model's folder tells
    regime.name: regime for regime in (ZeroShot, FewShot, MaxShot, TranslateTest, TranslateTrain)
}
