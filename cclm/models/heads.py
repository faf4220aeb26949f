"""Heads: states -> embedding, match logits, vocabulary, answers.

Shapes: B pairs, M masked positions, R answers of T tokens, S states of the context, D width, E embedding, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cclm.models.layers import Embeddings, Layout, Stack, Vocabulary
from cclm.types import Memory, TextInput, View


class Projection(nn.Linear):
    """State (B, D) -> unit-norm embedding (B, E)."""

    def forward(self, state: Tensor) -> Tensor:
        # Normalised in float32: under bf16 autocast the norm alone would cost two digits of every similarity.
        return F.normalize(super().forward(state).float(), dim=-1)


class MatchHead(nn.Sequential):
    """First fused state (B, D) -> logits (B, classes); the reference's two-layer head, also used for boxes."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, classes))


class Transform(nn.Module):
    """What stands between the last states and the product with the vocabulary."""

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def hidden(self, states: Tensor) -> Tensor:
        """States (..., D) right before the decoder (..., D)."""
        return self.norm(F.gelu(self.dense(states)))


class MaskedLMHead(Transform):
    """States -> vocabulary. `hidden` and `decoder` are apart so that a loss can fuse the wide product with itself."""

    def __init__(self, width: int, vocabulary: int, norm_eps: float) -> None:
        super().__init__(width, norm_eps)
        self.decoder = nn.Linear(width, vocabulary)

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.hidden(states))  # (..., V)


class AnswerDecoder(nn.Module):
    """Spells answers token by token in the light of fused states (reference/cclm.md 4.2).

    Its own embeddings serve as its decoder too; every layer reads the context.
    """

    def __init__(self, layout: Layout, vocabulary: Vocabulary, layers: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(layout, vocabulary)
        self.stack = Stack(layout, layers, cross=True)
        self.transform = Transform(layout.width, layout.norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary.size))

    def project(self, question: View) -> Memory:
        """Keys and values of fused states (B, S, D) for every layer, to be read by any number of answers."""
        projected = [block.cross_attention.project(question.states) for block in self.stack.blocks]
        return Memory(*zip(*projected, strict=True), question.mask, question.embedding)

    def forward(self, answers: TextInput, question: Memory) -> Tensor:
        """Logits (R, T, V) of what follows each token of `answers` (R, T), each in the light of its own question."""
        length = answers.input_ids.shape[1]
        past = torch.ones(length, length, dtype=torch.bool, device=question.mask.device).tril()  # (T, T)
        attend = past & answers.attention_mask.bool()[:, None, :]  # (R, T, T)
        contexts = question.contexts()
        hidden = self.transform.hidden(self.stack(self.embeddings(answers.input_ids), attend, contexts))  # (R, T, D)
        return F.linear(hidden, self.embeddings.word.weight, self.bias)
