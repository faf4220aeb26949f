"""The outcome of captioning by language: a JSON file, a table on screen, a chart beside the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cclm.evaluation.scoring import Scored
from cclm.storage import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Group
    from rich.table import Table

Scores = dict[str, dict[str, dict[str, Any]]]  # language -> kind of reference -> metric -> value


@dataclass(frozen=True)
class CaptionReport:
    """`languages[language][kind][metric]` in percent; `nearest` likewise of the nearest training picture's caption.

    `regimes`: what each language was to the model (protocol.py). `notes[language][kind]`: how it was counted, with
    signatures. `skipped`: samples of the data that could not be read, by reason.
    """

    languages: Scores
    nearest: Scores
    regimes: dict[str, str]
    notes: dict[str, dict[str, list[str]]]
    skipped: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, scored: Mapping[str, Mapping[str, Scored]], nearest: Mapping[str, Mapping[str, Scored]], **more: Any
    ) -> Self:
        """Of what `score_all` found. `more`: the other fields but the notes."""
        notes = {
            language: {kind: list(one.result.notes) for kind, one in kinds.items()}
            for language, kinds in scored.items()
        }
        return cls(_scores(scored), _scores(nearest), notes=notes, **more)

    def kinds(self) -> list[str]:
        """Kinds of reference, in their order."""
        return list(dict.fromkeys(kind for own in self.languages.values() for kind in own))

    def to_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("languages", "nearest", "regimes", "notes", "skipped")}
        return own | self.provenance

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """A report written before. Errors: OSError where it is missing, ValueError where it is no such report."""
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            own = [stored.pop(name) for name in ("languages", "nearest", "regimes", "notes", "skipped")]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no report of `cclm evaluate captions` ({error!r}); give another") from None
        return cls(*own, stored)

    def write(self, path: Path | str) -> None:
        """Write the JSON file and, beside it, the chart under the same name as PNG."""
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with whole_file(path) as partial, whole_file(path.with_suffix(".png")) as picture:  # both or none
            partial.write_text(text, encoding="utf-8")
            chart(self, picture)


def _scores(scored: Mapping[str, Mapping[str, Scored]]) -> Scores:
    return {
        language: {kind: {"pictures": one.result.items} | one.result.scores for kind, one in kinds.items()}
        for language, kinds in scored.items()
    }


def table(report: CaptionReport) -> Group:
    """One table per kind of reference, within 100 columns, and below them how it was counted."""
    from rich.console import Group
    from rich.text import Text

    views = [_table(report, kind) for kind in report.kinds()]
    return Group(*views, Text("\n".join(_counted(report))))


def _table(report: CaptionReport, kind: str) -> Table:
    from rich import box
    from rich.table import Table

    rows = {language: own[kind] for language, own in report.languages.items() if kind in own}
    counts = sorted({own["pictures"] for own in rows.values()})
    pictures = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    title = f"captions of {pictures} pictures against {kind}, %"
    view = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0))
    view.add_column("language", no_wrap=True)
    view.add_column("regime", no_wrap=True)
    columns = ["CIDEr", "95 %", "of en", "BLEU-4", "chrF", "fidelity", "people's", "empty"]
    for name in columns + ["nearest\nCIDEr"] * bool(report.nearest):
        style = {"CIDEr": "bold", "fidelity": "bold", "95 %": "dim", "people's": "dim"}.get(name, "")
        view.add_column(name, style, justify="right", no_wrap=True)
    for language, own in rows.items():
        low, high = own.get("CIDEr_interval", (None, None))
        cells = [_told(own, "CIDEr"), "" if low is None else f"{low:.1f}–{high:.1f}", _told(own, "of_en")]
        cells += [_told(own, name) for name in ("BLEU-4", "chrF", "fidelity", "fidelity_ceiling")]
        cells.append(f"{own['empty']:,}")
        if report.nearest:
            cells.append(_told(report.nearest.get(language, {}).get(kind, {}), "CIDEr"))
        view.add_row(language, report.regimes[language], *cells)
    return view


def _told(scores: Mapping[str, Any], name: str) -> str:
    return f"{scores[name]:.1f}" if name in scores else ""


def _counted(report: CaptionReport) -> Iterator[str]:
    """Notes that begin as signatures do, those that several languages share once."""
    for kind in report.kinds():
        found: dict[str, list[str]] = {}
        for language, own in report.notes.items():
            for note in own.get(kind, ()):
                if note.startswith(("BLEU-4: ", "chrF: ", "words: ", "languages: ", "captions in others: ")):
                    found.setdefault(note, []).append(language)
        yield from (f"{kind}, {' '.join(languages)}: {note}" for note, languages in found.items())


def chart(report: CaptionReport, path: Path) -> None:
    """CIDEr and fidelity by language: bars, 95 % intervals; beside them the nearest picture's caption, and what share
    of the references is told to be in the language. Saved as PNG."""
    # The object interface without pyplot: no display, no global state, safe inside a training process.
    from matplotlib.figure import Figure

    names = list(report.languages)
    common = [kind for kind in report.kinds() if all(kind in own for own in report.languages.values())]
    kind = common[-1] if common else report.kinds()[0]  # the parallel sentence, where all have it
    figure = Figure(figsize=(min(15.0, max(7.5, 2.4 + 0.5 * len(names))), 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    series = [("model", report.languages, "#2f6db3")]
    series += [("nearest picture's caption", report.nearest, "#9aa3ae")] if report.nearest else []
    for axes, metric in ((left, "CIDEr"), (right, "fidelity")):
        _bars(axes, names, series if metric == "CIDEr" else series[:1], kind, metric)
        axes.set_xticks(range(len(names)), names)
        axes.set_title(f"{metric}, against {kind}" if metric == "CIDEr" else metric, loc="left", fontsize=10)
        axes.set_ylabel("%")
        axes.grid(axis="y", color="#e3e6ea", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    right.set_ylim(0, 103)
    for x, name in enumerate(names):
        if "fidelity_ceiling" in (own := report.languages[name].get(kind, {})):
            level = own["fidelity_ceiling"]
            label = "" if x else "references"
            right.plot([x - 0.45, x + 0.45], [level, level], color="#c0392b", linewidth=1.1, zorder=3, label=label)
    handles = {
        label: handle for axes in (left, right) for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, frameon=False, ncols=3, loc="outside lower center", fontsize=9)
    figure.savefig(path, dpi=150, format="png")


def _bars(axes: Axes, names: list[str], series: list[tuple[str, Scores, str]], kind: str, metric: str) -> None:
    width = 0.8 / len(series)
    for place, (label, scores, colour) in enumerate(series):
        shift = (place - (len(series) - 1) / 2) * width
        rows = [(x + shift, scores.get(name, {}).get(kind, {})) for x, name in enumerate(names)]
        rows = [(x, own) for x, own in rows if metric in own]
        axes.bar(
            [x for x, _ in rows], [own[metric] for _, own in rows], width * 0.92, label=label, color=colour, zorder=2
        )
        for x, own in rows:
            if f"{metric}_interval" in own:
                axes.plot([x, x], own[f"{metric}_interval"], color="#1d2430", linewidth=0.9, zorder=4)
