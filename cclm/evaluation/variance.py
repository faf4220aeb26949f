"""Mean rank variance of runs: how far apart languages place one thing, where all of them are tested on the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cclm.evaluation import predictions
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.runs import Measured
from cclm.evaluation.significance import rank_variance


@dataclass(frozen=True)
class RankVariance:
    """`languages`: those with the same items, over which the ranks of an item vary by `value` on average."""

    system: str
    task: str
    protocol: str
    regime: str
    shots: str
    direction: str
    languages: tuple[str, ...]
    items: int
    value: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return asdict(self) | {"languages": list(self.languages), "notes": list(self.notes)}


def rank_variances(runs: Sequence[Measured]) -> Iterator[RankVariance]:
    """Of every retrieval test that a system took in several languages on the same items, with all ranks kept."""
    groups: dict[tuple[str, ...], list[Measured]] = defaultdict(list)
    for one in runs:
        result = one.result
        if one.predictions is not None and "text_to_image" in result.scores:
            key = (result.system, result.task, result.protocol, result.regime, result.shots, result.ids)
            groups[key].append(one)
    for group in groups.values():
        if len(group) > 1:
            yield from _of(group)


def _of(group: list[Measured]) -> Iterator[RankVariance]:
    items = {one.result.language: predictions.read(one.predictions) for one in group if one.predictions}
    first = group[0].result
    notes = tuple(dict.fromkeys(note for one in group for note in one.result.notes))
    for way in ("text_to_image", "image_to_text"):
        own = {language: [item for item in found if item.get("direction") == way] for language, found in items.items()}
        if any(item.get("rank") is None for found in own.values() for item in found) or not all(own.values()):
            continue  # a system that told its best hits alone
        yield RankVariance(
            *(first.system, first.task, first.protocol, first.regime, first.shots),
            direction=way,
            languages=tuple(sorted(own)),
            items=len(own[first.language]),
            value=rank_variance(own, way),
            notes=notes,
        )


def markdown(found: Sequence[RankVariance]) -> str:
    """A table; "" for none."""
    if not found:
        return ""
    head = ("system", "task", "protocol", "regime", "direction", "languages", "items", "mean rank variance")
    lines = [_pipes(head), _pipes(("---",) * 6 + ("--:",) * 2)]
    for one in found:
        mark = " <sup>†</sup>" if StandIns.note in one.notes else ""
        regime = f"{one.regime} {one.shots}".rstrip()
        names = (one.system + mark, one.task, one.protocol, regime, one.direction.replace("_", " "))
        lines.append(_pipes((*names, " ".join(one.languages), f"{one.items:,}", f"{one.value:.1f}")))
    notes = [
        "how much the rank of one item varies over the languages, on average; 0 where all find it at the same place"
    ]
    if any("†" in line for line in lines):
        notes.insert(0, f"<sup>†</sup> {StandIns.note}")
    return "\n\n".join(["", "### Consistency across languages", "\n".join(lines), "  \n".join(notes)]) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
