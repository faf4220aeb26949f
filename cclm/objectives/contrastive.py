"""Contrastive objective: each view must find its partner among all of the global batch (InfoNCE, both directions)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.objectives.base import Draft, EncodedPair, Objective
from cclm.objectives.gather import gather_rows
from cclm.types import View


class Contrastive(Objective):
    """Local rows against gathered columns, mean of both directions (reference/cclm.md 2.2).

    Gradient scale: each rank's loss is the mean over its own rows and gradients reach the columns of other ranks; after
    DDP's averaging they are exactly those of one process with the global batch. (The original's are 1/ranks of it for
    the encoders, because it drops the gradient of remote columns.)
    """

    def forward(self, pair: EncodedPair, draft: Draft | None = None, view: View | None = None) -> Tensor:
        context, target = pair.context.embedding, pair.target.embedding  # (B, E)
        contexts, start = gather_rows(context)  # (N, E)
        targets, _ = gather_rows(target)  # (N, E)
        scale = pair.model.scale()
        labels = torch.arange(start, start + len(context), device=context.device)
        forward = F.cross_entropy(scale * context @ targets.T, labels)  # (B, N)
        backward = F.cross_entropy(scale * target @ contexts.T, labels)  # (B, N)
        return (forward + backward) / 2
