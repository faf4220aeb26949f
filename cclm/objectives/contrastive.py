"""Contrastive objective: each view must find its partner among all of the global batch (InfoNCE, both directions)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.objectives.base import Draft, EncodedPair, Objective
from cclm.objectives.gather import gather_rows, gather_values, ranks
from cclm.types import View


class Contrastive(Objective):
    """Local rows against gathered columns, mean of both directions (reference/cclm.md 2.2).

    Gradient scale: each rank's loss is the mean over its own rows and gradients reach the columns of other ranks; after
    DDP's averaging they are exactly those of one process with the global batch. The original drops the gradient of
    remote columns, so that its encoders get 1/ranks of that while the temperature gets all: `as_published` does
    likewise. `by_record`: all partners from a pair's record are right ones, in equal parts (retrieval fine-tuning).
    """

    def __init__(self, by_record: bool = False, as_published: bool = False) -> None:
        super().__init__()
        self.by_record, self.as_published = by_record, as_published

    def forward(self, pair: EncodedPair, draft: Draft | None = None, view: View | None = None) -> Tensor:
        context, target = pair.context.embedding, pair.target.embedding  # (B, E)
        if self.as_published:
            context, target = _slowed(context, ranks()), _slowed(target, ranks())
        contexts, start = gather_rows(context)  # (N, E)
        targets, _ = gather_rows(target)  # (N, E)
        scale = pair.model.scale()
        right = self._right(pair, start, len(contexts))
        forward = F.cross_entropy(scale * context @ targets.T, right)  # (B, N)
        backward = F.cross_entropy(scale * target @ contexts.T, right)  # (B, N)
        return (forward + backward) / 2

    def _right(self, pair: EncodedPair, start: int, total: int) -> Tensor:
        """The right column of each row (B,), or the share of each column (B, N)."""
        if not self.by_record:
            return torch.arange(start, start + len(pair.batch), device=pair.target.embedding.device)
        ids = pair.record_ids
        same = (ids[:, None] == gather_values(ids)).float()  # (B, N)
        assert same.shape[1] == total
        return same / same.sum(1, keepdim=True)


def _slowed(embedding: Tensor, factor: int) -> Tensor:
    """The same values, with a gradient `factor` times smaller."""
    return embedding if factor == 1 else embedding / factor + (embedding * (1 - 1 / factor)).detach()
