"""One value and all that tells it apart: of a result of our own, or of the literature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cclm.evaluation.result import Result

DIRECTIONS = ("text_to_image", "image_to_text")
SIZES = ("queries", "gallery")  # of a direction: what was ranked, no scores
AVERAGE = "avg"  # in the place of a language


@dataclass(frozen=True, kw_only=True)
class Number:
    """`direction`: "" where a task has none. `value`: percent, but for ranks. `items`, `captions`: of the test, and per
    image; None where nobody says. `interval`: 95 %. `source`: of a published number, "" of our own; `verified`: it was
    read there, not recalled. `ids`: SHA-256 of the id list.
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
    ids: str = ""
    notes: tuple[str, ...] = ()
    interval: tuple[float, float] | None = None
    source: str = ""
    verified: bool = True

    @property
    def series(self) -> tuple[str, ...]:
        """All but the language: numbers of one series stand in one row, and may be averaged."""
        return (self.task, self.direction, self.metric, self.system, self.protocol, self.split, self.regime, self.shots)


def numbers(result: Result) -> list[Number]:
    """Every score of a result; with both directions also their mean recall, the mean of six (direction "")."""
    own = {name: getattr(result, name) for name in ("system", "task", "language", "protocol", "regime", "shots")}
    own |= {name: getattr(result, name) for name in ("split", "items", "ids", "notes")}
    ways = {way: result.scores[way] for way in DIRECTIONS if result.scores.get(way) is not None}
    found = list(_scores(result.scores, own))
    for way, scores in ways.items():
        found += _scores(scores, own | {"direction": way, "captions": _captions(way, scores)})
    six = [ways[way].get(f"R@{k}") for way in DIRECTIONS if way in ways for k in (1, 5, 10)]
    if len(six) == 6 and None not in six:
        captions = _captions(DIRECTIONS[0], ways[DIRECTIONS[0]])
        found.append(Number(metric="mean_recall", value=sum(six) / 6, captions=captions, **own))
    return found


def _captions(way: str, scores: Mapping[str, Any]) -> float | None:
    texts, images = (scores.get(size) for size in (SIZES if way == "text_to_image" else reversed(SIZES)))
    return texts / images if texts and images else None


def _scores(scores: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[Number]:
    for metric, value in scores.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and metric not in SIZES:
            interval = scores.get(f"{metric}_interval")
            yield Number(metric=metric, value=float(value), interval=tuple(interval) if interval else None, **own)
