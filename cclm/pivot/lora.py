"""Low-rank adapters: what trains of a language model whose weights stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cclm.errors import first_line

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (peft) in place of the weights they stand beside; the defaults are mBLIP's.

    `targets`: ends of the names of the layers that get one (q_proj, v_proj ..), None for every linear layer but the
    one that gives logits.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.05
    targets: list[str] | None = None

    def add_to(self, model: PreTrainedModel) -> nn.Module:
        """The model with adapters, all else frozen. Errors: ValueError without peft or where no layer is named so."""
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise ValueError(
                "language_model.lora needs the package peft, which is not installed; pip install 'cclm[pivot]', or set "
                "lora to null"
            ) from None
        settings = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets or "all-linear",
            task_type="CAUSAL_LM",
        )
        try:
            return get_peft_model(model, settings)
        except ValueError as error:
            raise ValueError(f"language_model.lora: {first_line(error)}") from None
