"""`cclm iglue report`: what runs have measured, beside the literature: tables, charts and files for other programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.evaluation.aggregate import Aggregate
    from cclm.evaluation.comparison import Compared
    from cclm.evaluation.exports import Exported
    from cclm.evaluation.number import Number
    from cclm.evaluation.runs import Measured
    from cclm.evaluation.survey import Survey
    from cclm.evaluation.tables import Table
    from cclm.evaluation.variance import RankVariance

LITERATURE = ("verified", "all", "none")
PLAIN = ("markdown", "latex", "csv", "json", "png")
FILES = (
    "report.md",
    "report.tex",
    "report.csv",
    "report.json",
    "*.png",
    "clip_benchmark/*.json",
    "mteb/*/*.json",
    "trec/*",
)
COLUMNS = (
    *("system", "task", "language", "protocol", "split", "regime", "shots", "direction", "metric", "value"),
    *("low", "high", "items", "captions_per_image", "ids", "notes", "source", "verified"),
)


def options(parser: ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or files of `cclm iglue score --json`")
    parser.add_argument("--output", type=Path, default=None, help="a folder; without one the tables are printed")
    parser.add_argument(
        "--format", type=str, default=",".join(PLAIN), help=f"{','.join(PLAIN)},clip_benchmark,mteb,trec: some of these"
    )
    parser.add_argument(
        "--with-published", default="verified", help="all, verified or none of the literature's numbers"
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, default=None, help="two runs' folders: paired tests, item by item"
    )
    parser.add_argument("--json", action="store_true", help="without --output: machine-readable, not Markdown")


def run(given: Namespace) -> None:
    """Everything that can be wrong is looked at before the work."""
    from cclm.evaluation.comparison import compare_runs
    from cclm.evaluation.runs import read_run, read_runs, superseded
    from cclm.evaluation.survey import Survey
    from cclm.evaluation.variance import rank_variances
    from cclm.storage import check_replaceable

    formats = _formats(given.format)
    if given.with_published not in LITERATURE:
        raise ValueError(f"--with-published is {given.with_published!r}; give {', '.join(LITERATURE)}")
    if given.output is not None:
        check_replaceable(given.output, FILES)
    runs = read_runs(given.runs)
    survey = Survey(tuple(one.result for one in runs), given.with_published)
    pair = [read_run(path) for path in given.compare or ()]
    compared = compare_runs(*pair) if pair else []
    older = list(superseded([*runs, *chain.from_iterable(pair)]))
    material = Material(survey, runs, compared, list(rank_variances(runs)), older)
    if given.output is not None:
        for line in [*write(material, given.output, formats), *_superseded(material)]:
            print(line)
    elif given.json:
        print(json.dumps(report(material), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(text(material), end="")


def _formats(given: str) -> list[str]:
    known = list(_WRITERS)
    formats = [name for name in given.split(",") if name]
    unknown = [name for name in formats if name not in known]
    if unknown or not formats:
        raise ValueError(
            f"--format {given!r}: no format {', '.join(unknown) or 'is named'}; give some of {', '.join(known)}"
        )
    return formats


@dataclass(frozen=True)
class Material:
    """All that a report is made of. `superseded`: what has changed since, and the older files that are left out."""

    survey: Survey
    runs: Sequence[Measured]
    comparisons: Sequence[Compared]
    variances: Sequence[RankVariance]
    superseded: Sequence[tuple[str, Sequence[Path]]] = ()


def write(material: Material, output: Path, formats: Iterable[str]) -> list[str]:
    """The files, all or none; what to tell of them."""
    from cclm.storage import whole_folder

    told = []
    with whole_folder(output) as folder:
        for name in formats:
            told += [line.replace(str(folder), str(output)) for line in _WRITERS[name](material, folder)]
    return told


def _markdown(material: Material, folder: Path) -> list[str]:
    (folder / "report.md").write_text(text(material), encoding="utf-8")
    return [f"{folder / 'report.md'}"]


def _latex(material: Material, folder: Path) -> list[str]:
    from cclm.evaluation.tables import latex

    (folder / "report.tex").write_text(latex(_tables(material)), encoding="utf-8")
    return [f"{folder / 'report.tex'}: needs \\usepackage{{booktabs}}"]


def _json(material: Material, folder: Path) -> list[str]:
    content = json.dumps(report(material), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "report.json").write_text(content, encoding="utf-8")
    return [f"{folder / 'report.json'}"]


def _csv(material: Material, folder: Path) -> list[str]:
    survey = material.survey
    with open(folder / "report.csv", "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        variances = [found.number for found in material.variances]
        writer.writerows(map(_row, [*survey.own, *survey.aggregates(), *variances, *survey.known]))
    return [f"{folder / 'report.csv'}"]


def _png(material: Material, folder: Path) -> list[str]:
    from cclm.evaluation.plots import charts, save

    count = 0
    for name, figure in charts(material.survey):
        save(figure, folder / f"{name}.png")
        count += 1
    return [f"{folder}: {count} charts"]


def _clip_benchmark(material: Material, folder: Path) -> list[str]:
    from cclm.evaluation.exports import clip_benchmark

    return _exported(clip_benchmark(material.runs), folder / "clip_benchmark")


def _mteb(material: Material, folder: Path) -> list[str]:
    from cclm.evaluation.exports import mteb

    return _exported(mteb(material.runs), folder / "mteb")


def _trec(material: Material, folder: Path) -> list[str]:
    from cclm.evaluation.exports import trec

    lists = folder / "trec"
    lists.mkdir()
    left_out = trec(material.runs, lists).reasons()
    return [f"{lists}: {len(list(lists.iterdir()))} files", *(f"{lists}: {line}" for line in left_out)]


def _exported(exported: Exported, folder: Path) -> list[str]:
    for name, content in exported.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return [f"{folder}: {len(exported.files)} files", *(f"{folder}: {line}" for line in exported.reasons())]


_WRITERS: dict[str, Callable[[Material, Path], list[str]]] = {
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "json": _json,
    "png": _png,
    "clip_benchmark": _clip_benchmark,
    "mteb": _mteb,
    "trec": _trec,
}


def _row(number: Number | Aggregate) -> dict[str, Any]:
    """A number as a line of a tidy table; an aggregate's words are among its notes."""
    low, high = number.interval or ("", "")
    notes = [*number.notes, *([number.words] if hasattr(number, "words") else [])]
    own = {name: getattr(number, name) for name in COLUMNS if hasattr(number, name)}
    return own | {
        "low": low,
        "high": high,
        "captions_per_image": number.captions,
        "notes": "; ".join(notes),
        "verified": "yes" if number.verified else "no",
    }


def report(material: Material) -> dict[str, Any]:
    """Results in the form that `score --json` has; aggregates in the same, with `languages`, `missing` and `words`, and
    published numbers with `source` and `verified`, with null for what nobody says.
    """
    survey = material.survey
    return {
        "results": [result.to_dict() for result in survey.results],
        "superseded": [{"changed": changed, "files": list(map(str, files))} for changed, files in material.superseded],
        "aggregates": _joined(survey.aggregates(), ("languages", "missing", "words")),
        "published": _joined(survey.known, ("source", "verified")),
        "rank_variances": [found.to_dict() for found in material.variances],
        "comparisons": [comparison.to_dict() for comparison in material.comparisons],
    }


def _joined(numbers: Iterable[Number], told: Sequence[str]) -> list[dict[str, Any]]:
    """Numbers of one thing together, as Result.to_dict has them; and what is told of these besides."""
    from cclm.evaluation.number import CELL, SIZES

    first = ("task", "language", "protocol", "items")
    rest = ("system", "regime", "shots", "split", "ids", "notes", *told)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in numbers:
        kind = tuple(getattr(one, name) for name in (*CELL, "items", "source", "verified"))
        stored = found.setdefault(kind, {name: getattr(one, name) for name in first})
        scores = stored
        if one.direction:
            scores = stored.setdefault(one.direction, {size: getattr(one, size) for size in SIZES})
        scores[one.metric] = one.value
        stored |= {name: getattr(one, name) for name in rest} | {"provenance": {}}
    return list(found.values())


def text(material: Material) -> str:
    """In Markdown."""
    from cclm.evaluation.comparison import markdown as compared
    from cclm.evaluation.markdown import plain
    from cclm.evaluation.tables import markdown

    older = "".join(f"\n{plain(line)}\n" for line in _superseded(material))
    return markdown(_tables(material)) + compared(material.comparisons) + older


def _tables(material: Material) -> list[Table]:
    from cclm.evaluation.tables import tables
    from cclm.evaluation.variance import tables as varied

    return [*tables(material.survey), *varied(material.variances)]


def _superseded(material: Material) -> Iterator[str]:
    """A line per change: which older results a report leaves out."""
    for changed, files in material.superseded:
        yield f"superseded, left out: older results of other {changed}: {', '.join(map(str, files))}"
