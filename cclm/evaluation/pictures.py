"""Where the pictures of a test come from: files below a folder, or stand-ins where the real ones are not at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw

from cclm.data.raw import Images, open_images

STAND_IN_SIZE = 96  # pixels


class PictureFiles(Protocol):
    """`note`: what every line of a report says of these pictures; "" for the real ones."""

    note: str

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """The encoded image. Errors: SampleError with the reason why there is none."""
        ...


class FolderPictures:
    """Files found by the end of their path, or else by their bare name, below a folder and in its zips."""

    note = ""

    def __init__(self, images: Images) -> None:
        self.images = images

    def _name(self, name: str) -> str:
        return name if name in self.images else name.rpartition("/")[2]

    def __contains__(self, name: str) -> bool:
        return self._name(name) in self.images

    def read(self, name: str) -> bytes:
        return self.images.read(self._name(name))


class StandIns:
    """A picture for any name: discs of colours and places that the name alone decides. Nothing about it is real."""

    note = "stand-in pictures, not the benchmark's: the number means nothing"

    def __contains__(self, name: str) -> bool:
        return True

    def read(self, name: str) -> bytes:
        generator = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
        image = Image.new("RGB", (STAND_IN_SIZE, STAND_IN_SIZE), tuple(generator.integers(0, 256, 3).tolist()))
        draw = ImageDraw.Draw(image)
        for _ in range(4):
            x, y, radius = (generator.uniform(0, 1, 3) * STAND_IN_SIZE * [1, 1, 0.4]).tolist()
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(generator.integers(0, 256, 3)))
        buffer = BytesIO()
        image.save(buffer, format="PNG")
        return buffer.getvalue()


@contextmanager
def open_pictures(folder: Path | None) -> Iterator[PictureFiles]:
    """The pictures below a folder, or stand-ins without one. Errors: ValueError."""
    if folder is None:
        yield StandIns()
    elif not folder.is_dir():
        raise ValueError(f"--images {folder} is no folder; give the one that the pictures, or zips of them, lie in")
    else:
        with open_images(folder) as images:
            yield FolderPictures(images)


def missing(pictures: PictureFiles, names: Iterable[str]) -> list[str]:
    """Those of the names that there is no picture of."""
    return [name for name in names if name not in pictures]
