"""What happens beside the steps: data position, speed figures, export of the pretrained folder, whole checkpoints."""

from __future__ import annotations

import difflib
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn

from cclm.data.loader import StepBatch
from cclm.data.shards import list_shards
from cclm.errors import first_line
from cclm.models.card import write_card
from cclm.models.choice import Choice, is_test
from cclm.models.model import CCLMConfig
from cclm.models.names import check_export
from cclm.models.portrait import cross_view
from cclm.models.sentence import write_modules
from cclm.storage import whole_file, whole_folder
from cclm.training.facts import card_facts, start_of
from cclm.training.validation import LOGGED

logger = logging.getLogger(__name__)


class Position(pl.Callback):
    """Tells the data module which batch has been trained on, so that a checkpoint resumes at the next one."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, system: pl.LightningModule, outputs: Any, batch: StepBatch, index: int
    ) -> None:
        trainer.datamodule.progress.update(batch)


class Bar(TQDMProgressBar):
    """Lightning's, with names short enough to stand beside it; Rich's breaks its figures over many lines.

    Loss, recalls, speed: what a narrow terminal cuts off is what matters least.
    """

    def get_metrics(self, trainer: pl.Trainer, system: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, system)
        names = sorted((name for name in metrics if "/" in name), key=lambda name: (name != "train/loss", name))
        return {_short(name): _shown(metrics[name]) for name in names}


def _short(name: str) -> str:
    renamed = {"speed/samples_per_second": "samples/s", "speed/data_wait": "wait"}
    return renamed.get(name) or name.partition("/")[2].replace("text_to_image/", "").replace("statements/", "")


def _shown(value: float) -> int | str:
    if value.is_integer() or 100 <= value < float("inf"):
        return round(value)
    return f"{value:.3f}"  # fewer digits Lightning would fill up with zeros


class Speed(pl.Callback):
    """Logs the loss, samples/s, the share of time spent waiting for data, and how many samples were skipped so far."""

    def __init__(self, every_n_steps: int = 20) -> None:
        self.every_n_steps = every_n_steps
        self._reset()

    def _reset(self) -> None:
        self._start = self._last_end = time.perf_counter()
        self._samples, self._steps, self._waited = 0, 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        self._reset()

    def on_validation_end(self, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        self._reset()

    def on_train_batch_start(
        self, trainer: pl.Trainer, system: pl.LightningModule, batch: StepBatch, index: int
    ) -> None:
        self._waited += time.perf_counter() - self._last_end

    def on_train_batch_end(
        self, trainer: pl.Trainer, system: pl.LightningModule, outputs: Any, batch: StepBatch, index: int
    ) -> None:
        self._samples += sum(len(pairs) for pairs in batch.batches.values())
        self._steps += 1
        self._last_end = now = time.perf_counter()
        if trainer.global_step % self.every_n_steps or now == self._start:
            return
        seconds = now - self._start
        skipped = float(trainer.datamodule.progress.skipped.total())
        rate, waited = self._samples / seconds * trainer.world_size, self._waited / seconds
        left = (trainer.max_steps - trainer.global_step) * seconds / self._steps
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # Lightning has divided it
        done = trainer.global_step, trainer.max_steps
        logger.info("step %d of %d, loss %.3f, %.0f samples/s, %.0f s left", *done, loss, rate, left)
        system.log("train/loss", loss, prog_bar=True)
        system.log("speed/samples_per_second", rate, prog_bar=True)
        system.log("speed/data_wait", waited, prog_bar=True)
        system.log("data/skipped", skipped, prog_bar=skipped > 0)
        self._reset()


class Export(pl.Callback):
    """Writes the pretrained folder (weights, config, processor, card) at the end; `initial` also before the start.

    `best`: not the last step's, but those of the highest such metric of all validations, as
    "xvnli/en/statements/accuracy" without its "eval/". `choose_on_test`: let that be of a test split, which is refused
    otherwise; the model's card and every report on it then say so.

    `licence`: an identifier of the hub such as apache-2.0 for the model card, which calls it unknown otherwise.
    """

    def __init__(
        self,
        folder: str,
        initial: str | None = None,
        licence: str | None = None,
        best: str | None = None,
        choose_on_test: bool = False,
    ) -> None:
        self.folder, self.initial, self.licence = folder, initial, licence
        self.best, self.choose_on_test = best, choose_on_test
        self._value: float | None = None

    def setup(self, trainer: pl.Trainer, system: pl.LightningModule, stage: str) -> None:
        """Errors: ValueError, before the training, for a folder that holds anything but a former export."""
        for folder in filter(None, (self.folder, self.initial)) if stage == "fit" else ():
            check_export(folder, CCLMConfig.model_type)
        if self.best and stage == "fit":
            self._check_best(trainer)

    def _check_best(self, trainer: pl.Trainer) -> None:
        """Errors: ValueError where `best` is measured on no validation set, or on a test split without leave."""
        name, *_, metric = self.best.split("/")
        sets = trainer.datamodule.validation
        if metric not in LOGGED:
            near = difflib.get_close_matches(metric, LOGGED, 1)
            raise ValueError(
                f"export: best is {self.best}, but no set measures {metric!r}; name one of {', '.join(LOGGED)}"
                + (f" (did you mean {near[0]}?)" if near else "")
            )
        if name not in sets or trainer.limit_val_batches == 0:
            there = ", ".join(sets) or "none"
            raise ValueError(
                f"export: best is {self.best}, no metric of a validation set that is run (sets: {there}); name one of "
                "data.statements or data.validation"
            )
        spoken = sets[name].languages
        if spoken and not any(f"/{language}/" in self.best for language in (*spoken, "others")):
            raise ValueError(
                f"export: best is {self.best}, but the set {name} measures {', '.join(spoken)} alone; add the language"
            )
        if is_test(list_shards(sets[name].shards)) and not self.choose_on_test:
            raise ValueError(
                f"export: best would choose the model on {sets[name].shards}, a test split; choose on a dev split, or "
                "set choose_on_test: true, and every report will say so"
            )

    def on_validation_end(self, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        if not self.best or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        metrics = {name.removeprefix("eval/"): float(value) for name, value in trainer.callback_metrics.items()}
        if self.best not in metrics:
            near = difflib.get_close_matches(self.best, metrics, 1)
            raise ValueError(
                f"export: no metric {self.best} was measured" + (f"; did you mean {near[0]}?" if near else "")
            )
        value = trainer.strategy.broadcast(metrics[self.best])  # ranks that differ by rounding must agree to write
        if self._value is None or value > self._value:
            self._value = value
            data = trainer.datamodule.validation[self.best.split("/")[0]].shards
            choice = Choice(self.best, self._value, trainer.global_step, data, is_test(list_shards(data)))
            self._write(trainer, system, self.folder, choice)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self._value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._value = state.get("value")

    def on_train_start(self, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        if self.initial and trainer.global_step == 0:
            self._write(trainer, system, self.initial)

    def on_fit_end(self, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        if not self.best:
            self._write(trainer, system, self.folder)
        elif self._value is None:
            raise ValueError(
                f"export: {self.best} was never measured, so nothing is exported; lower trainer.val_check_interval"
            )

    def _write(
        self, trainer: pl.Trainer, system: pl.LightningModule, folder: str, choice: Choice | None = None
    ) -> None:
        portrait = cross_view(system.model.config, start_of(system.network, Path(folder)))
        facts = card_facts(trainer, system, Path(folder), portrait, self.licence)
        if choice is not None:
            facts = replace(facts, recipe=facts.recipe | {"chosen": str(choice)})
        if trainer.is_global_zero:
            with whole_folder(folder) as partial:
                system.model.save_pretrained(partial)
                system.processor.save_pretrained(partial)
                if system.model.config.embedding_size:
                    write_modules(partial)
                if choice is not None:
                    choice.write(partial)
                write_card(partial, facts)
        trainer.strategy.barrier("export")


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are whole or absent, also when the disk is full or the machine stops; nothing is unpickled."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with whole_file(path) as partial, open(partial, "wb") as handle:  # given a path, torch hides what failed
            torch.save(checkpoint, handle)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Errors: ValueError where there is no checkpoint, or the file is damaged or holds more than tensors."""
        if not Path(path).is_file():
            raise ValueError(f"no checkpoint at {path}; leave --ckpt_path out to start anew")
        try:
            stored = torch.load(path, map_location=map_location or "cpu", weights_only=True)
            missing = {"state_dict", "batches_seen", "pytorch-lightning_version"} - set(stored)
            reason = f"it lacks {', '.join(sorted(missing))}" if missing else ""
        except Exception as error:
            reason = first_line(error)
        if reason:
            raise ValueError(f"{path} is not a checkpoint of `cclm fit` ({reason}); use an earlier one")
        return stored
