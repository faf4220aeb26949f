"""The vocabulary every other module speaks: views, pairs, records.

A pair is two views of one thing: an image and its caption, or a sentence and its translation.
Shapes: B pairs, L tokens or patches, D width, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

VISUAL = -1  # the token id at whose place a visual state goes


def select(thing: Any, rows: Tensor) -> Any:
    """A dataclass of tensors (or tuples of tensors) restricted to `rows` of its first dimension."""

    def take(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.index_select(0, rows)
        if isinstance(value, tuple):
            return tuple(take(item) for item in value)
        return value

    return replace(thing, **{f.name: take(getattr(thing, f.name)) for f in fields(thing)})


class TensorData:
    """Mixin of the tensor dataclasses below: moving to a device and choosing rows."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        moved = {}
        for f in fields(self):
            value = getattr(self, f.name)
            movable = isinstance(value, (Tensor, TensorData))
            moved[f.name] = value.to(device, non_blocking=non_blocking) if movable else value
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        pinned = {}
        for f in fields(self):
            value = getattr(self, f.name)
            pinned[f.name] = value.pin_memory() if isinstance(value, (Tensor, TensorData)) else value
        return replace(self, **pinned)

    def select(self, rows: Tensor) -> Self:
        """The same thing with only `rows` (R,) of the batch, in that order."""
        return select(self, rows)


@dataclass(frozen=True)
class View(TensorData):
    """One side of a pair, encoded."""

    states: Tensor  # (B, L, D)
    mask: Tensor  # (B, L) bool, True = a real token or patch
    embedding: Tensor  # (B, E) unit norm


@dataclass(frozen=True)
class RegionView(View):
    """Parts of images, as several texts are about them: all patches of the image, those of the part unmasked."""

    whole: View  # the same images, each beside its text, with every patch unmasked


@dataclass(frozen=True)
class Memory(TensorData):
    """A view as the fusion layers read it: keys and values projected once, reused by every objective."""

    keys: tuple[Tensor, ...]  # one (B, H, L, D / H) per fusion layer
    values: tuple[Tensor, ...]  # one (B, H, L, D / H) per fusion layer
    mask: Tensor  # (B, L) bool
    embedding: Tensor  # (B, E) unit norm

    def contexts(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Keys, values and mask (B, 1, 1, L) of each layer."""
        mask = self.mask[:, None, None, :]
        return [(keys, values, mask) for keys, values in zip(self.keys, self.values, strict=True)]


class Encoder(Protocol):
    """What an input needs from a model to become a view."""

    def encode_image(self, pixel_values: Tensor) -> View: ...

    def encode_images(self, pixel_values: Tensor) -> View: ...

    def encode_regions(self, pixel_values: Tensor, image: Tensor, boxes: Tensor) -> RegionView: ...

    def encode_image_states(self, states: Tensor) -> View: ...

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> View: ...


@dataclass(frozen=True)
class ImageInput(TensorData):
    """Pixels, before the image encoder."""

    pixel_values: Tensor  # (B, 3, H, W)

    def encode(self, model: Encoder) -> View:
        return model.encode_image(self.pixel_values)

    def __len__(self) -> int:
        return len(self.pixel_values)


@dataclass(frozen=True)
class ImagesInput(TensorData):
    """Several images for each text, as NLVR2 and MaRVL have two."""

    pixel_values: Tensor  # (B, N, 3, H, W)

    def encode(self, model: Encoder) -> View:
        return model.encode_images(self.pixel_values)

    def __len__(self) -> int:
        return len(self.pixel_values)


@dataclass(frozen=True)
class RegionInput(TensorData):
    """Parts of images. Several texts are about one image, which is encoded once."""

    pixel_values: Tensor  # (I, 3, H, W)
    image: Tensor  # (B,) int64: which of the images each text is about
    boxes: Tensor  # (B, 4) the part: x and y of its centre, width, height, as shares of the image
    whole: Tensor  # (B,) bool: the text is about all of the image, and no box is to be learned from it

    def encode(self, model: Encoder) -> RegionView:
        return model.encode_regions(self.pixel_values, self.image, self.boxes)

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class StatesInput(TensorData):
    """States of a frozen image backbone, computed once and cached."""

    states: Tensor  # (B, L, W) with W the backbone's width

    def encode(self, model: Encoder) -> View:
        return model.encode_image_states(self.states)

    def __len__(self) -> int:
        return len(self.states)


@dataclass(frozen=True)
class TextInput(TensorData):
    """Token ids, padded on the right to the batch's longest text."""

    input_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L) bool

    def encode(self, model: Encoder) -> View:
        return model.encode_text(self.input_ids, self.attention_mask)

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Labels(TensorData):
    """What is said of the pairs of a batch: R labels, each of one pair; a pair may have several, with weights."""

    names: tuple[str, ...]  # R of them
    text: TextInput  # (R, T) the same as tokens, for a head that spells its answer
    owner: Tensor  # (R,) int64: the pair
    weight: Tensor  # (R,) float32


@dataclass(frozen=True)
class Explanation:
    """Where in a picture a model finds the words of a text. Patches stand in h rows and w columns.

    `shares`: how much of all heat is a word's own, summing to 1; 0 for all where there is no heat at all.
    """

    tokens: tuple[str, ...]  # T words, or pieces of a text that has no blanks
    heat: np.ndarray  # (T, h, w) float32 from 0 to 1, the most of each word
    shares: np.ndarray  # (T,) float32
    overall: np.ndarray  # (h, w) float32 from 0 to 1, of all words together
    match: float  # probability that text and picture match


@dataclass(frozen=True)
class PairBatch(TensorData):
    """A batch of pairs from one stream: the target (text) is read in the light of the context (anything)."""

    stream: str
    context: ImageInput | ImagesInput | RegionInput | StatesInput | TextInput
    target: TextInput
    keys: tuple[str, ...] = ()  # record keys, for logs and resume tests
    ids: Tensor | None = None  # (B,) int64: equal for pairs of one record, on every rank
    labels: Labels | None = None  # where the records hold statements

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class PromptInput(TensorData):
    """Prompts of a causal language model with the answers to them, where these are known, padded to the longest."""

    input_ids: Tensor  # (B, L) int64, VISUAL where a visual state goes
    attention_mask: Tensor  # (B, L) bool
    labels: Tensor  # (B, L) int64: the tokens of answers, -100 elsewhere

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class PromptBatch(TensorData):
    """A batch of prompts and answers from one stream."""

    stream: str
    prompts: PromptInput
    keys: tuple[str, ...]  # of the records

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class VisualPromptBatch(PromptBatch):
    """Prompts about pictures: those of all prompts in reading order, each with equally many places among the tokens."""

    images: ImageInput | StatesInput  # I of them


Batch = PairBatch | PromptBatch


@dataclass(frozen=True)
class Statement:
    """A text about the image (or images) of a record, and what is said of it: a label, or the answers to it."""

    texts: dict[str, str]  # language -> the statement or question
    labels: dict[str, float]  # label or answer -> weight, most often one of 1.0


@dataclass(frozen=True)
class Region:
    """A part of a record's image, with captions of its own."""

    box: tuple[float, float, float, float]  # left, top, width, height in pixels
    captions: dict[str, list[str]]  # language -> captions of the part
    attributes: dict[str, list[str]] = field(default_factory=dict)  # language -> words such as "red"


@dataclass(frozen=True)
class Record:
    """One stored sample.

    An image record has `image` and `captions`, `statements` or `regions`, perhaps `parallel`; a text record has
    `parallel` only.
    """

    key: str
    image: bytes | None = None  # an encoded jpg, png or webp file
    captions: dict[str, list[str]] = field(default_factory=dict)  # language -> captions of the image
    parallel: dict[str, str] = field(default_factory=dict)  # language -> the same sentence
    others: tuple[bytes, ...] = ()  # further images, where statements are about several
    statements: tuple[Statement, ...] = ()
    regions: tuple[Region, ...] = ()
    size: tuple[int, int] | None = None  # width and height of the image in pixels; needed with regions


@dataclass(frozen=True)
class Part:
    """The part of an image that one text is about, once a crop has been drawn."""

    crop: tuple[float, float, float, float]  # left, top, width, height in pixels of the stored image
    flip: bool  # left and right change places after the crop
    box: tuple[float, float, float, float]  # x and y of the centre, width, height, as shares of the result
    whole: bool  # the text is about all of it


@dataclass(frozen=True)
class Pair:
    """Two views of one record, before processing. A side is text (str), an encoded image (bytes) or several."""

    key: str
    context: str | bytes | tuple[bytes, ...]
    target: str
    languages: tuple[str | None, str]  # of context (None: an image) and target
    labels: dict[str, float] = field(default_factory=dict)  # of a statement
    part: Part | None = None  # of a region
    flip: bool = False  # left and right of the image change places first
