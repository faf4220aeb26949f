"""Relative-position tables of another resolution, computed as the original does it.

Shapes: w window side (tables have (2 w - 1) ** 2 rows, BEiT's three more), H heads.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

_BEIT_EXTRA = 3  # class token to patch, patch to class token, class token to itself


def resize_table(table: Tensor, rows: int) -> Tensor:
    """A relative-position table (R, H) for a window that needs `rows` rows: (rows, H), as it is where R is `rows`.

    A BEiT table's last three rows are copied. Errors: ValueError where a number of rows is that of no square window.
    """
    if len(table) == rows:
        return table
    extra = next((extra for extra in (0, _BEIT_EXTRA) if all(_is_square(n - extra) for n in (len(table), rows))), None)
    if extra is None:
        raise ValueError(f"no square window has a relative-position table of {len(table)} or {rows} rows")
    grid = table[: len(table) - extra]
    return torch.cat([resample(grid, math.isqrt(rows - extra)), table[len(table) - extra :]])


def resample(table: Tensor, side: int) -> Tensor:
    """A square table (s ** 2, H) on another grid: (side ** 2, H), a cubic spline for each head, less where s < 4.

    Source positions are spaced geometrically, dense where offsets are small, so that they span the target's; targets
    beyond them take the outermost value (reference/cclm.md 6).
    """
    source = math.isqrt(len(table))
    if source == 1:
        return table.repeat(side**2, 1)
    degree = min(3, source - 1)
    positions = source_positions(source, side)
    wanted = (np.arange(side) - side // 2.0).clip(positions[0], positions[-1])
    grids = table.double().T.reshape(-1, source, source).numpy()  # (H, s, s)
    splines = [RectBivariateSpline(positions, positions, grid, kx=degree, ky=degree, s=0) for grid in grids]
    resized = [spline(wanted, wanted).ravel() for spline in splines]
    return torch.from_numpy(np.stack(resized, axis=1)).to(table.dtype)  # (side ** 2, H)


def source_positions(source: int, target: int) -> np.ndarray:
    """Where the `source` offsets of the old table lie among the new ones: 0, 1, 1 + q, 1 + q + q^2 .. and mirrored.

    The ratio q is found by bisection so that the last lies at `target // 2`.
    """
    half, low, high = source // 2, 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**half) / (1 - ratio) > target // 2:
            high = ratio
        else:
            low = ratio
    steps = np.cumsum(ratio ** np.arange(half, dtype=float))
    return np.concatenate([-steps[::-1], [0.0], steps])


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count
