"""What runs have left: results, each with the file of its predictions where there is one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cclm.evaluation.cells import CELLS, PREDICTIONS
from cclm.evaluation.number import cell
from cclm.evaluation.result import Result


@dataclass(frozen=True)
class Measured:
    """A result and the file of what the system said of every item."""

    result: Result
    predictions: Path | None = None

    @property
    def cell(self) -> tuple[str, ...]:
        """What was measured, and of which system (first)."""
        return cell(self.result)


def read_run(path: Path) -> list[Measured]:
    """Results of a run's folder, or of a file: one, one a line, a list, or a report. A system without a name gets the
    file's.

    Errors: ValueError for a path without results.
    """
    if path.is_dir():
        found = [_cell(file) for file in sorted((path / CELLS).glob("*.json"))]
    elif path.is_file():
        found = [Measured(result) for result in _results(path)]
    else:
        raise ValueError(f"there is no run {path}; give a folder of `cclm iglue evaluate --output`, or a .json file")
    if not found:
        raise ValueError(f"{path} holds no results; give a folder of `cclm iglue evaluate --output`, or a .json file")
    return [one if one.result.system else replace(one, result=replace(one.result, system=path.stem)) for one in found]


def _cell(file: Path) -> Measured:
    predictions = file.parent.parent / PREDICTIONS / f"{file.stem}.jsonl"
    (result,) = _results(file)
    return Measured(result, predictions if predictions.is_file() else None)


def _results(path: Path) -> list[Result]:
    try:
        text = path.read_text(encoding="utf-8")
        try:
            stored = json.loads(text)
        except json.JSONDecodeError:
            lines = filter(str.strip, text.split("\n"))  # not splitlines(): JSON may hold U+2028 and its like as it is
            stored = [json.loads(line) for line in lines]  # printed by one `score` after the other
        stored = stored.get("results", stored) if isinstance(stored, dict) else stored
        return [Result.of(row) for row in (stored if isinstance(stored, list) else [stored])]
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no results of cclm iglue ({error}); give what `score --json` printed") from None


def read_runs(paths: Sequence[Path]) -> list[Measured]:
    """All of several runs, equal ones once. Where two runs differ on one thing, their own names follow the system's.

    Errors: ValueError for a path without results.
    """
    runs = [(path, read_run(path)) for path in paths]
    seen: dict[tuple[str, ...], Result] = {}
    torn = {one.result.system for _, run in runs for one in run if seen.setdefault(one.cell, one.result) != one.result}
    found: dict[tuple[str, ...], Measured] = {}
    for path, run in runs:
        for one in run:
            name = one.result.system
            named = replace(one, result=replace(one.result, system=f"{name} ({path.stem})" if name in torn else name))
            if found.setdefault(named.cell, named).result != named.result:
                raise ValueError(
                    f"two results of {' '.join(filter(None, named.cell))} differ, of one model under two settings; run "
                    "one again with another --system, which computes nothing anew"
                )
    return list(found.values())
