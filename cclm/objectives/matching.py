"""Matching objective: are target and context views of one thing? Wrong partners are drawn by similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.objectives.base import Draft, EncodedPair, Objective, first_rows
from cclm.types import Memory, View


class Matching(Objective):
    """One true pair against a hard negative on each side, cross-entropy over 3 B rows (reference/cclm.md 2.3).

    `rows` limits it to the first pairs of the batch, since fusion costs most of a step; negatives come from those rows.
    `hardness` h: a wrong partner is drawn with a chance in proportion to exp(h * similarity / temperature). At 1, as in
    the reference, nothing that the embeddings know tells it from the right one, and a small model stays at chance for
    long; at 0 all are equally likely. `by_record`: partners from the same record are no wrong ones (retrieval
    fine-tuning, where an image comes with several of its captions).
    """

    def __init__(self, rows: int | None = None, hardness: float = 1.0, by_record: bool = False) -> None:
        super().__init__()
        if not hardness >= 0:
            raise ValueError(f"matching hardness is {hardness}; choose 0 (any wrong partner) to 1 (by similarity)")
        self.rows, self.hardness, self.by_record = rows, hardness, by_record

    def forward(self, pair: EncodedPair, draft: Draft | None = None, view: View | None = None) -> Tensor:
        count = first_rows(len(pair.batch), self.rows)
        if count < 2:
            raise ValueError(
                f"stream {pair.batch.stream}: matching needs 2 pairs to draw a wrong partner; raise batch_size"
            )
        rows = torch.arange(count, device=pair.target.embedding.device)
        target, memory = pair.target.select(rows), pair.memory.select(rows)
        negative_context, negative_target = draw_negatives(pair, self._allowed(pair, count), self.hardness)
        texts = _join_views(target, target, target.select(negative_target))
        contexts = _join_memories(memory, memory.select(negative_context), memory)
        logits = pair.model.match_logits(pair.model.fuse(texts, contexts))  # (3 B, 2)
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        labels[:count] = 1
        return F.cross_entropy(logits.float(), labels)

    def _allowed(self, pair: EncodedPair, count: int) -> Tensor:
        """Which partners (B, B) are wrong ones."""
        if not self.by_record:
            return ~torch.eye(count, dtype=torch.bool, device=pair.target.embedding.device)
        ids = pair.record_ids[:count]
        return ids[:, None] != ids


@torch.no_grad()
def draw_negatives(pair: EncodedPair, allowed: Tensor, hardness: float = 1.0) -> tuple[Tensor, Tensor]:
    """For each of the first B pairs a wrong context and a wrong target, (B,) each, likely when similar.

    `allowed` (B, B) bool says which are wrong ones. Errors: ValueError where a pair has none.
    """
    if not allowed.any(1).all():
        raise ValueError(
            f"stream {pair.batch.stream}: all pairs of a batch are of one record, none is wrong; raise batch_size"
        )
    count = len(allowed)
    context, target = pair.context.embedding[:count], pair.target.embedding[:count]
    similarity = (hardness * pair.model.scale() * target @ context.T).float()  # (B, B) row: target, column: context
    of_targets = negative_weights(similarity, allowed)
    of_contexts = negative_weights(similarity.T, allowed)
    contexts = torch.multinomial(of_targets, 1, generator=pair.generator).squeeze(1)
    return contexts, torch.multinomial(of_contexts, 1, generator=pair.generator).squeeze(1)


def negative_weights(similarity: Tensor, allowed: Tensor) -> Tensor:
    """Chances (B, B), up to a factor per row, of the `allowed` partners by their scaled similarity."""
    # Of a model that diverged the loss shall tell, not the draw. The floor keeps easy partners possible.
    weights = similarity.nan_to_num(0.0, 0.0, 0.0).softmax(1) + 1e-5
    return weights.where(allowed, 0.0)


def _join_views(*views: View) -> View:
    return View(
        torch.cat([v.states for v in views]),
        torch.cat([v.mask for v in views]),
        torch.cat([v.embedding for v in views]),
    )


def _join_memories(*memories: Memory) -> Memory:
    keys = tuple(torch.cat(layer) for layer in zip(*(m.keys for m in memories), strict=True))
    values = tuple(torch.cat(layer) for layer in zip(*(m.values for m in memories), strict=True))
    return Memory(keys, values, torch.cat([m.mask for m in memories]), torch.cat([m.embedding for m in memories]))
