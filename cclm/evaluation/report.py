"""The outcome of an evaluation: a JSON file, a table on screen, a bar chart beside the file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cclm.storage import whole_file

if TYPE_CHECKING:
    from rich.table import Table

METRICS = ("R@1", "R@5", "R@10", "mean_recall", "median_rank", "mean_reciprocal_rank")


@dataclass(frozen=True)
class Provenance:
    """What was evaluated on what, and when (ISO date). Hashes are SHA-256 in hex."""

    model: str
    model_hash: str
    data: str
    data_hash: str
    date: str


@dataclass(frozen=True)
class Report:
    """`languages[language][direction][metric]`; a direction is text_to_image, image_to_text, or either `_rerank`.

    `texts[language]` says which texts those were and how many were left out.
    """

    languages: dict[str, dict[str, dict[str, Any]]]
    texts: dict[str, dict[str, Any]]
    protocol: dict[str, str]
    provenance: Provenance

    def directions(self) -> list[str]:
        """Directions that were measured, in their order."""
        return list(next(iter(self.languages.values())))

    def mean(self, direction: str, without: tuple[str, ...] = ()) -> dict[str, float]:
        """Unweighted mean over languages of each metric; empty if none is left."""
        chosen = [scores[direction] for language, scores in self.languages.items() if language not in without]
        return {name: sum(s[name] for s in chosen) / len(chosen) for name in METRICS} if chosen else {}

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        averages = {"mean": {way: self.mean(way) for way in self.directions()}}
        if set(self.languages) - {"en"}:
            averages["mean_without_en"] = {way: self.mean(way, without=("en",)) for way in self.directions()}
        described = {"texts": self.texts, "protocol": self.protocol, **asdict(self.provenance)}
        return {"languages": self.languages, **averages, **described}

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """A report written before. Errors: OSError where it is missing, ValueError where it is no such report."""
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            provenance = Provenance(**{name: stored[name] for name in Provenance.__dataclass_fields__})
            return cls(stored["languages"], stored["texts"], stored["protocol"], provenance)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no report of `cclm evaluate` ({error!r}); write it again") from error

    def write(self, path: Path | str, baseline: Report | None = None) -> None:
        """Write the JSON file and, beside it, the chart under the same name as PNG."""
        path = Path(path)
        if path.suffix != ".json":
            raise ValueError(f"report path {path} must end in .json; the chart goes beside it as .png")
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
        with whole_file(path.with_suffix(".png")) as partial:
            chart(self, partial, baseline)


def table(report: Report, baseline: Report | None = None) -> Table:
    """R@1, R@5, R@10 per language and direction, with the interval of R@10, chance, and the baseline's R@10."""
    from rich.table import Table

    ways = [way for way in ("text_to_image", "image_to_text") if way in report.directions()]
    view = Table(title="retrieval, % of queries", caption=report.protocol.get("rerank"), title_justify="left")
    view.add_column("language")
    for way in ways:
        short = {"text_to_image": "text → image", "image_to_text": "image → text"}[way]
        view.add_column(f"{short}\nR@1", justify="right")
        view.add_column("\nR@5", justify="right")
        view.add_column("\nR@10", justify="right", style="bold")
        view.add_column("\n95 %", justify="right", style="dim")
        if f"{way}_rerank" in report.directions():
            view.add_column("reranked\nR@10", justify="right", style="bold green")
        if baseline:
            view.add_column("baseline\nR@10", justify="right", style="dim")
        view.add_column("chance\nR@10", justify="right", style="dim")
    for language, scores in report.languages.items():
        other = baseline.languages.get(language) if baseline else None
        view.add_row(language, *(cell for way in ways for cell in _cells(scores, way, other, baseline is not None)))
    if set(report.languages) - {"en"} and len(report.languages) > 1:
        view.add_section()
        means = {way: report.mean(way, without=("en",)) for way in report.directions()}
        others = {way: baseline.mean(way, without=("en",)) for way in baseline.directions()} if baseline else None
        cells = (cell for way in ways for cell in _cells(means, way, others, baseline is not None))
        view.add_row("mean without en", *cells)
    return view


def _cells(scores: dict[str, dict], way: str, baseline: dict[str, dict] | None, compared: bool) -> list[str]:
    own = scores[way]
    cells = [f"{own[name]:.1f}" for name in ("R@1", "R@5", "R@10")]
    interval = own.get("R@10_interval")
    cells.append(f"{interval[0]:.1f}–{interval[1]:.1f}" if interval else "")
    if f"{way}_rerank" in scores:
        cells.append(f"{scores[f'{way}_rerank']['R@10']:.1f}")
    if compared:
        cells.append(f"{baseline[way]['R@10']:.1f}" if baseline and baseline.get(way) else "")
    cells.append(f"{own['chance']['R@10']:.1f}" if "chance" in own else "")
    return cells


def chart(report: Report, path: Path, baseline: Report | None = None, direction: str = "text_to_image") -> None:
    """R@10 per language as bars with 95 % intervals and a line at chance, saved as PNG."""
    # The object interface without pyplot: no display, no global state, safe inside a training process.
    from matplotlib.figure import Figure

    names = list(report.languages)
    series = [("similarity", report, direction, "#2f6db3")]
    if f"{direction}_rerank" in report.directions():
        series.append(("reranked by matching", report, f"{direction}_rerank", "#e0872b"))
    if baseline:
        series.append((Path(baseline.provenance.model).name or "baseline", baseline, direction, "#b8bec6"))
    figure = Figure(figsize=(max(6.0, 1.6 + 0.24 * len(names) * (len(series) + 0.8)), 4.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for place, (label, source, way, colour) in enumerate(series):
        shift = (place - (len(series) - 1) / 2) * width
        rows = [(x, source.languages[name][way]) for x, name in enumerate(names) if name in source.languages]
        heights = [scores["R@10"] for _, scores in rows]
        axes.bar([x + shift for x, _ in rows], heights, width * 0.94, label=label, color=colour, zorder=2)
        whiskers = [(x, s["R@10"], s["R@10_interval"]) for x, s in rows if "R@10_interval" in s]
        if whiskers:
            spread = [[r - low for _, r, (low, _) in whiskers], [high - r for _, r, (_, high) in whiskers]]
            spots = [x + shift for x, _, _ in whiskers]
            heights = [r for _, r, _ in whiskers]
            axes.errorbar(spots, heights, spread, fmt="none", ecolor="#1d2430", elinewidth=1, capsize=2)
    for x, name in enumerate(names):
        level = report.languages[name][direction]["chance"]["R@10"]
        axes.plot([x - 0.46, x + 0.46], [level, level], color="#c0392b", lw=1.6, zorder=3, label="" if x else "chance")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, min(100.0, 5 + 1.08 * axes.get_ylim()[1]))
    axes.set_ylabel("R@10, %")
    first = report.languages[names[0]][direction]
    axes.set_title(f"{direction.replace('_', ' ')} retrieval, gallery of {first['gallery']:,}", loc="left", fontsize=11)
    axes.grid(axis="y", color="#e3e6ea", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(series) + 1, loc="upper right", fontsize=9)
    figure.savefig(path, dpi=150, format="png")
