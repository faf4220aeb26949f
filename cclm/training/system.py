"""The cross-view system: pairs of every stream -> views -> the objectives' losses.

What the settings mean for the result is in `settings.py`; the loop's body is in `base.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cclm.objectives.base import Objective, pair_losses
from cclm.training.base import System
from cclm.training.optim import OptimizerSettings, freeze
from cclm.training.settings import ComputeSettings, NetworkSettings, ProcessorSettings
from cclm.types import PairBatch


class CrossViewSystem(System):
    """Trains one network on the pairs of any number of streams."""

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
        super().__init__(objectives, optimizer, weights, alternate, seed)
        self.processor, self.network = processor.build(), network
        torch.manual_seed(seed)
        self.model, self.new_names = network.build(self.processor)
        self.processor.check_fits(self.model.config)
        freeze(self.model, optimizer.frozen)
        self.objectives = nn.ModuleDict({stream: nn.ModuleDict(by_name) for stream, by_name in objectives.items()})
        compute.apply(self.model)

    def stream_losses(self, stream: str, batch: PairBatch, generator: torch.Generator) -> dict[str, Tensor]:
        return pair_losses(self.model, batch, dict(self.objectives[stream].items()), generator)

    def trainable(self) -> dict[str, nn.Parameter]:
        return super().trainable() | dict(self.objectives.named_parameters(prefix="objectives"))
