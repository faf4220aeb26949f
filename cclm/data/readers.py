"""How the image side of a pair becomes an input: pixels decoded and augmented, or states looked up in a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cclm.data.images import open_image
from cclm.data.records import SampleError
from cclm.data.seeding import seed_of
from cclm.data.state_cache import StateCache
from cclm.data.tars import ShardError, Slot
from cclm.types import ImageInput, StatesInput, TextInput

_WAITING_BYTES = 48 * 2**20  # of decoded images in a batch that are not yet resized


class Processor(Protocol):
    """What this package needs of the model's processor."""

    @property
    def image_size(self) -> int: ...

    def texts(self, texts: list[str], max_tokens: int | None = None) -> TextInput: ...

    def images(
        self, images: list[Image.Image], train: bool = False, generator: torch.Generator | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class ImageRequest:
    """One image wanted for a batch. `seed`: of its augmentation, a function of (seed, epoch, key)."""

    key: str
    slot: Slot
    seed: int


class ImageBatch(Protocol):
    """The images of one batch, collected one by one so that a bad one is replaced alone."""

    def add(self, request: ImageRequest) -> None:
        """Errors: SampleError, and the batch stays as it was."""
        ...

    def finish(self) -> ImageInput | StatesInput: ...


class ImageReader(Protocol):
    """Turns the image side of pairs into a model input."""

    def start(self) -> ImageBatch: ...


class PixelReader:
    """Decodes and, when training, augments.

    `decode_margin`: jpegs are decoded at 1/2, 1/4 or 1/8 where that leaves at least margin x image_size a side; while
    augmenting, a crop takes only part of the picture, so a larger margin keeps detail and costs decoding time.
    """

    def __init__(self, processor: Processor, train: bool, decode_margin: float = 1.0) -> None:
        if decode_margin < 1:
            raise ValueError(f"decode_margin={decode_margin} would decode below the image size; give 1 or more")
        self._processor = processor
        self._train = train
        self._size = round(processor.image_size * decode_margin)

    def start(self) -> ImageBatch:
        return _PixelBatch(self._processor, self._train, self._size)


class _PixelBatch:
    """Decodes all, then resizes all: going to and fro for every image costs a seventh more, by what it does to caches.

    Decoded images wait in at most `_WAITING_BYTES`, so that a batch of huge ones does not fill the memory. The random
    numbers of augmentation come from one generator per batch, seeded by its first image.
    """

    def __init__(self, processor: Processor, train: bool, size: int) -> None:
        self._processor = processor
        self._train = train
        self._size = size
        self._waiting: list[Image.Image] = []
        self._bytes = 0
        self._done: list[Tensor] = []
        self._generator: torch.Generator | None = None

    def add(self, request: ImageRequest) -> None:
        image = open_image(read_slot(request.slot), self._size)
        if self._train and self._generator is None:
            self._generator = torch.Generator().manual_seed(request.seed)
        self._waiting.append(image)
        self._bytes += 3 * image.width * image.height
        if self._bytes > _WAITING_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._done.append(self._processor.images(self._waiting, train=self._train, generator=self._generator))
            self._waiting, self._bytes = [], 0

    def finish(self) -> ImageInput:
        self._flush()
        return ImageInput(self._done[0] if len(self._done) == 1 else torch.cat(self._done))  # (B, 3, H, W)


class CachedStates:
    """Looks up states of a frozen backbone by record key; while training, one of the cached versions per epoch."""

    def __init__(self, cache: StateCache, train: bool) -> None:
        self._cache = cache
        self._train = train

    def start(self) -> ImageBatch:
        return _StateBatch(self._cache, self._train)


class _StateBatch:
    def __init__(self, cache: StateCache, train: bool) -> None:
        self._cache = cache
        self._train = train
        self._states: list[np.ndarray] = []

    def add(self, request: ImageRequest) -> None:
        version = seed_of(request.seed, "version") % self._cache.versions if self._train else 0
        try:
            self._states.append(self._cache.get(request.key, version))
        except KeyError as error:
            raise SampleError("image not in the state cache") from error

    def finish(self) -> StatesInput:
        return StatesInput(torch.from_numpy(np.stack(self._states, dtype=np.float32)))  # (B, L, W)


def read_slot(slot: Slot) -> bytes:
    """The bytes of a member. Errors: SampleError where the shard ends before them."""
    try:
        return slot.read()
    except ShardError as error:
        raise SampleError(str(error)) from error
