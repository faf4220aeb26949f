"""Charts of a survey: bars per language beside the published systems, few-shot curves over labelled examples.

Matplotlib's object interface without pyplot: no display, no global state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from cclm.evaluation.aggregate import FEW_SHOT
from cclm.evaluation.number import AVERAGE, Number
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.survey import REGIMES, Line, Survey, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by every kind of eye; the published stand in greys, each with a marker of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
GREYS = ("#3d4450", "#7b8492", "#5a6270", "#9aa3ae")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
GREY_MARKERS = ("s", "D", "^", "v")
GRID, WARNING = "#e3e6ea", "#b3261e"
PUBLISHED = 4  # published systems in a chart: more cannot be told apart
GROUPS = 14  # languages side by side; more go below
BARS = 72  # in a row of a chart, about
MOST_OWN = 8


@dataclass(frozen=True)
class Series:
    """Values by language, as a chart shows them. `points`: of a curve, by labelled examples; `line` is the last."""

    label: str
    line: Line
    colour: str
    marker: str
    points: dict[int, Line] = field(default_factory=dict)

    @property
    def about_average(self) -> str:
        """In words, of what averages there are; of those over a part of the languages, that they are not shown."""
        said: dict[str, None] = {}
        for line in self.points.values() or [self.line]:
            if (average := line.average) and average.missing:
                there, missing = len(average.languages), len(average.missing)
                said[f"{'elsewhere ' if said else ''}{there} of {there + missing} languages, not shown"] = None
            elif average:
                said[average.words] = None
        return "; ".join(said)

    def value(self, language: str) -> Number | None:
        """An average over a part of the languages is not to stand beside whole ones."""
        average = self.line.average
        whole = average is not None and not average.missing
        return (average if whole else None) if language == AVERAGE else self.line.numbers.get(language)


def charts(survey: Survey) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every chart there is something to show in."""
    for view in survey.views():
        lines = survey.lines(view)
        for regime in REGIMES:
            if shown := [line for line in lines if line.head.regime == regime]:
                yield f"{view.slug}_{regime}", bars(survey, view, shown)
        if figure := curves(survey, view):
            yield f"{view.slug}_{FEW_SHOT}", figure


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=200, format="png")


def _chosen(lines: Sequence[Line]) -> tuple[list[Series], int]:
    """Our own, and the published under the same protocol: the best of each source before the second best of any; and
    how many are left out.
    """
    own = [line for line in lines if line.own]
    same = {line.head.protocol for line in own}
    known = [line for line in lines if not line.own and line.numbers and line.average and line.head.protocol in same]
    known.sort(key=lambda line: -line.average.value if line.average else 0.0)
    sources = [line.head.source for line in known]
    before = [sources[:place].count(source) for place, source in enumerate(sources)]
    known = [line for _, line in sorted(zip(before, known, strict=True), key=lambda pair: pair[0])]
    protocols = {line.head.protocol for line in own + known[:PUBLISHED]}
    shown = [
        Series(_label(line, len(protocols) > 1), line, COLOURS[place], MARKERS[place])
        for place, line in enumerate(own[:MOST_OWN])
    ]
    shown += [
        Series(_label(line, len(protocols) > 1), line, GREYS[place], GREY_MARKERS[place])
        for place, line in enumerate(known[:PUBLISHED])
    ]
    return shown, len(own[MOST_OWN:]) + len(known[PUBLISHED:])


def _label(line: Line, protocol: bool) -> str:
    head = line.head
    name = head.system if line.own else f"{head.system} (published)"
    return f"{name}, {head.protocol}" if protocol else name


def bars(survey: Survey, view: View, lines: Sequence[Line]) -> Figure:
    """Per language and on average: our own as bars with 95 % intervals, the published as markers beside them."""
    from matplotlib.figure import Figure

    shown, left_out = _chosen(lines)
    whole = any(series.line.own and series.value(AVERAGE) for series in shown)
    there = [name for name in survey.languages(view) if any(s.value(name) for s in shown if s.line.own)]
    languages = [*there, *([AVERAGE] if whole else [])]
    per_row = max(4, min(GROUPS, BARS // max(1, sum(series.line.own for series in shown))))
    count = -(-len(languages) // per_row)
    cuts = [len(languages) * row // count for row in range(count + 1)]
    rows = [languages[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
    size = max(map(len, rows))
    height = 1.1 + (2.5 if count < 3 else 1.8) * count + 0.07 * len(shown)
    figure = Figure(figsize=(_width(shown, size), height), layout="constrained")
    panels = figure.subplots(len(rows), 1, sharey=True, squeeze=False)[:, 0]
    numbers = [number for series in shown for name in languages if (number := series.value(name)) is not None]
    top = max(number.interval[1] if number.interval else number.value for number in numbers)
    for axes, names in zip(panels, rows, strict=True):
        _groups(axes, shown, names, size)
        axes.set_ylim(0, min(101.0, 1.05 * top + 1))
        axes.set_ylabel(f"{_metric(view)}, %")
    _finish(figure, view, lines[0].head.regime, shown, left_out)
    return figure


def _width(shown: Sequence[Series], groups: int) -> float:
    own = sum(series.line.own for series in shown)
    return min(11.0, max(5.2, 1.2 + groups * (0.30 + 0.13 * own + 0.09 * (len(shown) - own))))


def _groups(axes: Axes, shown: Sequence[Series], names: Sequence[str], size: int) -> None:
    weights = [1.0 if series.line.own else 0.62 for series in shown]
    unit = min(0.82 / sum(weights), 0.28)
    left = -unit * sum(weights) / 2
    for series, weight in zip(shown, weights, strict=True):
        places = [(x, number) for x, name in enumerate(names) if (number := series.value(name)) is not None]
        middle = [x + left + unit * weight / 2 for x, _ in places]
        heights = [number.value for _, number in places]
        if series.line.own:
            hatch = {"hatch": "////", "edgecolor": "white"} if series.line.stands_in else {}
            axes.bar(middle, heights, unit * 0.9, color=series.colour, zorder=2, linewidth=0, **hatch)
            _intervals(axes, middle, [number for _, number in places])
        else:
            axes.vlines(middle, 0, heights, color=series.colour, linewidth=0.8, alpha=0.45, zorder=2)
            style: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4, "linestyle": "none"}
            axes.plot(middle, heights, series.marker, color=series.colour, markersize=5, zorder=3, **style)
        left += unit * weight
    axes.set_xticks(range(len(names)), ["average" if name == AVERAGE else name for name in names])
    spare = max(0.0, 3 - size) / 2  # few languages: slim bars all the same
    axes.set_xlim(-0.6 - spare, size - 0.4 + spare)
    if AVERAGE in names and len(names) > 1:
        axes.axvline(len(names) - 1.5, color="#9aa3ae", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    _plain(axes)


def _intervals(axes: Axes, places: Sequence[float], numbers: Sequence[Number]) -> None:
    there = [(x, number) for x, number in zip(places, numbers, strict=True) if number.interval is not None]
    if there:
        heights = [number.value for _, number in there]
        down = [max(0.0, number.value - number.interval[0]) for _, number in there if number.interval]
        up = [max(0.0, number.interval[1] - number.value) for _, number in there if number.interval]
        style = {"fmt": "none", "ecolor": "#1d2430", "elinewidth": 0.8, "capsize": 1.5, "zorder": 4}
        axes.errorbar([x for x, _ in there], heights, [down, up], **style)


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color=GRID, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _metric(view: View) -> str:
    return view.metric.replace("_", " ")


def _finish(figure: Figure, view: View, regime: str, shown: Sequence[Series], left_out: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    protocols = {series.line.head.protocol for series in shown}
    protocol = f", {protocols.pop()} protocol" if len(protocols) == 1 else ""
    title = f"{view.title}, {regime}{protocol}"
    handles: list[Any] = []
    for series in shown:
        if series.line.own and regime != FEW_SHOT:
            hatch = {"hatch": "////", "edgecolor": "white"} if series.line.stands_in else {}
            handles.append(Patch(facecolor=series.colour, label=series.label, linewidth=0, **hatch))
        else:
            curve = regime == FEW_SHOT
            face = "white" if curve and not series.line.own else series.colour
            look = {"marker": series.marker, "markerfacecolor": face, "linestyle": "-" if curve else "none"}
            handles.append(Line2D([], [], color=series.colour, markersize=5, label=series.label, **look))
    width = int(16.5 * figure.get_figwidth())
    below = [part for line in _below(shown, left_out) for part in wrap(line, width, subsequent_indent="  ")]
    figure.set_figheight(figure.get_figheight() + 0.13 * max(0, len(below) - 2))
    if any(series.line.stands_in for series in shown):
        figure.suptitle(f"{title}\n{StandIns.note}", fontsize=10, x=0.01, ha="left", color=WARNING)
    else:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    columns = max(1, min(4, int(figure.get_figwidth() / (0.75 + 0.075 * max(len(s.label) for s in shown)))))
    figure.legend(
        handles=handles, frameon=False, ncols=columns, loc="outside lower center", fontsize=8,
        title="\n".join(below) or None, title_fontsize=7.5,
    )  # fmt: skip


def _below(shown: Sequence[Series], left_out: int) -> Iterator[str]:
    """What is said under a chart: what each average is of, series of the same together; partial tests; what lacks."""
    about: dict[str, list[str]] = {}
    averaged = any(series.points or series.line.own and series.value(AVERAGE) for series in shown)
    for series in shown:
        if (words := series.about_average) and (averaged or series.line.own):
            about.setdefault(words, []).append(series.label)
    for words, labels in about.items():
        yield f"average: {words}" if len(labels) == len(shown) else f"average of {'; '.join(labels)}: {words}"
    yield from dict.fromkeys(note for series in shown for note in series.line.partial)
    if left_out:
        yield f"{left_out} more systems stand in the table"


def curves(survey: Survey, view: View) -> Figure | None:
    """Few-shot: over labelled examples, a panel for the mean and one per language; the published behind, in grey."""
    from matplotlib.figure import Figure

    lines = survey.shots(view)
    if not any(line.own for line in lines):
        return None
    assert view.task is not None and view.task.shots is not None
    examples = {"": 0} | dict(view.task.shots.examples)
    systems: dict[tuple[str, str, bool], dict[int, Line]] = {}
    for line in lines:
        systems.setdefault(_key(line), {})[examples[line.head.shots]] = line
    last = [points[max(points)] for points in systems.values() if len(points) > 1]
    chosen, left_out = _chosen(last)
    shown = [replace(series, points=systems[_key(series.line)]) for series in chosen]
    languages = list(dict.fromkeys(name for line in last if line.own for name in line.numbers))
    panels = [AVERAGE, *languages] if len(languages) > 1 else languages
    if not panels:  # of one point there is no curve
        return None
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(5.2, 0.6 + 2.35 * columns), 1.3 + 2.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, (axes, name) in enumerate(zip(grid.flat, panels, strict=False)):
        for series in reversed(shown):  # the published first, behind
            _curve(axes, series, name)
        axes.set_title("average" if name == AVERAGE else name, loc="left", fontsize=9)
        _plain(axes)
        axes.tick_params(axis="both", length=3, labelsize=8)
        if place + columns >= len(panels):  # none below it
            axes.set_xlabel("labelled examples", fontsize=8)
        if place % columns == 0:
            axes.set_ylabel(f"{_metric(view)}, %", fontsize=8)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    _finish(figure, view, FEW_SHOT, shown, left_out)
    return figure


def _key(line: Line) -> tuple[str, str, bool]:
    return line.head.system, line.head.protocol, line.own


def _curve(axes: Axes, series: Series, language: str) -> None:
    found = {x: replace(series, line=line).value(language) for x, line in sorted(series.points.items())}
    places = [(x, number.value) for x, number in found.items() if number is not None]
    if not places:
        return
    own = series.line.own
    style: dict[str, Any] = {"linewidth": 1.8, "markersize": 4, "zorder": 3}
    if not own:
        style = {"linewidth": 1.0, "markersize": 3.5, "zorder": 2, "markerfacecolor": "white"}
    dashes = (0, (4, 2)) if series.line.stands_in else "-"
    axes.plot(*zip(*places, strict=True), marker=series.marker, color=series.colour, linestyle=dashes, **style)
