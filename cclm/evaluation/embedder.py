"""What a model of any kind offers to be scored: embeddings, pair scores to rerank by, labels; and what it is.

Shapes: N images, T texts, E embedding, P (image, text) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeAlias

from PIL import Image
from torch import Tensor

Images: TypeAlias = Sequence[Image.Image]  # in RGB


class TextEmbedder(Protocol):
    """`language`, an IGLUE code, is for models whose text encoder asks for it."""

    def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
        """(T, E) float32 of unit norm, on the CPU."""
        ...


class Embedder(TextEmbedder, Protocol):
    """A dual encoder: what the first stage of retrieval, and zero-shot classification, ask of a model."""

    def embed_images(self, images: Images) -> Tensor:
        """(N, E) float32 of unit norm, on the CPU. Called batch after batch."""
        ...


class PairScorer(Protocol):
    """The second stage. Held images are encoded once, whatever the number of texts and languages.

    `similarity_scale`: what a similarity is multiplied with where it counts beside the score, an inverse temperature.
    """

    similarity_scale: float

    def hold_images(self, images: Images) -> None:
        """Take in the next images, rows go on over calls. Where the scorer embeds too, these are the very images, the
        same list, that it has just embedded."""
        ...

    def forget_images(self) -> None:
        """Let go of all that is held; rows start from 0 again."""
        ...

    def score_pairs(self, texts: Sequence[str], pairs: Tensor, language: str) -> Tensor:
        """(P,) float32, higher for a better match, for pairs (P, 2) of (row of a held image, row of `texts`)."""
        ...


@dataclass(frozen=True)
class Asked:
    """A text about the image, or images, in a row of a batch."""

    row: int
    text: str
    language: str


class Labeller(Protocol):
    """Says which of a task's labels a text about images has."""

    def check_labels(self, labels: tuple[str, ...], images: int) -> None:
        """Errors: ValueError where it cannot choose among these labels, or read so many images for a text."""
        ...

    def label(self, images: Sequence[Images], asked: Sequence[Asked], labels: tuple[str, ...]) -> list[str]:
        """A label for each of `asked`; a row of `images` holds the images of a text."""
        ...


@dataclass(frozen=True)
class System:
    """A model to be scored, and its parts; None for what it cannot do.

    `name` stands in reports, `kind` in errors. `sha256` tells its weights from others. `image_size`: pixels below which
    a jpeg need not be decoded, None for all that it has. `settings`: of how it runs, those that change its numbers.
    `notes`: what of that every result says in words.
    """

    name: str
    kind: str
    sha256: str
    texts: TextEmbedder | None = None
    dual: Embedder | None = None
    pairs: PairScorer | None = None
    labels: Labeller | None = None
    image_size: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: object, name: str, kind: str, sha256: str) -> Self:
        """Whatever of the four protocols above an object has the methods of. Errors: ValueError for none of them."""
        embeds, shows = hasattr(model, "embed_texts"), hasattr(model, "embed_images")
        scores, labels = hasattr(model, "score_pairs"), hasattr(model, "label")
        if not (embeds or scores or labels):
            raise ValueError(
                f"{name} gave a {type(model).__name__} without embed_texts, score_pairs or label; write the methods of "
                "a protocol in cclm/evaluation/embedder.py"
            )
        return cls(
            name,
            kind,
            sha256,
            texts=model if embeds else None,  # type: ignore[arg-type]
            dual=model if embeds and shows else None,  # type: ignore[arg-type]
            pairs=model if scores else None,  # type: ignore[arg-type]
            labels=model if labels else None,  # type: ignore[arg-type]
            image_size=getattr(model, "image_size", None),
        )
