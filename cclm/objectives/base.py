"""How an objective meets a batch of pairs: what is encoded once and shared, and what each objective adds.

Shapes: B pairs, L tokens, D width, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cclm.models.model import CCLMModel
from cclm.types import Memory, PairBatch, TextInput, View


@dataclass
class EncodedPair:
    """One batch, encoded: both views, and the context's keys and values once some objective fuses."""

    model: CCLMModel
    batch: PairBatch
    context: View
    target: View
    generator: torch.Generator | None = None  # on the views' device

    @property
    def record_ids(self) -> Tensor:
        """(B,) int64, equal for pairs of one record."""
        assert self.batch.ids is not None, "the loader fills them"
        return self.batch.ids

    @cached_property
    def memory(self) -> Memory:
        return self.model.project(self.context)


@dataclass
class Draft:
    """A corrupted target that an objective wants encoded along with the clean one, and what it must recover."""

    text: TextInput  # (R, L) for the first R pairs
    positions: Tensor  # (R, M) int64, padded with 0
    labels: Tensor  # (R, M) int64, -100 = padding


class Objective(nn.Module):
    """One loss on a batch of pairs. It never asks what kind of view the context is."""

    def draft(self, model: CCLMModel, batch: PairBatch, generator: torch.Generator | None) -> Draft | None:
        """A corrupted target to encode in the same pass, for objectives that need one."""
        return None

    def forward(self, pair: EncodedPair, draft: Draft | None, view: View | None) -> Tensor:
        """Scalar loss; `draft` and its encoded `view` are what `draft()` asked for."""
        raise NotImplementedError


def pair_losses(
    model: CCLMModel, batch: PairBatch, objectives: dict[str, Objective], generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Every objective's loss on one batch, by name.

    The clean targets and every draft go through one call of the text encoder; the context is encoded once and its keys
    and values are projected once.
    """
    drafts = {name: objective.draft(model, batch, generator) for name, objective in objectives.items()}
    texts = [batch.target, *(draft.text for draft in drafts.values() if draft is not None)]
    views = _split(_stack(texts, model.config.pad_token_id).encode(model), texts)
    pair = EncodedPair(model, batch, batch.context.encode(model), next(views), generator)
    encoded = {name: None if draft is None else next(views) for name, draft in drafts.items()}
    return {name: objective(pair, drafts[name], encoded[name]) for name, objective in objectives.items()}


def _stack(texts: list[TextInput], pad: int) -> TextInput:
    longest = max(text.input_ids.shape[1] for text in texts)
    ids = [F.pad(text.input_ids, (0, longest - text.input_ids.shape[1]), value=pad) for text in texts]
    masks = [F.pad(text.attention_mask, (0, longest - text.attention_mask.shape[1])) for text in texts]
    return TextInput(torch.cat(ids), torch.cat(masks))


def _split(view: View, texts: list[TextInput]):
    start = 0
    for text in texts:
        rows, length = slice(start, start + len(text)), text.input_ids.shape[1]
        yield View(view.states[rows, :length], view.mask[rows, :length], view.embedding[rows])
        start += len(text)


def first_rows(count: int, budget: int | None) -> int:
    """How many of `count` pairs an objective with a budget of rows looks at."""
    return count if budget is None else min(count, budget)
