"""One number with all that it depends on: a task in a language under a protocol, in a regime, of a system."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

_FIELDS = ("system", "regime", "shots", "split", "ids", "notes", "provenance")


@dataclass(frozen=True)
class Result:
    """`scores`: {"accuracy": percent, ..} or {"text_to_image": {"R@1": percent, .., "queries", "gallery"},
    "image_to_text": {..}}; a direction that could not be measured is None. `shots`: name of the few-shot training set,
    "" for none. `ids`: SHA-256 of the id list. `notes`: what every line of a report says beside the number.
    `provenance`: hashes and settings, free in form.
    """

    task: str
    language: str
    protocol: str
    items: int
    scores: dict[str, Any]
    ids: str
    split: str = "test"
    system: str = ""
    regime: str = "zero-shot"
    shots: str = ""
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The form that scripts rely on: task, language, protocol, items, then the scores, then the rest."""
        first = {name: getattr(self, name) for name in ("task", "language", "protocol", "items")}
        rest = {name: getattr(self, name) for name in _FIELDS}
        return first | self.scores | rest | {"notes": list(self.notes)}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        """From `to_dict`. Errors: ValueError naming the field that is missing."""
        try:
            first = {name: stored[name] for name in ("task", "language", "protocol", "items")}
            rest = {name: stored[name] for name in _FIELDS}
        except KeyError as error:
            raise ValueError(f"no result of cclm iglue: it lacks {error.args[0]!r}") from None
        scores = {name: value for name, value in stored.items() if name not in first and name not in rest}
        return cls(**first, scores=scores, **rest | {"notes": tuple(stored["notes"])})
