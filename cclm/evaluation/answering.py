"""Ranking a closed list of answers by how well a decoder spells each (reference/cclm.md 4.2).

Shapes: B questions, A answers, T tokens, K kept answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from cclm.types import Memory, TextInput

FIRST_TOKEN = {
    "once": "the log-likelihood of the whole answer",
    "twice": "the same plus that of its first token, which so counts twice, as in the original code",
}


class Speller(Protocol):
    """A model that spells answers."""

    def answer_logits(self, answers: TextInput, question: Memory) -> Tensor: ...

    def answer_losses(self, answers: TextInput, question: Memory) -> Tensor: ...


@dataclass(frozen=True)
class RankOptions:
    """`candidates`: answers kept by their first token, of which all tokens then decide. `first_token`: "once", or
    "twice" as the original counts it. `rows`: answers spelt at once."""

    candidates: int = 128
    first_token: Literal["once", "twice"] = "once"
    rows: int = 512

    def __post_init__(self) -> None:
        for name in ("candidates", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.first_token not in FIRST_TOKEN:
            raise ValueError(f"first_token is {self.first_token!r}; choose {' or '.join(FIRST_TOKEN)}")


def rank_answers(model: Speller, answers: TextInput, question: Memory, options: RankOptions) -> tuple[Tensor, Tensor]:
    """Rows of the best answers (B, K), best first, and their probabilities among these (B, K)."""
    count = len(question.mask)
    first = _first_token(model, answers, question)  # (B, A) log-likelihoods
    kept, rows = first.topk(min(options.candidates, len(answers)), dim=1)  # (B, K)
    owners = torch.arange(count, device=rows.device).repeat_interleave(rows.shape[1])  # (B * K,)
    losses = []
    for start in range(0, rows.numel(), options.rows):
        chosen = slice(start, start + options.rows)
        spelt = answers.select(rows.flatten()[chosen])
        losses.append(model.answer_losses(spelt, question.select(owners[chosen])))
    scores = -torch.cat(losses).view_as(kept)
    if options.first_token == "twice":
        scores = scores + kept
    probabilities, order = scores.softmax(1).sort(dim=1, descending=True, stable=True)
    return rows.gather(1, order), probabilities


def _first_token(model: Speller, answers: TextInput, question: Memory) -> Tensor:
    """Log-likelihood of each answer's first token after the start (B, A)."""
    start = answers.input_ids[:1, :1].expand(len(question.mask), 1)  # (B, 1)
    logits = model.answer_logits(TextInput(start, torch.ones_like(start, dtype=torch.bool)), question)[:, 0]  # (B, V)
    return logits.float().log_softmax(1)[:, answers.input_ids[:, 1]]
