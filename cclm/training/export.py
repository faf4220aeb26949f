"""Writes the folder of a pivot's model at the end of its training, or whenever it has become better."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from cclm.models.card import write_card
from cclm.models.names import check_export
from cclm.storage import whole_folder
from cclm.training.facts import card_facts
from cclm.training.portraits import portrait

_log = logging.getLogger(__name__)


class Exporting(Protocol):
    """A `System` whose model can be written. `exports`: what its config.json says it is of."""

    exports: str

    def export(self, folder: Path) -> None: ...


class ExportFolder(pl.Callback):
    """Writes the system's model, and what goes beside it, into `folder` after the last step.

    `lowest`: not the last step's but that of the lowest such metric of all validations, as "photos/en/answers/loss"
    without its "eval/". `licence`: an identifier of the hub such as apache-2.0 for the model card, which calls it
    unknown otherwise.
    """

    def __init__(self, folder: str, lowest: str | None = None, licence: str | None = None) -> None:
        self.folder, self.lowest, self.licence = folder, lowest, licence
        self._value: float | None = None

    def setup(self, trainer: pl.Trainer, system: Exporting, stage: str) -> None:
        """Errors: ValueError, before the training, for a folder that holds anything but a former export."""
        if stage != "fit":
            return
        check_export(self.folder, system.exports)
        sets = trainer.datamodule.validation
        if self.lowest and (self.lowest.split("/")[0] not in sets or trainer.limit_val_batches == 0):
            there = ", ".join(sets) or "none"
            raise ValueError(
                f"export: lowest is {self.lowest}, no metric of a validation set that is run (sets: {there}); name one "
                "of data.validation"
            )

    def on_validation_end(self, trainer: pl.Trainer, system: Exporting) -> None:
        if not self.lowest or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        metrics = {name.removeprefix("eval/"): float(value) for name, value in trainer.callback_metrics.items()}
        if self.lowest not in metrics:
            there = ", ".join(name for name in metrics if "/" in name)
            raise ValueError(f"export: no metric {self.lowest} was measured; there are {there}")
        value = trainer.strategy.broadcast(metrics[self.lowest])  # ranks that differ by rounding must agree to write
        if self._value is None or value < self._value:
            self._value = value
            _log.info("step %d: %s %.4f, written", trainer.global_step, self.lowest, value)
            self._write(trainer, system)

    def on_fit_end(self, trainer: pl.Trainer, system: Exporting) -> None:
        if not self.lowest:
            self._write(trainer, system)
        elif self._value is None:
            raise ValueError(
                f"export: {self.lowest} was never measured, so nothing is exported; lower trainer.val_check_interval"
            )

    def _write(self, trainer: pl.Trainer, system: Exporting) -> None:
        folder = Path(self.folder)
        facts = card_facts(trainer, system, folder, portrait(system, folder), self.licence)
        if self.lowest:
            chosen = f"step {trainer.global_step:,}, the lowest {self.lowest} ({self._value:.4f})"
            facts = replace(facts, recipe=facts.recipe | {"chosen": chosen})
        if trainer.is_global_zero:
            with whole_folder(folder) as partial:
                system.export(partial)
                write_card(partial, facts)
        trainer.strategy.barrier("export")

    def state_dict(self) -> dict[str, Any]:
        return {"value": self._value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._value = state.get("value")
