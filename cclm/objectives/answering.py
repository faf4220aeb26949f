"""Answering objective: spell each answer, token by token, in the light of the question that read the image."""

from __future__ import annotations

import torch
from torch import Tensor

from cclm.objectives.base import Draft, EncodedPair, Objective
from cclm.objectives.classification import labels_of
from cclm.types import View


class Answering(Objective):
    """Negative log-likelihood of each answer by its weight, summed, over the questions (reference/cclm.md 4.2)."""

    def forward(self, pair: EncodedPair, draft: Draft | None = None, view: View | None = None) -> Tensor:
        labels = labels_of(pair.batch)
        fused = pair.model.fuse(pair.target, pair.memory)  # (B, L, D)
        question = pair.model.project_question(fused, pair.target).select(labels.owner)
        return torch.dot(pair.model.answer_losses(labels.text, question), labels.weight) / len(pair.batch)
