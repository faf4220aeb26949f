"""What a model of any kind offers to be scored: embeddings, scores of pairs, labels, captions; and what it is.

A model of your own is what a function of your file returns, called without arguments: `--model file.py:make`. It has
all methods of one protocol below or of several, and, if you like, three attributes:

name        how reports call it; file.py:make by default
sha256      any text that is another as soon as weights or settings are: without it every run scores it anew
image_size  pixels of the shorter side below which a picture need not be decoded; all that it has by default

Of an `Embedder` all pictures and texts are compared; with --rerank a `PairScorer` beside it orders the best anew. A
`PairScorer` alone scores every pair. Both in one file:

    import torch

    class Mine:
        name, sha256, image_size = "mine", "trained 2026-11-25", 224
        similarity_scale = 100.0  # for --rerank_similarity only

        def __init__(self):
            self.held = []

        def embed_texts(self, texts, language):
            return torch.nn.functional.normalize(torch.tensor([[len(text), 9.0] for text in texts]), dim=-1)

        def embed_images(self, images):
            return torch.nn.functional.normalize(torch.tensor([[image.width, 9.0] for image in images]), dim=-1)

        def hold_images(self, images):
            self.held += [image.width for image in images]

        def forget_images(self):
            self.held = []

        def score_pairs(self, texts, pairs, language):
            return torch.tensor([-abs(self.held[image] - len(texts[text])) for image, text in pairs.tolist()])

    def make():
        return Mine()

Shapes: N images, T texts, E embedding, P (image, text) pairs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cclm.errors import first_line
from cclm.evaluation.metrics import checked_embeddings
from cclm.evaluation.protocol import Met

UNIT = 1e-3  # how far the norm of an embedding may be from 1
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
    """The second stage, or all of retrieval where nothing embeds. Held images are encoded once, whatever the number of
    texts and languages.

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


class Answerer(Protocol):
    """Says which of some answers is the likeliest to a prompt about pictures."""

    def check_prompt(self, prompt: str, images: int) -> None:
        """Errors: ValueError where it cannot be asked so, about so many images."""
        ...

    def likeliest(
        self, images: Sequence[Images], asked: Sequence[Asked], prompt: str, answers: Sequence[str]
    ) -> list[int]:
        """For each of `asked`, whose text stands in the prompt's place for it, the row of the likeliest answer."""
        ...


class Captioner(Protocol):
    """Says in a language what is in a picture."""

    def check_language(self, language: str) -> None:
        """Errors: ValueError where it cannot be asked to write this language."""
        ...

    def describe(self, images: Images, language: str) -> list[str]:
        """A caption for each image. Called batch after batch."""
        ...


@dataclass(frozen=True)
class System:
    """A model to be scored, and its parts; None for what it cannot do.

    `name` stands in reports, `kind` in errors. `sha256` tells its weights from others; where `known` is not set it does
    not, and no result of an earlier run is taken for this model's. `image_size`: pixels below which
    a jpeg need not be decoded, None for all that it has. `settings`: of how it runs, those that change its numbers;
    `pair_settings`, `label_settings`, `caption_settings`: likewise of one part alone. `notes`: what of that every
    result says in words. `asking`: the prompt of questions about so many pictures, where they are not to be asked in a
    task's wording. `met`: languages that it met beside pictures in training, None where nobody tells.
    """

    name: str
    kind: str
    sha256: str
    texts: TextEmbedder | None = None
    dual: Embedder | None = None
    pairs: PairScorer | None = None
    labels: Labeller | None = None
    answers: Answerer | None = None
    captioner: Captioner | None = None
    asking: Callable[[int], str] | None = None
    image_size: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    pair_settings: dict[str, Any] = field(default_factory=dict)
    label_settings: dict[str, Any] = field(default_factory=dict)
    caption_settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    met: Met | None = None
    known: bool = True

    @classmethod
    def of(cls, model: object, name: str, kind: str, sha256: str) -> Self:
        """Whatever of the protocols above an object has the methods of.

        Errors: ValueError for none of them, a part of one, or methods that take other things.
        """
        offered = {protocol for protocol, method in _MARKS.items() if callable(getattr(model, method, None))}
        if not offered:
            raise ValueError(
                f"{name} gave a {type(model).__name__} without embed_texts, score_pairs, label, likeliest or "
                "describe; write the methods of a protocol in cclm/evaluation/embedder.py"
            )
        for protocol in _MARKS:  # in their order, not that of a set
            if protocol in offered:
                _check_methods(model, protocol, name)
        size = getattr(model, "image_size", None)
        if size is not None and type(size) is not int:
            raise ValueError(f"{name}: image_size is {size!r}; give pixels of the shorter side as a number, or None")
        return cls(
            name,
            kind,
            sha256,
            texts=model if TextEmbedder in offered else None,  # type: ignore[arg-type]
            dual=model if Embedder in offered else None,  # type: ignore[arg-type]
            pairs=model if PairScorer in offered else None,  # type: ignore[arg-type]
            labels=model if Labeller in offered else None,  # type: ignore[arg-type]
            answers=model if Answerer in offered else None,  # type: ignore[arg-type]
            captioner=model if Captioner in offered else None,  # type: ignore[arg-type]
            image_size=size,
        )


_MARKS: dict[type, str] = {  # a model with this method claims to follow the protocol
    TextEmbedder: "embed_texts",
    Embedder: "embed_images",
    PairScorer: "score_pairs",
    Labeller: "label",
    Answerer: "likeliest",
    Captioner: "describe",
}


def _check_methods(model: object, protocol: type, name: str) -> None:
    for method, wanted in inspect.getmembers(protocol, inspect.isfunction):
        if method.startswith("_"):
            continue
        own, parameters = getattr(model, method, None), list(inspect.signature(wanted).parameters)[1:]
        asked = f"write {method}({', '.join(['self', *parameters])}) as in cclm/evaluation/embedder.py"
        if not callable(own):
            raise ValueError(f"{name} has {_MARKS[protocol]}, but no {method}; {asked}")
        try:
            signature = inspect.signature(own)
        except (ValueError, TypeError):  # of what is written in C nobody knows
            continue
        try:
            signature.bind(*parameters)
        except TypeError:
            raise ValueError(f"{name}: {method} takes {signature}; {asked}") from None


# -- what a model gave, before it is used --------------------------------------------------------------------------


def embeddings(system: System, given: object, count: int, method: str, like: Tensor | None = None) -> Tensor:
    """(count, E) float32 on the CPU, from a tensor, an array or lists; as wide as those of `like`, that came before.

    Errors: ValueError, one line, for anything that breaks the contract.
    """
    found = checked_embeddings(_tensor(system, given, method), f"{system.name}: {method}")
    if len(found) != count:
        raise ValueError(f"{system.name}: {method} gave {len(found):,} embeddings for {count:,}; give one for each")
    if like is not None and found.shape[1] != like.shape[1]:
        raise ValueError(
            f"{system.name}: {method} gave embeddings of width {found.shape[1]}, after others of {like.shape[1]}; all "
            "images and texts must be embedded in one space"
        )
    norms = found.norm(dim=1)
    if len(far := ((norms - 1).abs() > UNIT).nonzero().flatten()):
        raise ValueError(
            f"{system.name}: {method} gave {len(far):,} of {count:,} embeddings that are not of unit norm, first row "
            f"{int(far[0])} of {float(norms[far[0]]):.4g}; return torch.nn.functional.normalize(.., dim=-1)"
        )
    return found


def pair_scores(system: System, texts: Sequence[str], pairs: Tensor, language: str) -> Tensor:
    """(P,) float32 on the CPU: what the pair scorer says of pairs (P, 2). Errors: ValueError, as of `embeddings`."""
    found = _tensor(system, system.pairs.score_pairs(texts, pairs, language), "score_pairs")  # type: ignore[union-attr]
    if found.shape != (len(pairs),):
        raise ValueError(
            f"{system.name}: score_pairs gave the shape {tuple(found.shape)} for {len(pairs):,} pairs; give one each"
        )
    if not bool(found.isfinite().all()):
        raise ValueError(f"{system.name}: score_pairs gave NaN or infinity; score in float32, or check the weights")
    return found


def texts_given(system: System, found: object, count: int, method: str) -> list[str]:
    """Labels or captions. Errors: ValueError for another number of them than was asked for, or what is no text."""
    texts = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else []
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{system.name}: {method} gave {type(found).__name__}; give a list of {count:,} texts")
    return texts


def _tensor(system: System, given: object, method: str) -> Tensor:
    try:
        found = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
        return found.detach().float().cpu()
    except Exception as error:  # ragged lists, other objects: each library says it in its own way
        raise ValueError(
            f"{system.name}: {method} gave a {type(given).__name__} that is no array of numbers ({first_line(error)}); "
            "give a tensor"
        ) from None
