"""Late interaction: the tokens of a target and the states of its own context must find each other, not another's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.objectives.base import Draft, EncodedPair, Objective
from cclm.types import View


class LateInteraction(Objective):
    """InfoNCE, both directions, over how alike a context and a target are part by part (FILIP, Yao et al. 2022).

    Where `Contrastive` compares what views are as a whole, this has each word of a text be somewhere in the context,
    and nothing be there that is not in the text. Rows of other ranks are no partners here: states are many times what
    embeddings are.
    """

    def forward(self, pair: EncodedPair, draft: Draft | None = None, view: View | None = None) -> Tensor:
        scores = pair.model.scale() * interaction(pair.context, pair.target)  # (B, B)
        right = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


def interaction(context: View, target: View) -> Tensor:
    """(B, C) float32 from -1 to 1, of B contexts and C targets: the mean over the states of one of the best cosine
    with a state of the other, taken both ways and halved.
    """
    ours, theirs = (F.normalize(view.states.float(), dim=-1) for view in (context, target))  # (B, N, D), (C, T, D)
    alike = torch.einsum("bnd,ctd->bcnt", ours, theirs)
    of_target = alike.masked_fill(~context.mask[:, None, :, None], -1.0).amax(2)  # (B, C, T)
    of_context = alike.masked_fill(~target.mask[None, :, None, :], -1.0).amax(3)  # (B, C, N)
    return (_mean(of_target, target.mask[None]) + _mean(of_context, context.mask[:, None])) / 2


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over the last dimension, of what is not masked."""
    weight = mask.to(values.dtype)
    return (values * weight).sum(-1) / weight.sum(-1).clamp(min=1.0)
