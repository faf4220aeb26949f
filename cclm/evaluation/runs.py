"""What runs have left: results, each with the file of its predictions where there is one.

Of a cell that a folder holds twice under one setting, as its test or model has changed, the newest counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cclm.evaluation.cells import CELLS, PREDICTIONS
from cclm.evaluation.number import cell
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.result import Result

TRAINED = ("train", "examples", "dev", "steps")  # of a training, what is set: the rest is how it went


@dataclass(frozen=True)
class Measured:
    """A result and the file of what the system said of every item. `file`: of the result, in a run's folder; `older`:
    those that it supersedes.
    """

    result: Result
    predictions: Path | None = None
    file: Path | None = None
    older: tuple[Measured, ...] = ()

    @property
    def cell(self) -> tuple[str, ...]:
        """What was measured, and of which system (first)."""
        return cell(self.result)

    @property
    def settings(self) -> dict[str, Any]:
        """How it was run and, where it was, fine-tuned; lists and the like as text, without what is off or unsaid."""
        told = self.result.provenance
        found = (told.get("settings") or {}) | _trained(told.get("training") or {}, "training")
        return {
            name: value if isinstance(value, (int, float, str)) else json.dumps(value)
            for name, value in found.items()
            if value
        }


def _trained(about: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """How a model was fine-tuned, and the English one that it goes on from; of several rates the best is no setting."""
    found = {f"{kind} {name}": about.get(name) for name in TRAINED}
    found |= {f"{kind} rates": list(about["rates"])} if "rates" in about else {f"{kind} rate": about.get("rate")}
    return found | (_trained(about["english"], "English training") if about.get("english") else {})


def read_run(path: Path) -> list[Measured]:
    """Results of a run's folder, or of a file: one, one a line, a list, or a report; a cell each, the newest of its
    kind. A system without a name gets the file's.

    Errors: ValueError for a path without results, and for two of one cell under different settings.
    """
    if path.is_dir():
        found = [_cell(file) for file in sorted((path / CELLS).glob("*.json"))]
    elif path.is_file():
        found = [Measured(result) for result in _results(path)]
    else:
        raise ValueError(f"there is no run {path}; give a folder of `cclm iglue evaluate --output`, or a .json file")
    if not found:
        raise ValueError(f"{path} holds no results; give a folder of `cclm iglue evaluate --output`, or a .json file")
    found = [one if one.result.system else replace(one, result=replace(one.result, system=path.stem)) for one in found]
    cells: dict[tuple[str, ...], list[Measured]] = {}
    for one in found:
        cells.setdefault(one.cell, []).append(one)
    return [_newest(own, path) for own in cells.values()]


def _cell(file: Path) -> Measured:
    predictions = file.parent.parent / PREDICTIONS / f"{file.stem}.jsonl"
    try:
        result = Result.of(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it, and `evaluate` makes it again") from None
    return Measured(result, predictions if predictions.is_file() else None, file)


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


# -- one thing measured twice --------------------------------------------------------------------------------------


def _newest(found: list[Measured], path: Path) -> Measured:
    """Of the results of one cell in one run. Errors: ValueError where these were not made in one way."""
    *older, newest = sorted(found, key=_age)
    for one in older:
        if one.settings != newest.settings or (newest.file is None and one.result != newest.result):
            raise ValueError(_clash(one, newest, path))
    return replace(newest, older=tuple(older))


def _age(one: Measured) -> tuple[int, str]:
    return (one.file.stat().st_mtime_ns, one.file.name) if one.file else (0, "")


def _clash(one: Measured, other: Measured, path: Path) -> str:
    files = f"{one.file} and {other.file}" if one.file else f"two results in {path}"
    first, second = one.settings, other.settings
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    differs = ", ".join(f"{name} ({first.get(name, 'none')} and {second.get(name, 'none')})" for name in names)
    differs = differs or ", ".join(changed(one, other)) or "scores alone"
    return (
        f"{files} are of one cell, {' '.join(filter(None, one.cell))}, and differ in {differs}; evaluate one with "
        "another --system, or remove one"
    )


def changed(one: Measured, other: Measured) -> list[str]:
    """What of the test or the model differs between two results of one cell: "texts", "ids", "model", "pictures".

    What was drawn on a picture is told only in part: two files of one folder that differ in nothing else do in that.
    """
    first, second = (_inputs(item.result) for item in (one, other))
    found = [name for name, value in first.items() if value and second[name] and value != second[name]]
    stands_in = [StandIns.note in item.result.notes for item in (one, other)]
    if "pictures" not in found and stands_in[0] != stands_in[1]:
        found.append("pictures")
    return found


def _inputs(result: Result) -> Mapping[str, str]:
    names = {"texts": "texts_sha256", "model": "model_sha256", "pictures": "pictures_sha256"}
    return {"ids": result.ids} | {name: result.provenance.get(key, "") for name, key in names.items()}


def superseded(runs: Iterable[Measured]) -> Iterator[tuple[str, list[Path]]]:
    """What has changed since, in words, and the files that are left out for newer ones."""
    found: dict[str, dict[Path, None]] = {}
    for newest in runs:
        for one in newest.older:
            if one.file is not None:
                found.setdefault(", ".join(changed(one, newest) or ["pictures"]), {})[one.file] = None
    for told, files in found.items():
        yield told, list(files)


def read_runs(paths: Sequence[Path]) -> list[Measured]:
    """All of several runs, equal ones once. Where two runs differ on one thing, their own names follow the system's.

    Errors: ValueError as of `read_run`, and for two runs of one name that differ.
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
                    f"two runs named {path.stem} differ on {' '.join(filter(None, named.cell))}; rename one folder or "
                    "file, by which they are told apart"
                )
    return list(found.values())
