"""Two runs side by side, test by test: is one better, or luckier? From the predictions that they have left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cclm.evaluation import predictions
from cclm.evaluation.markdown import Notes, below, pipes, plain, raised
from cclm.evaluation.result import Result
from cclm.evaluation.runs import Measured, changed
from cclm.evaluation.significance import Comparison, compare

OF_ITEMS = {"accuracy": "right", "CIDEr": "CIDEr"}  # score of a test without directions -> what items have of it
FIELDS = ("task", "language", "protocol", "split", "regime", "shots")


@dataclass(frozen=True)
class Compared:
    """`first`, `second`: results of the same test; `found`: of their items, in one metric and direction."""

    first: Result
    second: Result
    found: Comparison

    @property
    def systems(self) -> tuple[str, str]:
        return self.first.system, self.second.system

    def said(self) -> Iterator[str]:
        """The notes of both, and of which one where the other has not got it."""
        first, second = self.first.notes, self.second.notes
        for note in dict.fromkeys((*first, *second)):
            yield note if note in first and note in second else f"{'first' if note in first else 'second'}: {note}"

    def to_dict(self) -> dict[str, Any]:
        """As it stands in JSON."""
        test = {name: getattr(self.first, name) for name in FIELDS}
        found = asdict(self.found) | {"interval": list(self.found.interval)}
        return test | found | {"systems": list(self.systems), "ids": self.first.ids, "notes": list(self.said())}


def compare_runs(first: Sequence[Measured], second: Sequence[Measured]) -> list[Compared]:
    """Every test that both were measured on, in the order of the first; of retrieval, recall at 1 each way.

    Errors: ValueError for runs of several systems, without a test in common, without predictions or of other items.
    """
    for run in (first, second):
        if len(systems := dict.fromkeys(one.result.system for one in run)) > 1:
            raise ValueError(f"a run to compare holds {len(systems)} systems, {', '.join(systems)}; give a run of one")
    others = {one.cell[1:]: one for one in second}
    pairs = [(one, others[one.cell[1:]]) for one in first if one.cell[1:] in others]
    if not pairs:
        raise ValueError(
            f"{first[0].result.system} and {second[0].result.system} were measured on no test, protocol and regime in "
            "common; evaluate both on the same"
        )
    return [compared for pair in pairs for compared in _pair(*pair)]


def _pair(first: Measured, second: Measured) -> Iterator[Compared]:
    named = " ".join(part for part in first.cell[1:] if part)
    if first.predictions is None or second.predictions is None:
        raise ValueError(f"{named}: a run has kept no predictions; evaluate it with --output, and compare the folders")
    if first.result.ids != second.result.ids:
        raise ValueError(f"{named}: the runs are of other items; evaluate both on the same files")
    if others := [what for what in changed(first, second) if what != "model"]:
        raise ValueError(f"{named}: the runs are of other {', '.join(others)}; evaluate both on the same files")
    items = [predictions.read(path) for path in (first.predictions, second.predictions)]
    metric = next((own for name, own in OF_ITEMS.items() if name in first.result.scores), None)
    ways = [""] if metric else [
        way for way, scores in first.result.scores.items() if isinstance(scores, dict) and second.result.scores.get(way)
    ]  # fmt: skip
    for way in ways:
        yield Compared(first.result, second.result, compare(*items, metric or "R@1", way))


def markdown(comparisons: Sequence[Compared]) -> str:
    """A table; "" for none."""
    if not comparisons:
        return ""
    first, second = comparisons[0].systems
    head = ("task", "language", "protocol", "regime", "metric", "items", "first", "second", "difference", "95 %", "p")
    lines, notes = [pipes(head), pipes(("---",) * 5 + ("--:",) * 6)], Notes()
    for one in comparisons:
        found, result = one.found, one.first
        metric = (
            "accuracy" if found.metric == "right" else f"{found.metric} {found.direction.replace('_', ' ')}".rstrip()
        )
        regime = f"{result.regime} {result.shots}".rstrip()
        values = (f"{found.first:.2f}", f"{found.second:.2f}", f"{found.difference:+.2f}")
        low, high = found.interval
        p = f"{found.p_value:.4f}" if found.p_value >= 0.0001 else "<0.0001"
        test = (result.language, result.protocol, regime, metric, f"{found.items:,}")
        task = plain(result.task) + raised(notes.mark(said) for said in one.said())
        lines.append(pipes((task, *map(plain, (*test, *values, f"{low:+.2f} to {high:+.2f}", p)))))
    title = f"### {plain(second)} against {plain(first)}, paired by item"
    about = (
        f"first: {plain(first)}, second: {plain(second)}; difference: second - first, with its bootstrap interval; p: "
        "two-sided, of the paired randomisation test, items about the same pictures together, not corrected for the "
        "number of tests"
    )
    return "\n\n".join(filter(None, ["\n" + title, "\n".join(lines), about, below(notes.by_mark())])) + "\n"
