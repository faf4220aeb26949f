"""The moving average of the weights that train, which paints better than those of the last step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from cclm.pivot.diffusers_parts import diffusers


class Average:
    """diffusers' EMAModel over the parameters of a model that require a gradient.

    `decay`: of the average per step n; it is (1 + n) / (10 + n) as long as that is smaller. 0: the last step's weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"average is {decay}; give a share from 0 (none) to below 1, as 0.999")
        self._decay = decay
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._average = diffusers().training_utils.EMAModel(self._parameters, decay=decay, foreach=True)

    def step(self) -> None:
        """After every update."""
        device = self._parameters[0].device
        if self._average.shadow_params[0].device != device:
            self._average.to(device)
        self._average.step(self._parameters)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for as long as the block lasts."""
        if not self._decay:  # the average is as good as them, but for rounding
            yield
            return
        self._average.store(self._parameters)
        self._average.copy_to(self._parameters)
        try:
            yield
        finally:
            self._average.restore(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Errors: ValueError for the average of other parameters."""
        ours, theirs = ([tuple(p.shape) for p in each] for each in (self._parameters, state["shadow_params"]))
        if ours != theirs:
            raise ValueError("the checkpoint's average is of other weights; resume with the config that wrote it")
        self._average.load_state_dict(state)
