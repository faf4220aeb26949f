"""How the image side of pairs becomes an input: pixels decoded and augmented, or states looked up in a cache.

What a pair needs to see decides the input: one image, several, or a part of one that other pairs may share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cclm.data.seeding import seed_of
from cclm.data.state_cache import StateCache
from cclm.data.tars import ShardError, Slot
from cclm.errors import SampleError
from cclm.images import check_header, open_image
from cclm.types import ImageInput, ImagesInput, Part, RegionInput, StatesInput, TextInput

Seen: TypeAlias = ImageInput | ImagesInput | RegionInput | StatesInput

_WAITING_BYTES = 48 * 2**20  # of decoded images in a batch that are not yet resized


class Processor(Protocol):
    """What this package needs of the model's processor."""

    @property
    def image_size(self) -> int: ...

    def texts(self, texts: list[str], max_tokens: int | None = None, clean: bool = True) -> TextInput: ...

    def tokens(self, texts: list[str], max_tokens: int | None = None) -> list[list[int]]: ...

    def padded(self, rows: list[list[int]]) -> TextInput: ...

    def images(
        self,
        images: list[Image.Image],
        train: bool = False,
        generator: torch.Generator | None = None,
        cropped: bool = False,
    ) -> Tensor: ...


@dataclass(frozen=True)
class ImageRequest:
    """What one pair of a batch sees: its image, all its images, or `part` of one.

    `seed`: of the augmentation, a function of (seed, epoch, key). `flip`: left and right change places before it.
    """

    key: str
    slots: tuple[Slot, ...]
    seed: int
    part: Part | None = None
    flip: bool = False


class ImageBatch(Protocol):
    """What the pairs of one batch see, collected one by one so that a bad image is replaced alone."""

    def add(self, request: ImageRequest) -> None:
        """Errors: SampleError, and the batch stays as it was."""
        ...

    def finish(self) -> Seen: ...


class ImageReader(Protocol):
    """Turns the image side of pairs into a model input."""

    def start(self, first: ImageRequest) -> ImageBatch:
        """A batch of requests like `first`, which is still to be added."""
        ...


class PixelReader:
    """Decodes and, when training, augments.

    `decode_margin`: jpegs are decoded at 1/2, 1/4 or 1/8 where that leaves at least margin x image_size a side; while
    augmenting, a crop takes only part of the picture, so a larger margin keeps detail and costs decoding time.
    Regions bring their crop along, and are decoded as near to the image size as that allows.
    """

    def __init__(self, processor: Processor, train: bool, decode_margin: float = 1.0) -> None:
        if decode_margin < 1:
            raise ValueError(f"decode_margin={decode_margin} would decode below the image size; give 1 or more")
        self._processor = processor
        self._train = train
        self._size = round(processor.image_size * decode_margin)

    def start(self, first: ImageRequest) -> ImageBatch:
        if first.part is not None:
            return _RegionBatch(_Pixels(self._processor, self._train, cropped=True), self._processor.image_size)
        return _PixelBatch(_Pixels(self._processor, self._train), self._size)


class _Pixels:
    """Decodes all, then resizes all: going to and fro for every image costs a seventh more, by what it does to caches.

    Decoded images wait in at most `_WAITING_BYTES`, so that a batch of huge ones does not fill the memory. The random
    numbers of augmentation come from one generator per batch, seeded by its first image.
    """

    def __init__(self, processor: Processor, train: bool, cropped: bool = False) -> None:
        self._processor = processor
        self._train = train
        self._cropped = cropped
        self._waiting: list[Image.Image] = []
        self._bytes = 0
        self._done: list[Tensor] = []
        self._generator: torch.Generator | None = None

    def add(self, image: Image.Image, seed: int) -> None:
        if self._train and self._generator is None:
            self._generator = torch.Generator().manual_seed(seed)
        self._waiting.append(image)
        self._bytes += 3 * image.width * image.height
        if self._bytes > _WAITING_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._done.append(self._processor.images(self._waiting, self._train, self._generator, self._cropped))
            self._waiting, self._bytes = [], 0

    def finish(self) -> Tensor:
        self._flush()
        return self._done[0] if len(self._done) == 1 else torch.cat(self._done)  # (I, 3, H, W)


class _PixelBatch:
    """The same number of images for every pair, each augmented on its own."""

    def __init__(self, pixels: _Pixels, size: int) -> None:
        self._pixels = pixels
        self._size = size
        self._each = 1

    def add(self, request: ImageRequest) -> None:
        images = [open_image(read_slot(slot), self._size) for slot in request.slots]
        self._each = len(images)
        for image in images:
            self._pixels.add(_mirrored(image) if request.flip else image, request.seed)

    def finish(self) -> ImageInput | ImagesInput:
        pixels = self._pixels.finish()
        if self._each == 1:
            return ImageInput(pixels)  # (B, 3, H, W)
        return ImagesInput(pixels.unflatten(0, (-1, self._each)))  # (B, N, 3, H, W)


class _RegionBatch:
    """Crops of images, each decoded once for all the pairs that are about it."""

    def __init__(self, pixels: _Pixels, size: int) -> None:
        self._pixels = pixels
        self._size = size
        self._places: dict[tuple[object, ...], int] = {}
        self._images: list[int] = []
        self._parts: list[Part] = []

    def add(self, request: ImageRequest) -> None:
        assert request.part is not None
        part = request.part
        view = (request.slots[0], part.crop, part.flip)  # not the key: folders of a mixture may share keys
        if view not in self._places:
            self._pixels.add(_open_crop(read_slot(request.slots[0]), part, self._size), request.seed)
            self._places[view] = len(self._places)
        self._images.append(self._places[view])
        self._parts.append(part)

    def finish(self) -> RegionInput:
        boxes = torch.tensor([part.box for part in self._parts], dtype=torch.float32)  # (B, 4)
        whole = torch.tensor([part.whole for part in self._parts])  # (B,)
        return RegionInput(self._pixels.finish(), torch.tensor(self._images), boxes, whole)


def _open_crop(data: bytes, part: Part, size: int) -> Image.Image:
    """The crop, flipped where it is to be, at least `size` pixels a side where the image has them."""
    left, top, width, height = part.crop
    full_width, full_height = check_header(data)
    if left + width > full_width or top + height > full_height:
        raise SampleError("region outside its image")
    image = open_image(data, math.ceil(size * max(full_width / width, full_height / height)))
    across, down = image.width / full_width, image.height / full_height  # below 1 where it was decoded smaller
    corners = (left * across, top * down, (left + width) * across, (top + height) * down)
    image = image.crop(tuple(map(round, corners)))
    return _mirrored(image) if part.flip else image


def _mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


class CachedStates:
    """Looks up states of a frozen backbone by record key; while training, one of the cached versions per epoch."""

    def __init__(self, cache: StateCache, train: bool) -> None:
        self._cache = cache
        self._train = train

    def start(self, first: ImageRequest) -> ImageBatch:
        """Errors: ValueError for regions and several images, which no cache holds."""
        if first.part is not None or len(first.slots) > 1:
            what = "regions" if first.part is not None else "several images a record"
            raise ValueError(f"the state cache holds one whole image of a record; set it to null for streams of {what}")
        return _StateBatch(self._cache, self._train)


class _StateBatch:
    def __init__(self, cache: StateCache, train: bool) -> None:
        self._cache = cache
        self._train = train
        self._states: list[np.ndarray] = []

    def add(self, request: ImageRequest) -> None:
        if request.flip:
            raise ValueError("the state cache holds images as they are; leave flip_unless out, or set it to null")
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
