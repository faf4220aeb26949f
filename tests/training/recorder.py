"""A callback that writes down what every step trained on: the witness of the resume tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class Recorder(pl.Callback):
    """One JSON line per step: step, record keys, losses to the last bit."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(
        self, trainer: pl.Trainer, system: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        losses = {name: value.item().hex() for name, value in trainer.callback_metrics.items() if "train/" in name}
        line = {"step": trainer.global_step, "keys": {n: b.keys for n, b in batch.batches.items()}, "losses": losses}
        with self.file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
