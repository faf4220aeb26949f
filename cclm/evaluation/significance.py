"""Two runs over the same items: the difference, its interval, and how often chance alone would make one as large.

Also how much ranks differ between languages. Works on the items that scoring gives and `predictions` stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cclm.evaluation import metrics

EXACT = 16  # groups that differ: up to 2**EXACT signs are all tried
DRAWS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Comparison:
    """`first`, `second`: means in percent; `difference`: second - first, with its bootstrap 95 % `interval`.

    `p_value`: two-sided, of the paired randomisation test: the share of ways to swap the runs, group by group, that
    give a difference at least as large. `exact`: all ways were tried; else `draws` of them, and the runs as they are.
    """

    metric: str
    direction: str
    items: int
    groups: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    exact: bool
    draws: int


def aligned(runs: Sequence[Sequence[Mapping[str, Any]]], metric: str, direction: str = "") -> tuple[list, np.ndarray]:
    """The group of each item (N,), and the metric of every run (runs, N), in the order of the first run's items.

    `metric`: a field of the items: "right", "R@1" .. or "rank". `direction`: of retrieval items; "" for answers. Items
    about the same images are one group. Errors: ValueError for other ids in one run than in another, and items without
    the metric, or whose rank is not known.
    """
    found = []
    for number, items in enumerate(runs, 1):
        own = {item["id"]: item for item in items if item.get("direction", "") == direction}
        if not own:
            told = f"direction {direction!r}" if direction else "answers"
            raise ValueError(f"run {number} has no items of {told}; there are {_directions(items)}")
        if number > 1 and own.keys() != found[0].keys():
            missing, extra = found[0].keys() - own.keys(), own.keys() - found[0].keys()
            raise ValueError(
                f"run {number} is of other items than run 1: {len(missing):,} missing, {len(extra):,} others, as "
                f"{sorted(missing | extra)[0]!r}; compare runs of one test under one protocol"
            )
        if bare := [name for name, item in own.items() if item.get(metric) is None]:
            raise ValueError(f"run {number} does not tell {metric!r} of {len(bare):,} items, as of {bare[0]!r}")
        found.append(own)
    groups = [tuple(item.get("images") or [name]) for name, item in found[0].items()]
    return groups, np.array([[float(own[name][metric]) for name in found[0]] for own in found])


def _directions(items: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({item.get("direction", "answers") for item in items})) or "none"


def compare(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    metric: str,
    direction: str = "",
    draws: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Is the second run better, or luckier? Whole groups are swapped and drawn. Errors: ValueError, as `aligned`."""
    if draws < 1:
        raise ValueError(f"draws is {draws}; give 1 or more")
    names, values = aligned([first, second], metric, direction)
    _, groups = np.unique(["\n".join(name) for name in names], return_inverse=True)
    values = 100 * values
    difference = values[1] - values[0]
    sums = np.bincount(groups, difference)
    generator = np.random.default_rng(seed)
    p_value, exact = randomisation(sums, draws, generator)
    columns = np.stack([difference, np.ones(len(difference))], axis=1)
    low, high = np.percentile(metrics.resampled_means(columns, groups, draws, generator), [2.5, 97.5])
    return Comparison(
        metric=metric,
        direction=direction,
        items=len(difference),
        groups=len(sums),
        first=float(values[0].mean()),
        second=float(values[1].mean()),
        difference=float(difference.mean()),
        interval=(float(low), float(high)),
        p_value=p_value,
        exact=exact,
        draws=draws,
    )


def randomisation(sums: np.ndarray, draws: int, generator: np.random.Generator) -> tuple[float, bool]:
    """Two-sided p of the sum of differences (groups,) under random signs, and whether all signs were tried."""
    sums = sums[sums != 0]  # a group without a difference has none with the other sign either
    wanted = abs(sums.sum()) * (1 - 1e-12) - 1e-9  # sums in another order may differ in their last digits
    if len(sums) <= EXACT:
        signs = 1 - 2.0 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float((np.abs(signs @ sums) >= wanted).mean()), True
    step, as_large = max(1, DRAWS_AT_ONCE // len(sums)), 0
    for start in range(0, draws, step):
        signs = 1.0 - 2 * generator.integers(2, size=(min(step, draws - start), len(sums)), dtype=np.int8)
        as_large += int((np.abs(signs @ sums) >= wanted).sum())
    return (as_large + 1) / (draws + 1), False


def rank_variance(languages: Mapping[str, Sequence[Mapping[str, Any]]], direction: str) -> float:
    """Mean rank variance of one direction over languages, from their items: those of one id are one thing.

    Errors: ValueError for fewer than two languages, other ids in one than in another, and ranks that are not known.
    """
    _, ranks = aligned(list(languages.values()), "rank", direction)
    return metrics.mean_rank_variance(ranks)
