"""Conditional masked language modelling: recover masked tokens of the target in the light of the context."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.models.model import CCLMModel
from cclm.objectives.base import Draft, EncodedPair, Objective, first_rows
from cclm.types import PairBatch, TextInput, View

IGNORED = -100


class MaskedLM(Objective):
    """Masks `share` of the tokens on the device and predicts them from fused states (reference/cclm.md 2.1).

    Only masked positions pass the vocabulary-wide decoder. `rows` limits it to the first pairs of the batch.
    """

    def __init__(
        self, share: float = 0.4, max_masks: int = 12, span_share: float = 0.2, rows: int | None = None
    ) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(
                f"masked_lm share is {share}; choose a share of the tokens in (0, 1], the reference has 0.4"
            )
        self.share, self.max_masks, self.span_share, self.rows = share, max_masks, span_share, rows

    def draft(self, model: CCLMModel, batch: PairBatch, generator: torch.Generator | None) -> Draft:
        count = first_rows(len(batch), self.rows)
        text = TextInput(batch.target.input_ids[:count], batch.target.attention_mask[:count])
        return self.mask(text, model, generator)

    def mask(self, text: TextInput, model: CCLMModel, generator: torch.Generator | None) -> Draft:
        """Choose and corrupt tokens of `text` (R, L): 80 % become <mask>, 10 % a random token, 10 % stay."""
        ids, config = text.input_ids, model.config
        positions, chosen = choose_masks(text.attention_mask, self.share, self.max_masks, self.span_share, generator)
        original = ids.gather(1, positions)  # (R, M)
        kind = _uniform(positions, generator)
        noise = (_uniform(positions, generator) * config.vocab_size).long()
        corrupt = torch.where(kind < 0.8, config.mask_token_id, torch.where(kind < 0.9, noise, original))
        # Padding positions point at token 0, which must keep its own id.
        corrupted = ids.scatter(1, positions.where(chosen, 0), torch.where(chosen, corrupt, ids[:, :1]))
        return Draft(
            TextInput(corrupted, text.attention_mask), positions.where(chosen, 0), original.where(chosen, IGNORED)
        )

    def forward(self, pair: EncodedPair, draft: Draft, view: View) -> Tensor:
        rows = torch.arange(len(draft.labels), device=draft.labels.device)
        return recovery_loss(pair.model, pair.model.fuse(view, pair.memory.select(rows)), draft)


def recovery_loss(model: CCLMModel, fused: Tensor, draft: Draft) -> Tensor:
    """Mean cross-entropy over the masked tokens; the decoder's logits are never all kept where torch can fuse it.

    Places that only pad the list of masks, a third of them, are left out before the product with the vocabulary, the
    largest of a step; that costs a wait for the device.
    """
    rows, columns = (draft.labels != IGNORED).nonzero(as_tuple=True)  # (K,) each
    hidden = model.mlm_hidden(fused, rows, draft.positions[rows, columns])  # (K, D)
    decoder, labels = model.mlm_head.decoder, draft.labels[rows, columns]
    if hasattr(F, "linear_cross_entropy"):  # torch >= 2.13
        return F.linear_cross_entropy(hidden, decoder.weight, labels, linear_bias=decoder.bias)
    return F.cross_entropy(decoder(hidden).float(), labels)


def choose_masks(
    attention_mask: Tensor, share: float, max_masks: int, span_share: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Positions (R, M) to mask in each text of `attention_mask` (R, L), and which of them are chosen (R, M) bool.

    A text of n tokens gets min(max_masks, max(1, round(n * share))) masks; never its first token. Every token starts a
    span: one token long, or two or three (even odds) with probability `span_share`. Spans are taken in random order
    until they cover enough; the last is cut at random. All on the device: a token's turn is the earliest span over it.
    """
    lengths = attention_mask.sum(1, keepdim=True)  # (R, 1)
    wanted = (lengths * share).round().clamp(1, max_masks)  # (R, 1)
    order = _uniform(attention_mask, generator)  # (R, L) when each start's turn comes
    span = _uniform(attention_mask, generator)  # (R, L)
    reach = 1 + (span < span_share).long() + (span < span_share / 2).long()
    never = torch.full_like(order, 2.0)
    starts = attention_mask.bool().clone()
    starts[:, 0] = False
    order = order.where(starts, never)
    turn = order
    for back in (1, 2):
        earlier = F.pad(order.where(reach > back, never), (back, 0), value=2.0)[:, : order.shape[1]]
        turn = torch.minimum(turn, earlier)
    # Ties within a span break at random, far below the gaps between spans.
    turn = (turn + 1e-6 * _uniform(attention_mask, generator)).where(starts, never)
    count = min(max_masks, max(1, round(attention_mask.shape[1] * share)), attention_mask.shape[1])
    first, positions = turn.topk(count, dim=1, largest=False)  # (R, M)
    rank = torch.arange(count, device=turn.device)
    return positions, (rank < wanted) & (first < 2.0)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, device=like.device, generator=generator)
