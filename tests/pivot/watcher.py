"""A callback that keeps the whole state of a model before the first step and after the last."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from cclm.pivot.folders import named_state


class Watcher(pl.Callback):
    """Writes `before.pt` and `after.pt` into a folder, and which modules were in training mode."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        self._keep(system, "before.pt")
        training = [name for name, module in system.model.named_modules() if module.training]
        (self.folder / "training.txt").write_text("\n".join(training))

    def on_train_end(self, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        self._keep(system, "after.pt")

    def _keep(self, system: pl.LightningModule, name: str) -> None:
        torch.save(
            {key: value.detach().clone() for key, value in named_state(system.model).items()}, self.folder / name
        )


def moved(folder: Path) -> tuple[set[str], set[str]]:
    """Names of what changed to the bit, and of what did not."""
    before, after = (torch.load(folder / name, weights_only=True) for name in ("before.pt", "after.pt"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not _same(before[name], after[name])}
    return changed, set(before) - changed


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first, second)
