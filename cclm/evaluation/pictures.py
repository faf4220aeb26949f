"""Where the pictures of a test come from: files below a folder, or stand-ins; and what is done where some lack."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from cclm.data.raw import Images, open_images
from cclm.errors import SampleError
from cclm.evaluation.items import Captions, Descriptions, Pictures, Questions, TestSet
from cclm.images import open_image

STAND_IN_SIZE = 96  # pixels
MISSING = "image missing"
Test = TypeVar("Test", bound=TestSet)


class PictureFiles(Protocol):
    """`note`: what every line of a report says of these pictures; "" for the real ones."""

    note: str

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """The encoded image. Errors: SampleError with the reason why there is none."""
        ...

    def digest(self, name: str) -> str:
        """SHA-256 of the picture, in hex. Errors: SampleError where there is none, or its header is no picture's."""
        ...


class FolderPictures:
    """Files found by the end of their path, below a folder and in its zips.

    A name with folders is never looked for without them: MaRVL's 39-0.jpg is another picture in every language.
    """

    note = ""

    def __init__(self, images: Images) -> None:
        self.images = images
        self._digests: dict[str, str] = {}  # a file is read once, whatever the number of models and shots

    def __contains__(self, name: str) -> bool:
        return name in self.images

    def read(self, name: str) -> bytes:
        return self.images.read(name)

    def digest(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = hashlib.sha256(self.read(name)).hexdigest()
        return self._digests[name]


class StandIns:
    """A picture for any name: discs of colours and places that the name alone decides. Nothing about it is real."""

    note = "stand-in pictures, not the benchmark's: the number means nothing"

    def __contains__(self, name: str) -> bool:
        return True

    def digest(self, name: str) -> str:
        return hashlib.sha256(name.encode()).hexdigest()

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


def lacking(pictures: PictureFiles, names: Iterable[str]) -> dict[str, str]:
    """Names without a picture, or with a damaged one as far as its header tells, and the reason of each."""
    reasons = {}
    for name in names:
        if name not in pictures:
            reasons[name] = MISSING
            continue
        try:
            pictures.digest(name)
        except SampleError as error:
            reasons[name] = error.reason
    return reasons


def refuse(task: str, reasons: Mapping[str, str], names: Collection[str], partial: bool) -> None:
    """Errors: ValueError where pictures lack that are not to be left out, or all of them; names the first few."""
    if not reasons or (partial and len(reasons) < len(names)):
        return
    first = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
    cure = "fetch them" if partial else "fetch them, score what is there with --partial, or try with --stand-in-images"
    raise ValueError(f"{task}: {len(reasons):,} of {len(names):,} images cannot be used ({first}); {cure}")


def restricted(test: Test, reasons: Mapping[str, str]) -> Test:
    """Items whose pictures are all there, with a note of what that left. Errors: ValueError where nothing is left."""
    names = test.images()
    if not (absent := reasons.keys() & set(names)):
        return test
    kept: TestSet = test
    if isinstance(test, Questions):
        kept = replace(test, questions=tuple(item for item in test.questions if absent.isdisjoint(item.images)))
    elif isinstance(test, Captions):
        gallery = tuple(name for name in test.gallery if name not in absent)
        kept = replace(test, gallery=gallery, captions=tuple(c for c in test.captions if c.image not in absent))
    elif isinstance(test, Pictures):
        kept = replace(test, pictures=tuple(item for item in test.pictures if item.image not in absent))
    elif isinstance(test, Descriptions):
        kept = replace(test, described=tuple(item for item in test.described if item.image not in absent))
    if not len(kept):
        raise ValueError(f"{test.task} in {test.language}: no item is left whose images are all there; fetch them")
    note = f"partial: {len(names) - len(absent):,} of {len(names):,} images"
    if damaged := sum(reasons[name] != MISSING for name in absent):
        note += f", {damaged:,} of the others damaged"
    return replace(kept, notes=(*test.notes, note))


def opened(
    pictures: PictureFiles, names: Sequence[str], size: int | None, damaged: dict[str, str]
) -> list[Image.Image] | None:
    """The pictures of these names, or None where one of them is damaged, which is noted."""
    images = []
    for name in names:
        try:
            images.append(open_image(pictures.read(name), size))
        except SampleError as error:
            damaged[name] = error.reason
    return images if len(images) == len(names) else None


def whole(tests: Sequence[Test], damaged: Mapping[str, str], partial: bool) -> list[Test]:
    """The tests without pictures that turned out to be damaged once they were decoded. Errors: as of `refuse`."""
    names = list(dict.fromkeys(name for test in tests for name in test.images()))
    refuse(tests[0].task, damaged, names, partial)
    return [restricted(test, damaged) for test in tests]
