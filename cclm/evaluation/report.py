"""The outcome of an evaluation: a JSON file, a table on screen, a bar chart beside the file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cclm.storage import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Group
    from rich.table import Table

METRICS = ("R@1", "R@5", "R@10", "mean_recall", "median_rank", "mean_reciprocal_rank", "accuracy", "consistency")


@dataclass(frozen=True)
class Provenance:
    """What was evaluated on what, and when (ISO date). Hashes are SHA-256 in hex.

    `choice`: how the model's step was chosen; empty where it is the last one.
    """

    model: str
    model_hash: str
    data: str
    data_hash: str
    date: str
    choice: str = ""


@dataclass(frozen=True)
class Report:
    """`languages[language][direction][metric]`; a direction is text_to_image, image_to_text, either with `_rerank`, or
    statements.

    `texts[language]` says which texts those were and how many were left out; `skipped` counts, by reason, the samples
    of the data that could not be read.
    """

    languages: dict[str, dict[str, dict[str, Any]]]
    texts: dict[str, dict[str, Any]]
    protocol: dict[str, str]
    provenance: Provenance
    skipped: dict[str, int] = field(default_factory=dict)

    def directions(self) -> list[str]:
        """Directions that were measured, in their order."""
        return list(next(iter(self.languages.values())))

    def mean(self, direction: str, without: tuple[str, ...] = ()) -> dict[str, float]:
        """Unweighted mean over languages of each metric; empty if none is left."""
        chosen = [scores[direction] for language, scores in self.languages.items() if language not in without]
        names = [name for name in METRICS if chosen and name in chosen[0]]
        return {name: sum(s[name] for s in chosen) / len(chosen) for name in names}

    def headline(self, direction: str) -> str:
        """The metric that a table sets in bold and a chart shows."""
        return "accuracy" if "accuracy" in next(iter(self.languages.values()))[direction] else "R@10"

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        averages = {"mean": {way: self.mean(way) for way in self.directions()}}
        if set(self.languages) - {"en"}:
            averages["mean_without_en"] = {way: self.mean(way, without=("en",)) for way in self.directions()}
        described = {"texts": self.texts, "skipped": self.skipped, "protocol": self.protocol}
        return {"languages": self.languages, **averages, **described, **asdict(self.provenance)}

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """A report written before. Errors: OSError where it is missing, ValueError where it is no such report."""
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            stored = {"choice": ""} | stored  # reports of before have none
            provenance = Provenance(**{name: stored[name] for name in Provenance.__dataclass_fields__})
            return cls(stored["languages"], stored["texts"], stored["protocol"], provenance, stored["skipped"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no report of `cclm evaluate` ({error!r}); give another path") from error

    def write(self, path: Path | str, baseline: Report | None = None) -> None:
        """Write the JSON file and, beside it, the chart under the same name as PNG."""
        path = check_output(path)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with whole_file(path) as partial, whole_file(path.with_suffix(".png")) as picture:  # both or none
            partial.write_text(text, encoding="utf-8")
            chart(self, picture, baseline)


def check_output(path: Path | str, read: Callable[[Path], object] = Report.read) -> Path:
    """The path of a report to be written: to be called before the work. `read`: of a report of its kind.

    Errors: ValueError for what is not .json or holds anything but a report, OSError where nothing can be written.
    """
    path = Path(path)
    if path.suffix != ".json" or path.is_dir():
        raise ValueError(f"report path {path} must be a file ending in .json; the chart goes beside it as .png")
    if path.exists():
        read(path)
    elif path.with_suffix(".png").exists():
        raise ValueError(f"{path.with_suffix('.png')} stands where the chart would go and is none; choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(f"report path {path} cannot be written ({error.strerror}); choose another") from None
    return path


def table(report: Report, baseline: Report | None = None) -> Group:
    """One table per direction: recalls per language, interval of R@10, median rank, chance; within 80 columns."""
    from rich.console import Group

    ways = [way for way in report.directions() if not way.endswith("_rerank")]
    tables = {"R@10": _direction_table, "accuracy": _statement_table}
    return Group(*(tables[report.headline(way)](report, way, baseline) for way in ways))


def _statement_table(report: Report, way: str, baseline: Report | None) -> Table:
    from rich import box
    from rich.table import Table

    columns = ["accuracy", "95 %", "consistency", "statements", "chance"] + ["baseline"] * (baseline is not None)
    view = Table(title=f"{way}, %", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0))
    view.add_column("language", no_wrap=True)
    for name in columns:
        style = {"accuracy": "bold", "95 %": "dim", "chance": "dim"}.get(name, "")
        view.add_column(name, style, justify="right", no_wrap=True)
    rows = {language: scores[way] for language, scores in report.languages.items()}
    if "en" in rows and len(rows) > 1:
        rows["mean, no en"] = report.mean(way, without=("en",))
    for name, own in rows.items():
        low, high = own.get("accuracy_interval", (None, None))
        cells = [f"{own['accuracy']:.1f}", "" if low is None else f"{low:.1f}–{high:.1f}", f"{own['consistency']:.1f}"]
        cells += [f"{own['statements']:,}", f"{own['chance']['accuracy']:.1f}"] if "chance" in own else ["", ""]
        if baseline is not None:
            other = baseline.languages.get(name, {}).get(way)
            cells.append(f"{other['accuracy']:.1f}" if other else "")
        view.add_row(name, *cells)
    return view


def _direction_table(report: Report, way: str, baseline: Report | None) -> Table:
    from rich import box
    from rich.table import Table

    galleries = sorted({scores[way]["gallery"] for scores in report.languages.values()})
    size = " to ".join(f"{number:,}" for number in dict.fromkeys((galleries[0], galleries[-1])))
    view = Table(
        title=f"{way.replace('_', ' ')}, %, gallery of {size}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
    )
    view.add_column("language", no_wrap=True)
    reranked = f"{way}_rerank" in report.directions()
    columns = ["R@1", "R@5", "R@10", "95 %", "median rank"]
    columns += ["reranked R@10"] * reranked + ["baseline R@10"] * (baseline is not None) + ["chance R@10"]
    for name in columns:
        style = {"R@10": "bold", "reranked R@10": "bold"}.get(name, "dim" if name[0] not in "Rm" else "")
        view.add_column(
            name.replace(" R@10", "\nR@10").replace(" rank", "\nrank"), style, justify="right", no_wrap=True
        )
    for language, scores in report.languages.items():
        other = baseline.languages.get(language) if baseline else None
        view.add_row(language, *_cells(scores, way, other, baseline is not None))
    if "en" in report.languages and len(report.languages) > 1:
        view.add_section()
        means = {name: report.mean(name, without=("en",)) for name in report.directions()}
        others = {way: baseline.mean(way, without=("en",))} if baseline else None
        view.add_row("mean, no en", *_cells(means, way, others, baseline is not None))
    return view


def _cells(scores: dict[str, dict], way: str, baseline: dict[str, dict] | None, compared: bool) -> list[str]:
    own = scores[way]
    cells = [f"{own[name]:.1f}" for name in ("R@1", "R@5", "R@10")]
    interval = own.get("R@10_interval")
    cells.append(f"{interval[0]:.1f}–{interval[1]:.1f}" if interval else "")
    cells.append(f"{own['median_rank']:.1f}")
    if f"{way}_rerank" in scores:
        cells.append(f"{scores[f'{way}_rerank']['R@10']:.1f}")
    if compared:
        cells.append(f"{baseline[way]['R@10']:.1f}" if baseline and baseline.get(way) else "")
    cells.append(f"{own['chance']['R@10']:.1f}" if "chance" in own else "")
    return cells


def chart(report: Report, path: Path, baseline: Report | None = None) -> None:
    """The first direction's R@10, or accuracy, per language: bars, 95 % intervals, a line at chance, saved as PNG."""
    # The object interface without pyplot: no display, no global state, safe inside a training process.
    from matplotlib.figure import Figure

    names, direction = list(report.languages), report.directions()[0]
    metric = report.headline(direction)
    series = [("similarity" if metric == "R@10" else "model", report, direction, "#2f6db3")]
    if f"{direction}_rerank" in report.directions():
        series.append(("reranked by matching", report, f"{direction}_rerank", "#e0872b"))
    if baseline:
        series.append((f"baseline: {Path(baseline.provenance.model).name}", baseline, direction, "#9aa3ae"))
    figure = Figure(
        figsize=(min(15.0, max(6.5, 1.6 + 0.2 * len(names) * (len(series) + 1))), 4.2), layout="constrained"
    )
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for place, bars in enumerate(series):
        _bars(axes, names, (*bars, metric), (place - (len(series) - 1) / 2) * width, width)
    for x, name in enumerate(names):
        level = report.languages[name][direction]["chance"][metric]
        line = {"color": "#c0392b", "linestyle": (0, (3, 1.5)), "linewidth": 1.1, "zorder": 3}
        axes.plot([x - 0.5, x + 0.5], [level, level], label="" if x else "chance", **line)
    axes.set_xticks(range(len(names)), names)
    middle, half = (len(names) - 1) / 2, max(len(names) / 2, 3.0)  # few languages: slim bars all the same
    axes.set_xlim(middle - half - 0.1, middle + half + 0.1)
    axes.set_ylim(0, min(100.0, 2 + 1.03 * axes.get_ylim()[1]))
    axes.set_ylabel(f"{metric}, %")
    first = report.languages[names[0]][direction]
    title = (
        f" retrieval, gallery of {first['gallery']:,}" if "gallery" in first else f" about {first['images']:,} images"
    )
    axes.set_title(direction.replace("_", " ") + title, loc="left", fontsize=11)
    axes.grid(axis="y", color="#e3e6ea", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=len(series) + 1, loc="outside lower center", fontsize=9)
    figure.savefig(path, dpi=150, format="png")


def _bars(axes: Axes, names: list[str], series: tuple[str, Report, str, str, str], shift: float, width: float) -> None:
    label, report, way, colour, metric = series
    rows = [(x + shift, report.languages[name][way]) for x, name in enumerate(names) if name in report.languages]
    axes.bar([x for x, _ in rows], [s[metric] for _, s in rows], width * 0.92, label=label, color=colour, zorder=2)
    rows = [(x, s[metric], *s[f"{metric}_interval"]) for x, s in rows if f"{metric}_interval" in s]
    if rows:
        places, heights, low, high = zip(*rows, strict=True)
        # A recall of exactly 0 or 100 can lie a rounding error outside its own interval.
        down = [max(0.0, h - x) for h, x in zip(heights, low, strict=True)]
        up = [max(0.0, x - h) for h, x in zip(heights, high, strict=True)]
        axes.errorbar(places, heights, [down, up], fmt="none", ecolor="#1d2430", elinewidth=0.9, capsize=1.8, zorder=4)
