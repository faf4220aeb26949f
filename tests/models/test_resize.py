"""Relative-position tables of another resolution, against those that the original's own code made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cclm.models.resize import resample, resize_table, source_positions
from tests.models.checkpoints import NEEDED, ORACLE

SIZES = [(13, 23), (13, 29), (27, 47), (27, 27), (7, 15), (23, 13)]
FILE = ORACLE / "relative_position_resize.npz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    if not FILE.is_file():
        pytest.skip(NEEDED)
    return dict(np.load(FILE))


def table(recorded: dict[str, np.ndarray], kind: str, sizes: tuple[int, int]) -> Tensor:
    return torch.from_numpy(recorded[f"{kind}_{sizes[0]}_{sizes[1]}"])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_as_the_original_resizes(recorded: dict[str, np.ndarray], sizes: tuple[int, int]) -> None:
    source, side = sizes
    got = resample(table(recorded, "tab", sizes).float(), side)
    torch.testing.assert_close(got.double(), table(recorded, "res", sizes).double(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(source_positions(source, side), recorded[f"x_{source}_{side}"], rtol=0, atol=1e-5)
    if source != side:
        assert torch.equal(resize_table(table(recorded, "tab", sizes).float(), side**2), got)


@pytest.mark.parametrize("sizes", [sizes for sizes in SIZES if sizes[0] != sizes[1]], ids=str)
def test_the_last_three_rows_of_a_beit_are_copied(recorded: dict[str, np.ndarray], sizes: tuple[int, int]) -> None:
    source = table(recorded, "tab", sizes).float()
    rows = torch.full((3, source.shape[1]), 7.0) + torch.arange(3.0)[:, None]
    got = resize_table(torch.cat([source, rows]), sizes[1] ** 2 + 3)
    assert torch.equal(got[-3:], rows)
    torch.testing.assert_close(got[:-3].double(), table(recorded, "res", sizes).double(), rtol=0, atol=1e-5)


def test_a_table_that_fits_is_left_alone() -> None:
    source = torch.randn(49, 2)
    assert resize_table(source, 49) is source


@pytest.mark.parametrize("source", [1, 3])
def test_small_tables_keep_what_they_hold(source: int) -> None:
    """Too few offsets for a cubic: the middle and the corners stay, which lie outermost on either grid."""
    small = torch.randn(source**2, 2, generator=torch.Generator().manual_seed(0))
    got, before = resample(small, 7).unflatten(0, (7, 7)), small.unflatten(0, (source, source))
    assert torch.allclose(got[3, 3], before[source // 2, source // 2], atol=1e-6)
    assert torch.allclose(got[0, 0], before[0, 0], atol=1e-6) and torch.allclose(got[6, 0], before[-1, 0], atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_the_precision_is_kept(kind: torch.dtype) -> None:
    source = torch.randn(49, 2, generator=torch.Generator().manual_seed(0))
    got = resize_table(source.to(kind), 225)
    assert got.dtype == kind
    torch.testing.assert_close(got.float(), resize_table(source, 225), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("rows", "wanted"), [(50, 225), (49, 226), (49, 228), (52, 225)])
def test_tables_of_no_square_window(rows: int, wanted: int) -> None:
    with pytest.raises(ValueError, match=f"no square window has a relative-position table of {rows} or {wanted} rows"):
        resize_table(torch.zeros(rows, 1), wanted)
