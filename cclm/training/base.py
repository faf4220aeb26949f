"""What every training shares: a batch of every stream -> losses -> one update, and a checkpoint that resumes it.

A system adds the network and what is lost on a batch of one of its streams.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from cclm.data.loader import StepBatch
from cclm.data.readers import Processor
from cclm.pivot.fingerprints import agree
from cclm.training.optim import OptimizerSettings, build_optimizer, build_schedule, parameter_groups
from cclm.training.validation import Task
from cclm.types import Batch

_log = logging.getLogger(__name__)

# Metrics worth a place on the progress bar and in the lines of a log.
SHOWN = tuple(
    f"{language}/{metric}"
    for language in ("en", "others")
    for metric in ("text_to_image/R@10", "statements/accuracy", "answers/loss")
)


class NonFiniteLoss(ValueError):
    """A loss became NaN or infinite; raised before the update, so the weights are still those of the last good step."""


class System(pl.LightningModule, ABC):
    """Trains `model`, whose parameters that require a gradient are those that train.

    Every step takes one batch of every stream; the losses are summed and one update follows. With `alternate` each
    stream has its own update, as in the original's schedule; the rate still advances once per step, while
    trainer.max_steps counts updates: streams x steps.
    """

    keeps_frozen: ClassVar[bool] = True  # whether checkpoints hold what does not train, too
    model: nn.Module
    processor: Processor
    new_names: set[str]  # parameters that no pretrained weights filled

    def __init__(
        self,
        named: Mapping[str, Collection[str]],
        optimizer: OptimizerSettings,
        weights: Mapping[str, float] | None = None,
        alternate: bool = False,
        seed: int = 0,
    ) -> None:
        """`named`: stream -> names of its losses. `weights`: "stream/name" -> factor of that loss, else 1."""
        super().__init__()
        _check_names(named)
        self.streams = tuple(named)
        self.losses = {stream: tuple(names) for stream, names in named.items()}
        self.weights = _checked_weights(weights or {}, named)
        self.settings, self.seed = optimizer, seed
        self.automatic_optimization = not alternate
        self.strict_loading = self.keeps_frozen
        self.batches_seen = 0

    @abstractmethod
    def stream_losses(self, stream: str, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Every loss of one batch, by name."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """What the optimizer is given, by name; those that require no gradient are left out by it."""
        return dict(self.model.named_parameters())

    # -- steps -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: StepBatch, index: int) -> Tensor:
        # Dropout draws from torch's global generator, masks and negatives from ours. Both start anew at every step, so
        # that a resumed run needs no generator state to repeat an uninterrupted one.
        seed = int(np.random.SeedSequence((self.seed, self.batches_seen, self.global_rank)).generate_state(1)[0])
        torch.manual_seed(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        self.batches_seen += 1
        named: dict[str, Tensor] = {}
        by_stream = self._weighted(batch, generator, named)
        losses = list(by_stream) if self.automatic_optimization else self._alternate(by_stream)
        # All at once: what is logged between two updates of an epoch's first step is forgotten by Lightning.
        self.log_dict({f"train/{name}": loss for name, loss in named.items()}, batch_size=1)
        return torch.stack(losses).sum()

    def _weighted(self, batch: StepBatch, generator: torch.Generator, named: dict[str, Tensor]) -> Iterator[Tensor]:
        """One weighted loss per stream; lazily, so that alternating updates see each other's result.

        Each loss is also put into `named` as "stream/objective".
        """
        for stream, part in batch.batches.items():
            try:
                losses = self.stream_losses(stream, part, generator)
            except ValueError as error:
                raise ValueError(f"stream {stream}: {error}") from error
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
            told = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
            _log.info("step %d: %s", self.global_step, told)

    test_step = validation_step

    # -- state and modes ---------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        # Not trainer.estimated_stepping_batches: asking for it makes a resumed run restart its data.
        total = self.trainer.max_steps
        if total <= 0 and self.settings.schedule != "constant":
            raise ValueError("trainer.max_steps is not set; the rate's schedule needs to know where it ends")
        groups = parameter_groups(self.trainable(), self.settings, self.new_names)
        optimizer = build_optimizer(groups, self.settings)
        # Trainer.max_steps counts updates, of which a step has several when streams alternate; the rate moves per step.
        steps = total if self.automatic_optimization else total // len(self.streams)
        schedule = build_schedule(optimizer, self.settings, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode:
            _rest_frozen(self.model)
        return self

    def on_fit_start(self) -> None:
        self.train()  # Lightning leaves every part in the mode that it was built in

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen
        checkpoint["fingerprints"] = self._fingerprints()
        if not self.keeps_frozen:
            kept = self._kept()
            checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name in kept}

    def _fingerprints(self) -> dict[str, str]:
        """Of parts that lie elsewhere, and of which a checkpoint holds nothing or what trained of them."""
        return dict(getattr(self.model, "fingerprints", {}))

    def _kept(self) -> set[str]:
        """What of the state is in a checkpoint: all, or what trains and the statistics of parts with nothing frozen."""
        if self.keeps_frozen:
            return set(self.state_dict())
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        within = {name.rpartition(".")[0] for name in frozen}
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        buffers = {name for name, _ in self.named_buffers() if name.rpartition(".")[0] not in within}
        return (trained | buffers) & set(self.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Errors: ValueError where the checkpoint is of another network than the config's, or holds weights alone."""
        needed = {"optimizer_states", type(self.trainer.datamodule).__qualname__}
        if self.trainer.state.fn == TrainerFn.FITTING and (missing := needed - set(checkpoint)):
            raise ValueError(
                f"the checkpoint lacks {', '.join(sorted(missing))}: nothing to resume from; use a whole one"
            )
        known = self._fingerprints()
        for part, made in checkpoint.get("fingerprints", {}).items():
            if not agree(made, known.get(part, "")):
                raise ValueError(
                    f"the checkpoint was made with another {part.replace('_', ' ')} than the config's; resume with the "
                    "one that it was made with"
                )
        kept = self._kept()
        ours = _shapes({name: value for name, value in self.state_dict().items() if name in kept})
        stored = _shapes(checkpoint["state_dict"])
        for name in sorted(stored.keys() | ours.keys()):
            if stored.get(name) != ours.get(name):
                raise ValueError(
                    f"{name} is {stored.get(name, 'missing')} in the checkpoint and {ours.get(name, 'missing')} in the "
                    "config's model; resume with the config that wrote it"
                )
        self.batches_seen = checkpoint["batches_seen"]


def _rest_frozen(part: nn.Module) -> None:
    """Put frozen parts, the largest such, into evaluation: they keep their statistics and drop nothing."""
    own = list(part.parameters())
    if own and not any(parameter.requires_grad for parameter in own):
        part.eval()  # and not its own parts one by one: it may know better
        return
    for child in part.children():
        _rest_frozen(child)


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def _check_names(named: Mapping[str, Collection[str]]) -> None:
    for stream, names in named.items():
        if not names:
            raise ValueError(f"model.objectives.{stream} is empty; name an objective, or leave the stream out")
        for name in (stream, *names):
            if "." in name or "/" in name:
                raise ValueError(f"model.objectives: {name!r} is no name of a stream or objective; leave out . and /")


def _checked_weights(weights: Mapping[str, float], named: Mapping[str, Collection[str]]) -> dict[str, float]:
    known = [f"{stream}/{name}" for stream, names in named.items() for name in names]
    for key in weights:
        if key not in known:
            raise ValueError(f"weights names {key!r}, which no stream trains; there are {', '.join(known)}")
    return dict(weights)
