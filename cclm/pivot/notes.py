"""What a pivot model's folder tells of its training: in which languages it has met pictures, for the regimes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainingNotes:
    """Of this training and all before it: their presets, and the `languages` of texts that were beside pictures;
    `translated`: those of them in which all were translations, and for which share of the pictures at most.
    """

    presets: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    translated: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> TrainingNotes:
        """From what a config.json says."""
        return cls(tuple(stored["presets"]), tuple(stored["languages"]), {**stored["translated"]})

    def then(self, later: TrainingNotes) -> TrainingNotes:
        """After a further training: a language once met stays met."""
        own = {*self.languages} - {*self.translated} | {*later.languages} - {*later.translated}
        translated = {
            code: max(self.translated.get(code, 0.0), later.translated.get(code, 0.0))
            for code in sorted({*self.translated, *later.translated} - own)
        }
        languages = tuple(sorted({*self.languages, *later.languages}))
        return TrainingNotes(self.presets + later.presets, languages, translated)
