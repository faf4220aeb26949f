"""A model that a run has fine-tuned, and what `finished.json` beside its folder tells of that."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FINISHED = "finished.json"


@dataclass(frozen=True)
class Tuned:
    """A trained model. `value`: of the dev split's metric, None where there was none. `about`: for provenance."""

    folder: Path
    value: float | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Path) -> Tuned:
        """A folder by whomever, with what is known of it where a run of ours has made it. Errors: ValueError."""
        finished = model.parent / FINISHED
        if not finished.is_file():
            return cls(model)
        try:
            about = json.loads(finished.read_text(encoding="utf-8"))
            return cls(model, about["value"], about | {"notes": tuple(about["notes"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{finished} is damaged ({error}); remove its folder, and it is trained again") from None

    @property
    def notes(self) -> tuple[str, ...]:
        return self.about.get("notes", ())
