"""Sigmoid objective: every (context, target) combination is judged on its own (SigLIP, Zhai et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cclm.objectives.base import Draft, EncodedPair, Objective
from cclm.objectives.gather import gather_rows
from cclm.types import View


class Sigmoid(Objective):
    """An alternative to `Contrastive` for batches too large for one softmax; sum over columns, mean over rows.

    The gradient rule is `Contrastive`'s. The bias (initially -10: most combinations do not match) trains with it and is
    not needed afterwards.
    """

    def __init__(self, bias: float = -10.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, pair: EncodedPair, draft: Draft | None = None, view: View | None = None) -> Tensor:
        context = pair.context.embedding  # (B, E)
        targets, start = gather_rows(pair.target.embedding)  # (N, E)
        logits = pair.model.scale() * context @ targets.T + self.bias  # (B, N)
        rows = torch.arange(len(context), device=context.device)
        signs = -torch.ones_like(logits)
        signs[rows, start + rows] = 1.0
        return -F.logsigmoid(signs * logits).sum(1).mean()
