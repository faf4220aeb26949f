"""Heads: states -> embedding, match logits, vocabulary.

Shapes: B pairs, M masked positions, D width, E embedding, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Projection(nn.Linear):
    """State (B, D) -> unit-norm embedding (B, E)."""

    def forward(self, state: Tensor) -> Tensor:
        # Normalised in float32: under bf16 autocast the norm alone would cost two digits of every similarity.
        return F.normalize(super().forward(state).float(), dim=-1)


class MatchHead(nn.Sequential):
    """First fused state (B, D) -> logits (B, classes); the reference's two-layer head, also used for boxes."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, classes))


class MaskedLMHead(nn.Module):
    """States -> vocabulary. `hidden` and `decoder` are apart so that a loss can fuse the wide product with itself."""

    def __init__(self, width: int, vocabulary: int, norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.decoder = nn.Linear(width, vocabulary)

    def hidden(self, states: Tensor) -> Tensor:
        """States (..., D) right before the decoder (..., D)."""
        return self.norm(F.gelu(self.dense(states)))

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.hidden(states))  # (..., V)
