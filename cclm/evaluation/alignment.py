"""In which layer of a text model do translations have like states? Retrieval of each sentence's translation, per layer.

What is learned of one language's states holds for another's only where both meet, and translating well is no sign that
they do. Shapes: B texts, L tokens, D width, N sentences.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.evaluation.metrics import Relevance, search
from cclm.evaluation.report import Provenance, check_output
from cclm.storage import whole_file
from cclm.types import Record

if TYPE_CHECKING:
    from rich.console import Group

PAIRS_BESIDE = 6  # columns of a table
RULE = "the highest mean R@1 over pairs and directions; of equal layers the deepest"


class LayeredModel(Protocol):
    """A model of texts whose layers can be looked into."""

    def layer_states(self, texts: Sequence[str]) -> tuple[Sequence[Tensor], Tensor]:
        """States (B, L, D) of every layer, the embeddings first, and which of them are tokens (B, L) bool."""
        ...


@dataclass(frozen=True)
class AlignmentOptions:
    """`languages`: None for all of the data. `pivot`: only pairs with this language; None for all. `sentences`: of a
    pair, the first so many that have both languages, equal ones once. `batch_size`: texts read at once.
    """

    languages: tuple[str, ...] | None = None
    pivot: str | None = None
    sentences: int = 1000
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.sentences < 2 or self.batch_size < 1:
            raise ValueError(
                f"alignment: sentences={self.sentences}, batch_size={self.batch_size}; give at least 2 and 1"
            )
        if self.languages is not None and len(set(self.languages) | {self.pivot or self.languages[0]}) < 2:
            raise ValueError(f"alignment: languages are {', '.join(self.languages)}; it takes two to be compared")


@dataclass(frozen=True)
class PairAlignment:
    """R@1 in percent of two languages, per layer: `there` finds the second's sentences by the first's."""

    languages: tuple[str, str]
    sentences: int
    there: tuple[float, ...]
    back: tuple[float, ...]

    @property
    def name(self) -> str:
        return "-".join(self.languages)

    @property
    def mean(self) -> tuple[float, ...]:
        """Of both directions, per layer."""
        return tuple((one + other) / 2 for one, other in zip(self.there, self.back, strict=True))

    @property
    def chance(self) -> float:
        return 100 / self.sentences


@dataclass(frozen=True)
class Alignment:
    """The outcome: a JSON file, a table, a chart beside the file. Layer 0 are the embeddings."""

    pairs: tuple[PairAlignment, ...]
    provenance: Provenance

    @property
    def means(self) -> tuple[float, ...]:
        """R@1 over all pairs and directions, per layer."""
        return tuple(sum(values) / len(values) for values in zip(*(pair.mean for pair in self.pairs), strict=True))

    @property
    def layer(self) -> int:
        """The one to read, by RULE."""
        means = self.means
        return max(range(len(means)), key=lambda layer: (means[layer], layer))

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        pairs = [asdict(pair) | {"chance": pair.chance} for pair in self.pairs]
        chosen = {"layer": self.layer, "rule": RULE, "R@1": self.means}
        return chosen | {"pairs": pairs} | asdict(self.provenance)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """One written before. Errors: OSError where it is missing, ValueError where it is none."""
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            pairs = tuple(
                PairAlignment(tuple(pair["languages"]), pair["sentences"], tuple(pair["there"]), tuple(pair["back"]))
                for pair in stored["pairs"]
            )
            return cls(pairs, Provenance(**{name: stored[name] for name in Provenance.__dataclass_fields__}))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no report of `cclm evaluate alignment` ({error!r}); give another") from error

    def write(self, path: Path | str) -> None:
        """Write the JSON file and, beside it, the chart under the same name as PNG."""
        path = check_output(path, Alignment.read)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with whole_file(path) as partial, whole_file(path.with_suffix(".png")) as picture:  # both or none
            partial.write_text(text, encoding="utf-8")
            chart(self, picture)


def measure_alignment(
    model: LayeredModel, records: Iterable[Record], options: AlignmentOptions, provenance: Provenance
) -> Alignment:
    """R@1 of every pair of languages in every layer, by the mean state over a sentence's tokens.

    Errors: ValueError where no two languages have two sentences in common, and for states that are not finite.
    """
    sentences = _sentences(records, options)
    texts = sorted({(pair[side], row[side]) for pair, both in sentences.items() for row in both for side in (0, 1)})
    place = {key: row for row, key in enumerate(texts)}
    layers = pooled([text for _, text in texts], model, options.batch_size)
    pairs = []
    for pair, both in sentences.items():
        first, second = (torch.tensor([place[pair[side], row[side]] for row in both]) for side in (0, 1))
        relevance = Relevance.of(torch.arange(len(both)), len(both))
        found = [search(layer[first], layer[second], relevance) for layer in layers]
        recalls = ([100 * float(side.ranks.within(1).mean()) for side in sides] for sides in found)
        there, back = zip(*recalls, strict=True)
        pairs.append(PairAlignment(pair, len(both), there, back))
    return Alignment(tuple(pairs), provenance)


def _sentences(records: Iterable[Record], options: AlignmentOptions) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Pair of languages -> sentences of both. Errors: ValueError where there are none."""
    found: dict[tuple[str, str], dict[tuple[str, str], None]] = {}
    seen: dict[tuple[str, str], set[tuple[int, str]]] = {}
    for record in records:
        told = sorted(code for code in record.parallel if options.languages is None or code in _wanted(options))
        for pair in combinations(told, 2):
            if options.pivot is not None and options.pivot not in pair:
                continue
            both = record.parallel[pair[0]], record.parallel[pair[1]]
            rows, known = found.setdefault(pair, {}), seen.setdefault(pair, set())
            sides = {(0, both[0]), (1, both[1])}
            if len(rows) < options.sentences and not sides & known:  # equal texts cannot be told apart
                rows[both] = None
                known |= sides
    kept = {pair: list(rows) for pair, rows in sorted(found.items()) if len(rows) > 1}
    if not kept:
        raise ValueError(
            "alignment: no two of the wanted languages have sentences in common in the data; give parallel sentences, "
            "as `cclm data build parallel_text` makes them, or other languages"
        )
    return kept


def _wanted(options: AlignmentOptions) -> set[str]:
    return {*(options.languages or ()), *([options.pivot] if options.pivot else [])}


@torch.no_grad()
def pooled(texts: Sequence[str], model: LayeredModel, batch_size: int) -> list[Tensor]:
    """Of every layer the mean states of the texts, (N, D) float32 of unit norm on the CPU."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # little padding
    parts: list[list[Tensor]] = []
    for start in range(0, len(texts), batch_size):
        layers, mask = model.layer_states([texts[row] for row in order[start : start + batch_size]])
        weight = mask.unsqueeze(-1).float()  # (B, L, 1)
        means = [(states.float() * weight).sum(1) / weight.sum(1) for states in layers]
        parts.append([F.normalize(mean, dim=-1).cpu() for mean in means])
    back = torch.tensor(order).argsort()
    return [torch.cat(layer)[back] for layer in zip(*parts, strict=True)]


def table(found: Alignment) -> Group:
    """A row a layer: mean R@1 of each pair, and over all; as many tables as the pairs need within 80 columns."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    views = []
    for start in range(0, len(found.pairs), PAIRS_BESIDE):
        pairs = found.pairs[start : start + PAIRS_BESIDE]
        view = Table(title="R@1 of translations by layer, %", box=box.SIMPLE_HEAD)
        view.title_justify = "left"
        view.add_column("layer", no_wrap=True)
        for pair in pairs:
            view.add_column(pair.name, justify="right", no_wrap=True)
        view.add_column("mean of all", "bold", justify="right", no_wrap=True)
        for layer, mean in enumerate(found.means):
            name = "embeddings" if layer == 0 else str(layer)
            cells = [f"{pair.mean[layer]:.1f}" for pair in pairs]
            view.add_row(f"{name} ←" if layer == found.layer else name, *cells, f"{mean:.1f}")
        view.add_section()
        view.add_row("chance", *(f"{pair.chance:.1f}" for pair in pairs), "")
        views.append(view)
    return Group(*views)


def chart(found: Alignment, path: Path) -> None:
    """R@1 over the layers, a line a pair, chance and the layer to read marked; saved as PNG."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    from cclm.evaluation.plots import COLOURS, GRID, MARKERS

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    layers = range(len(found.means))
    styles = ("-", "--", ":", "-.")
    for number, pair in enumerate(found.pairs):
        turn, place = divmod(number, len(COLOURS))
        style = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": styles[turn % len(styles)]}
        axes.plot(layers, pair.mean, label=pair.name, linewidth=1.3, markersize=4, **style)
    axes.plot(layers, found.means, label="mean", color="#1d2330", linewidth=2.6)
    chance = sum(pair.chance for pair in found.pairs) / len(found.pairs)
    axes.axhline(chance, label="chance", color="#c0392b", linestyle=(0, (3, 1.5)), linewidth=1.1)
    axes.axvline(found.layer, color="#9aa3ae", linewidth=7, alpha=0.35, zorder=0, label=f"chosen: {found.layer}")
    axes.set_xticks(layers, ["emb.", *map(str, layers[1:])])
    axes.set_xlabel("layer")
    axes.set_ylabel("R@1, %, mean of both directions")
    axes.set_ylim(0, 102)
    least, most = (pick(pair.sentences for pair in found.pairs) for pick in (min, max))
    count = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    axes.set_title(f"sentence retrieval among {count} translations, by layer", loc="left", fontsize=11)
    axes.grid(axis="y", color=GRID, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper", ncols=1 + len(found.pairs) // 22)
    figure.savefig(path, dpi=150, format="png")
