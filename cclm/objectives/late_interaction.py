"""Late interaction: each token of a target must find its like among the states of its own context, not of another's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.objectives.base import Draft, EncodedPair, Objective
from cclm.types import View


class LateInteraction(Objective):
    """InfoNCE, both directions, over the mean of a target's tokens' best cosines with the states of a context (FILIP).

    Where `Contrastive` compares what views are as a whole, this has each word of a text be somewhere in the context.
    Rows of other ranks are no partners here: states are many times what embeddings are.
    """

    def forward(self, pair: EncodedPair, draft: Draft | None = None, view: View | None = None) -> Tensor:
        scores = pair.model.scale() * interaction(pair.context, pair.target)  # (B, B)
        right = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


def interaction(context: View, target: View) -> Tensor:
    """(B, C) float32, how far every token of C targets is found among the states of B contexts, from -1 to 1."""
    states, tokens = (F.normalize(each.states.float(), dim=-1) for each in (context, target))  # (B, N, D), (C, T, D)
    alike = torch.einsum("bnd,ctd->bcnt", states, tokens)
    best = alike.masked_fill(~context.mask[:, None, :, None], -1.0).amax(2)  # (B, C, T)
    weight = target.mask.float()  # (C, T)
    return (best * weight).sum(-1) / weight.sum(-1).clamp(min=1.0)
