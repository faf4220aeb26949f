"""Answering objective: spell each answer, token by token, in the light of the question that read the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.models.model import CCLMModel
from cclm.objectives.base import Draft, EncodedPair, Objective
from cclm.objectives.classification import labels_of
from cclm.types import TextInput, View


class Answering(Objective):
    """Negative log-likelihood of each answer by its weight, summed, over the questions (reference/cclm.md 4.2)."""

    def forward(self, pair: EncodedPair, draft: Draft | None = None, view: View | None = None) -> Tensor:
        labels = labels_of(pair.batch)
        fused = pair.model.fuse(pair.target, pair.memory)  # (B, L, D)
        question = View(fused, pair.target.mask, pair.target.embedding).select(labels.owner)
        return torch.dot(spelling_losses(pair.model, labels.text, question), labels.weight) / len(pair.batch)


def spelling_losses(model: CCLMModel, answers: TextInput, question: View) -> Tensor:
    """Negative log-likelihood (R,) of all tokens of R answers but the first, each after its own question."""
    logits = model.answer_logits(answers, question)[:, :-1]  # (R, T - 1, V)
    wanted = answers.input_ids[:, 1:].where(answers.attention_mask[:, 1:].bool(), -100)
    return F.cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none", ignore_index=-100).sum(1)
