"""Numbers of the literature, one per row of `published/*.csv`, to stand beside our own.

A row with the language "avg" is of a system of which only the average is known; where languages are, it is not kept.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from cclm.evaluation.number import Number

COLUMNS = (
    "system",
    "task",
    "language",
    "protocol",
    "regime",
    "shots",
    "direction",
    "metric",
    "value",
    "source",
    "verified",
)
COMPARABLE = ("task", "language", "protocol", "regime", "shots", "direction", "metric")


@cache
def _all() -> tuple[Number, ...]:
    found: list[Number] = []
    folder = files("cclm.evaluation").joinpath("published")
    for path in sorted((path for path in folder.iterdir() if path.name.endswith(".csv")), key=lambda path: path.name):
        with path.open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle, strict=True):
                assert tuple(row) == COLUMNS and row["verified"] in ("yes", "no"), f"{path.name}: {row}"
                found.append(Number(**row | {"value": float(row["value"]), "verified": row["verified"] == "yes"}))
    return tuple(found)


def published(unverified: bool = False, **wanted: str | Iterable[str]) -> list[Number]:
    """Numbers whose fields are as `wanted` (a value, or several that are allowed): task="xvnli", shots=("", "48").

    `unverified`: also those that were recalled, or read in a third party's transcription.
    """
    allowed = {name: {value} if isinstance(value, str) else set(value) for name, value in wanted.items()}
    return [
        number
        for number in _all()
        if (number.verified or unverified) and all(getattr(number, name) in known for name, known in allowed.items())
    ]


def beside(number: Number, unverified: bool = False) -> list[Number]:
    """The literature's numbers of the same thing: task, language, protocol, regime, shots, direction and metric."""
    return published(unverified, **{name: getattr(number, name) for name in COMPARABLE})
