"""The Lightning system: a batch of every stream -> views -> losses -> one update.

What the settings mean for the result is in `settings.py`; this file is the loop's body.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from cclm.data.loader import StepBatch
from cclm.objectives.base import Objective, pair_losses
from cclm.training.optim import OptimizerSettings, build_optimizer, build_schedule, freeze, parameter_groups
from cclm.training.settings import ComputeSettings, NetworkSettings, ProcessorSettings
from cclm.training.validation import Task

_log = logging.getLogger(__name__)

# Metrics worth a place on the progress bar and in the lines of a log.
SHOWN = tuple(
    f"{language}/{metric}" for language in ("en", "others") for metric in ("text_to_image/R@10", "statements/accuracy")
)


class NonFiniteLoss(ValueError):
    """A loss became NaN or infinite; raised before the update, so the weights are still those of the last good step."""


class CrossViewSystem(pl.LightningModule):
    """Trains one network on the pairs of any number of streams.

    Every step takes one batch of every stream; the losses are summed and one update follows. With `alternate` each
    stream has its own update, as in the original's schedule; the rate still advances once per step, while
    trainer.max_steps counts updates: streams x steps.
    """

    def __init__(
        self,
        processor: ProcessorSettings,
        objectives: dict[str, dict[str, Objective]],
        network: NetworkSettings = NetworkSettings(),  # noqa: B008 (frozen)
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008 (frozen)
        compute: ComputeSettings = ComputeSettings(),  # noqa: B008 (frozen)
        weights: dict[str, float] | None = None,
        alternate: bool = False,
        seed: int = 0,
    ) -> None:
        """`objectives`: stream -> name -> objective. `weights`: "stream/name" -> factor of that loss, else 1."""
        super().__init__()
        self.processor, self.network, self.settings, self.seed = processor.build(), network, optimizer, seed
        _check_names(objectives)
        self.weights = _checked_weights(weights or {}, objectives)
        self.automatic_optimization = not alternate
        torch.manual_seed(seed)
        self.model, self.new_names = network.build(self.processor)
        self.processor.check_fits(self.model.config)
        freeze(self.model, optimizer.frozen)
        self.objectives = torch.nn.ModuleDict(
            {stream: torch.nn.ModuleDict(by_name) for stream, by_name in objectives.items()}
        )
        self.batches_seen = 0
        compute.apply(self.model)

    # -- steps -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: StepBatch, index: int) -> Tensor:
        # Dropout draws from torch's global generator, masks and negatives from ours. Both start anew at every step, so
        # that a resumed run needs no generator state to repeat an uninterrupted one.
        seed = int(np.random.SeedSequence((self.seed, self.batches_seen, self.global_rank)).generate_state(1)[0])
        torch.manual_seed(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        self.batches_seen += 1
        named: dict[str, Tensor] = {}
        by_stream = self._stream_losses(batch, generator, named)
        losses = list(by_stream) if self.automatic_optimization else self._alternate(by_stream)
        # All at once: what is logged between two updates of an epoch's first step is forgotten by Lightning.
        self.log_dict({f"train/{name}": loss for name, loss in named.items()}, batch_size=1)
        return torch.stack(losses).sum()

    def _stream_losses(
        self, batch: StepBatch, generator: torch.Generator, named: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        """One weighted loss per stream; lazily, so that alternating updates see each other's result.

        Each loss is also put into `named` as "stream/objective".
        """
        for stream, pairs in batch.batches.items():
            losses = pair_losses(self.model, pairs, dict(self.objectives[stream].items()), generator)
            self._check_finite(stream, losses)
            named |= {f"{stream}/{name}": loss.detach() for name, loss in losses.items()}
            yield sum(self.weights.get(f"{stream}/{name}", 1.0) * loss for name, loss in losses.items())

    def _check_finite(self, stream: str, losses: dict[str, Tensor]) -> None:
        finite = torch.stack([loss.detach() for loss in losses.values()]).isfinite()
        if not finite.all():  # the one host sync of a step
            name = list(losses)[int((~finite).nonzero()[0, 0])]
            raise NonFiniteLoss(
                f"step {self.global_step}, stream {stream}: the {name} loss is {losses[name].item()}; the weights are "
                "still those before this step. Lower optimizer.lr, clip gradients, or use bf16 instead of fp16"
            )

    def _alternate(self, by_stream: Iterator[Tensor]) -> list[Tensor]:
        optimizer, losses = self.optimizers(), []
        for loss in by_stream:
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        self.lr_schedulers().step()
        return losses

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, self.settings.clip_norm or float("inf"))
        self.log("train/gradient_norm", norm)

    def validation_step(self, task: Task, index: int) -> None:
        metrics = task.evaluate(self.model, self.processor)
        shown = {name: value for name, value in metrics.items() if name.endswith(SHOWN)}
        for name, value in metrics.items():
            self.log(f"eval/{name}", value, prog_bar=name in shown, batch_size=1, add_dataloader_idx=False)
        if self.trainer.state.fn == TrainerFn.FITTING:  # the other verbs end in a table
            told = ", ".join(f"{name} {value:.1f}" for name, value in shown.items())
            _log.info("step %d: %s", self.global_step, told)

    test_step = validation_step

    # -- state and modes ---------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        # Not trainer.estimated_stepping_batches: asking for it makes a resumed run restart its data.
        total = self.trainer.max_steps
        if total <= 0 and self.settings.schedule != "constant":
            raise ValueError("trainer.max_steps is not set; the rate's schedule needs to know where it ends")
        named = dict(self.model.named_parameters()) | dict(self.objectives.named_parameters(prefix="objectives"))
        optimizer = build_optimizer(parameter_groups(named, self.settings, self.new_names), self.settings)
        # Trainer.max_steps counts updates, of which a step has several when streams alternate; the rate moves per step.
        steps = total if self.automatic_optimization else total // len(self.objectives)
        schedule = build_schedule(optimizer, self.settings, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        modules = dict(self.model.named_modules())
        for part in modules.keys() & set(self.settings.frozen):  # a frozen part keeps its statistics and drops nothing
            modules[part].eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Errors: ValueError where the checkpoint is of another network than the config's, or holds weights alone."""
        needed = {"optimizer_states", type(self.trainer.datamodule).__qualname__}
        if self.trainer.state.fn == TrainerFn.FITTING and (missing := needed - set(checkpoint)):
            raise ValueError(
                f"the checkpoint lacks {', '.join(sorted(missing))}: nothing to resume from; use a whole one"
            )
        stored, ours = _shapes(checkpoint["state_dict"]), _shapes(self.state_dict())
        for name in sorted(stored.keys() | ours.keys()):
            if stored.get(name) != ours.get(name):
                raise ValueError(
                    f"{name} is {stored.get(name, 'missing')} in the checkpoint and {ours.get(name, 'missing')} in the "
                    "config's model; resume with the config that wrote it"
                )
        self.batches_seen = checkpoint["batches_seen"]


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def _check_names(objectives: dict[str, dict[str, Objective]]) -> None:
    for stream, by_name in objectives.items():
        if not by_name:
            raise ValueError(f"model.objectives.{stream} is empty; name an objective, or leave the stream out")
        for name in (stream, *by_name):
            if "." in name or "/" in name:
                raise ValueError(f"model.objectives: {name!r} is no name of a stream or objective; leave out . and /")


def _checked_weights(weights: dict[str, float], objectives: dict[str, dict[str, Objective]]) -> dict[str, float]:
    known = [f"{stream}/{name}" for stream, by_name in objectives.items() for name in by_name]
    for key in weights:
        if key not in known:
            raise ValueError(f"weights names {key!r}, which no stream trains; there are {', '.join(known)}")
    return weights
