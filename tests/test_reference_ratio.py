"""benchmarks/reference_ratio.py: both steps compute the same losses, and README's table shows what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cclm.objectives.base import pair_losses
from cclm.types import ImageInput, PairBatch, TextInput

ROOT = Path(__file__).resolve().parents[1]


def texts(lengths: tuple[int, ...]) -> TextInput:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return TextInput(torch.randint(5, 900, mask.shape).where(mask, 1), mask)


@pytest.mark.parametrize("stream", ["text", "image"])
def test_both_steps_compute_the_same_losses(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout, of the same masks, and of two pairs, where only one wrong partner can be drawn."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import reference_ratio

    recipe: dict[str, Any] = yaml.safe_load(reference_ratio.RECIPE.read_text(encoding="utf-8"))
    run = reference_ratio.Run("tiny", "fp32", "cpu", 1, data="", tokenizer="")
    original = reference_ratio.Original(run, recipe)
    torch.manual_seed(1)
    for parameter in original.model.parameters():  # norms and biases too, but for the temperature: the one copy
        parameter.data += 0.1 * parameter.dim() * torch.randn_like(parameter)
    original.model.eval(), original.original.eval()
    context = ImageInput(torch.randn(2, 3, 128, 128)) if stream == "image" else texts((7, 12))
    batch = PairBatch(stream, context, texts((9, 14)))
    with torch.no_grad():
        theirs = original.losses(original.prepare(batch))
        generator = torch.Generator().manual_seed(0)
        ours = pair_losses(original.model, batch, original.objectives[stream], generator)
    assert set(ours) == set(theirs)
    for name, loss in ours.items():
        assert theirs[name].item() == pytest.approx(loss.item(), rel=1e-4), name
    assert len({round(loss.item(), 3) for loss in ours.values()}) == 3


def test_table_shows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import table

    side = {"samples_per_s": 12.34, "gflop_per_step": 30.0, "gflops": 5.0, "peak_gib": 1.0}
    run: dict[str, Any] = {"ours": side, "original": side | {"samples_per_s": 6.1}, "ratio": 2.02}
    run |= {"ratio_each": [2.1, 1.9, 2.02], "date": "2026-01-02", "commit": "abc"}
    run["machine"] = {"processor": "a machine", "cores": 2}
    row = table.ratio_row("tiny", "fp32", run)
    assert row.startswith("| tiny | fp32 | 2.02 (1.90–2.10) |  |")
    assert row.endswith("| 12.3, 6.1 | 30, 30 | 5, 5 | 1.0, 1.0 | 2.0 | a machine, 2 cores, 2026-01-02, abc |")
    assert set(table.ratio_row("", "", {}).replace("2.0", "")) == set("| ")
