"""What a model of any kind must offer to be scored: embeddings for retrieval, pair scores to rerank by.

Shapes: N images, T texts, E embedding, P (image, text) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image
from torch import Tensor


class TextEmbedder(Protocol):
    """`name` stands in reports. `language`, an IGLUE code, is for models whose text encoder asks for it."""

    name: str

    def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
        """(T, E) float32 of unit norm."""
        ...


class Embedder(TextEmbedder, Protocol):
    """A dual encoder: what the first stage of retrieval, and zero-shot classification, ask of a model."""

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, E) float32 of unit norm."""
        ...


class PairScorer(Protocol):
    """The second stage. Held images are encoded once, whatever the number of texts and languages."""

    name: str

    def hold_images(self, images: Sequence[Image.Image]) -> None:
        """Take in the next images; row numbers go on over calls."""
        ...

    def score_pairs(self, texts: Sequence[str], pairs: Tensor, language: str) -> Tensor:
        """(P,) float32, higher for a better match, for pairs (P, 2) of (row of a held image, row of `texts`)."""
        ...
