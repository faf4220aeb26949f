"""Mean rank variance of runs: how far apart languages place one thing, where all of them are tested on the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cclm.evaluation import predictions
from cclm.evaluation.aggregate import Aggregate
from cclm.evaluation.markdown import Notes
from cclm.evaluation.number import AVERAGE
from cclm.evaluation.runs import Measured
from cclm.evaluation.significance import rank_variance
from cclm.evaluation.tables import Row, Table


@dataclass(frozen=True)
class RankVariance:
    """`languages`: those with the same items, over which the ranks of an item vary by `value` on average."""

    system: str
    task: str
    protocol: str
    split: str
    regime: str
    shots: str
    direction: str
    languages: tuple[str, ...]
    items: int
    value: float
    notes: tuple[str, ...]

    @property
    def number(self) -> Aggregate:
        """As one number among others."""
        same = ("system", "task", "protocol", "split", "regime", "shots", "direction", "items", "notes", "languages")
        return Aggregate(
            **{name: getattr(self, name) for name in same},
            language=AVERAGE,
            metric="mean_rank_variance",
            value=self.value,
            words=f"over {len(self.languages)} languages ({' '.join(self.languages)})",
        )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return asdict(self) | {"languages": list(self.languages), "notes": list(self.notes)}


def rank_variances(runs: Sequence[Measured]) -> Iterator[RankVariance]:
    """Of every retrieval test that a system took in several languages on the same items, with all ranks kept; from text
    to image only where an image has one caption.
    """
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
        if way == "text_to_image" and not all(map(_one_each, own.values())):
            continue  # several captions of an image are written apart in each language, of one number or not
        yield RankVariance(
            *(first.system, first.task, first.protocol, first.split, first.regime, first.shots),
            direction=way,
            languages=tuple(sorted(own)),
            items=len(own[first.language]),
            value=rank_variance(own, way),
            notes=notes,
        )


def _one_each(captions: Sequence[dict[str, Any]]) -> bool:
    """No image has two: each is that image's, in whatever language."""
    return len({image for item in captions for image in item["images"]}) == len(captions)


def tables(found: Sequence[RankVariance]) -> list[Table]:
    """One, in the form of the others; none for nothing."""
    notes = Notes()
    meaning = "how much the rank of one item varies over the languages, on average; 0: all find it at the same place"
    rows = [
        Row(
            *(one.system, one.protocol, f"{one.regime} {one.shots}".rstrip()),
            cells=(one.task, one.direction.replace("_", " "), f"{one.items:,}", f"{one.value:.1f}"),
            marks=tuple(notes.mark(said) for said in (*one.notes, f"over {' '.join(one.languages)}", meaning)),
            own=True,
        )
        for one in found
    ]
    columns = ("task", "direction", "items", "mean rank variance")
    table = Table("rank_variance", "Consistency across languages", columns, tuple(rows), notes.by_mark())
    return [table] if rows else []
