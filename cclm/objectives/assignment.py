"""Assignment objective: is a text about the first of two images, the second, or neither?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.objectives.base import Draft, EncodedPair, Objective
from cclm.objectives.matching import negative_weights
from cclm.types import View

_TEMPERATURE = 0.07  # fixed: nothing trains it here


class Assignment(Objective):
    """Prepares a model for two images with captions of one (the original's domain pre-training for NLVR2).

    The text's own image stands first or second or, for a third of the texts, is missing. Wrong images are drawn from
    the batch by their similarity to it, or at random in a model without projections (reference/cclm.md 4.3).
    """

    def forward(self, pair: EncodedPair, draft: Draft | None = None, view: View | None = None) -> Tensor:
        count = len(pair.batch)
        if count < 3:
            raise ValueError(f"stream {pair.batch.stream}: assignment needs 3 pairs to draw from; raise batch_size")
        device = pair.target.states.device
        wrong = _wrong_images(pair.context.embedding.float(), pair.generator)  # (2, B)
        place = torch.randint(3, (count,), generator=pair.generator, device=device)
        own = torch.arange(count, device=device)
        first, second = (own.where(place == index, wrong[index]) for index in (0, 1))
        images = [pair.context.select(rows) for rows in (first, second)]
        states, mask = (torch.cat([getattr(image, name) for image in images], dim=1) for name in ("states", "mask"))
        fused = pair.model.fuse(pair.target, View(states, mask, pair.context.embedding))
        return F.cross_entropy(pair.model.assign_logits(fused).float(), place)


@torch.no_grad()
def _wrong_images(embedding: Tensor, generator: torch.Generator | None) -> Tensor:
    """Two different rows (2, B) of `embedding` (B, E) for each row, neither of them itself."""
    allowed = ~torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    weights = negative_weights(embedding @ embedding.T / _TEMPERATURE, allowed)
    return torch.multinomial(weights, 2, generator=generator).T
