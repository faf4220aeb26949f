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


class ImageReader(Protocol):
    """Turns images of a batch into a model input, in two steps so that one bad image can be replaced alone."""

    def read(self, request: ImageRequest) -> Tensor:
        """One image. Errors: SampleError."""
        ...

    def collate(self, images: list[Tensor]) -> ImageInput | StatesInput: ...


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

    def read(self, request: ImageRequest) -> Tensor:
        image = open_image(read_slot(request.slot), self._size)
        generator = torch.Generator().manual_seed(request.seed) if self._train else None
        return self._processor.images([image], train=self._train, generator=generator)[0]

    def collate(self, images: list[Tensor]) -> ImageInput:
        return ImageInput(torch.stack(images))  # (B, 3, H, W)


class CachedStates:
    """Looks up states of a frozen backbone by record key; while training, one of the cached versions per epoch."""

    def __init__(self, cache: StateCache, train: bool) -> None:
        self._cache = cache
        self._train = train

    def read(self, request: ImageRequest) -> Tensor:
        version = seed_of(request.seed, "version") % self._cache.versions if self._train else 0
        try:
            states = self._cache.get(request.key, version)
        except KeyError as error:
            raise SampleError("image not in the state cache") from error
        return torch.from_numpy(states.astype(np.float32))

    def collate(self, images: list[Tensor]) -> StatesInput:
        return StatesInput(torch.stack(images))  # (B, L, W)


def read_slot(slot: Slot) -> bytes:
    """The bytes of a member. Errors: SampleError where the shard ends before them."""
    try:
        return slot.read()
    except ShardError as error:
        raise SampleError(str(error)) from error
