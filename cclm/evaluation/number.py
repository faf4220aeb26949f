"""One value and all that tells it apart: of a result of our own, or of the literature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cclm.evaluation.result import Result

SIZES = ("queries", "gallery")  # of a direction: what was ranked
NO_SCORES = (*SIZES, "sentences", "chance", "empty", "fidelity_ceiling")
CELL = ("system", "task", "language", "protocol", "split", "regime", "shots")
AVERAGE = "avg"  # in the place of a language


@dataclass(frozen=True, kw_only=True)
class Number:
    """`direction`: "" where a task has none. `value`: percent, but for ranks. `items`, `captions`: of the test, and per
    image; None where nobody says. `interval`: 95 %. `source`: of a published number, "" of our own; `verified`: it was
    read there, not recalled. `ids`: SHA-256 of the id list. `queries`, `gallery`: of a direction; of an average, one
    each per language where they differ.
    """

    system: str
    task: str
    language: str
    protocol: str
    regime: str
    metric: str
    value: float
    shots: str = ""
    direction: str = ""
    split: str = "test"
    items: int | None = None
    captions: float | None = None
    queries: int | tuple[int, ...] | None = None
    gallery: int | tuple[int, ...] | None = None
    ids: str = ""
    notes: tuple[str, ...] = ()
    interval: tuple[float, float] | None = None
    source: str = ""
    verified: bool = True

    @property
    def series(self) -> tuple[str, ...]:
        """All but the language: numbers of one series stand in one row, and may be averaged."""
        return (self.task, self.direction, self.metric, self.system, self.protocol, self.split, self.regime, self.shots)


def cell(result: Result) -> tuple[str, ...]:
    """Which system was measured, on what."""
    return tuple(getattr(result, name) for name in CELL)


def numbers(result: Result) -> list[Number]:
    """Every score of a result; with both directions also their mean recall, the mean of six (direction "")."""
    own = {name: getattr(result, name) for name in (*CELL, "items", "ids", "notes")}
    ways = {way: found for way, found in result.scores.items() if isinstance(found, dict) and "queries" in found}
    found = [number for way, scores in ways.items() for number in _scores(scores, own | _sizes(way, scores))]
    own["captions"] = max((number.captions for number in found if number.captions is not None), default=None)
    six = [scores.get(f"R@{k}") for scores in ways.values() for k in (1, 5, 10)]
    mean = {"mean_recall": sum(six) / 6} if len(six) == 6 and None not in six else {}
    return [*_scores(mean | result.scores, own), *found]


def _sizes(way: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    texts, images = (scores[size] for size in (SIZES if way.startswith("text") else reversed(SIZES)))
    return {"direction": way, "captions": texts / images} | {size: scores[size] for size in SIZES}


def _scores(scores: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[Number]:
    for metric, value in scores.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and metric not in NO_SCORES:
            interval = scores.get(f"{metric}_interval")
            yield Number(metric=metric, value=float(value), interval=tuple(interval) if interval else None, **own)
