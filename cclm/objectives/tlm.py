"""Translation language modelling: recover masked tokens of two sentences laid end to end (Conneau & Lample 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from cclm.models.model import CCLMModel
from cclm.objectives.base import Draft, EncodedPair
from cclm.objectives.masked_lm import MaskedLM, recovery_loss
from cclm.types import PairBatch, TextInput, View


class TranslationLM(MaskedLM):
    """An alternative to `MaskedLM` on sentence pairs: self-attention over both, no cross-attention.

    Both sentences are masked, so `max_masks` should be about twice `MaskedLM`'s (reference/cclm.md 7.2).
    Errors: ValueError on a stream whose context is not text.
    """

    def __init__(
        self, share: float = 0.4, max_masks: int = 40, span_share: float = 0.2, rows: int | None = None
    ) -> None:
        super().__init__(share, max_masks, span_share, rows)

    def draft(self, model: CCLMModel, batch: PairBatch, generator: torch.Generator | None) -> Draft:
        if not isinstance(batch.context, TextInput):
            raise ValueError(
                f"stream {batch.stream}: tlm reads two texts, this context is not text; use masked_lm here"
            )
        return self.mask(_end_to_end(batch.target, batch.context, model.config.pad_token_id), model, generator)

    def forward(self, pair: EncodedPair, draft: Draft, view: View) -> Tensor:
        return recovery_loss(pair.model, pair.model.fuse(view, None), draft)


def _end_to_end(first: TextInput, second: TextInput, pad: int) -> TextInput:
    """Two texts (B, L1), (B, L2) -> one (B, L) with all padding moved behind both."""
    ids = torch.cat([first.input_ids, second.input_ids], dim=1)
    mask = torch.cat([first.attention_mask, second.attention_mask], dim=1)
    order = (~mask).long().argsort(dim=1, stable=True)  # real tokens first, in their order
    return TextInput(ids.gather(1, order).where(mask.gather(1, order), pad), mask.gather(1, order))
