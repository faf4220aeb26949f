"""Records -> views of their images, for whatever encodes and scores them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from PIL import Image

from cclm.models.encoding import Processor
from cclm.types import Encoder, Record, View

Decode = Callable[[bytes], Image.Image]
ImageViews = Callable[[tuple[Record, ...]], View]  # images of these records, encoded


def pixel_views(model: Encoder, processor: Processor, decode: Decode) -> ImageViews:
    """Views from the stored pictures, of all of them where records have several; `decode` refuses damaged files.

    Errors, when called: ValueError for a record without an image, with one that `decode` refuses, or with more or fewer
    than the others have.
    """

    def views(records: tuple[Record, ...]) -> View:
        counts = {1 + len(record.others) for record in records}
        if len(counts) > 1:
            raise ValueError(f"some records have {min(counts)} images, others {max(counts)}; evaluate them apart")
        pixels = processor.images([image for record in records for image in _decoded(record, decode)])
        pixels = pixels.to(next(model.parameters()).device)  # (B * N, 3, H, W)
        count = counts.pop()
        return model.encode_image(pixels) if count == 1 else model.encode_images(pixels.unflatten(0, (-1, count)))

    return views


def _decoded(record: Record, decode: Decode) -> list[Image.Image]:
    if record.image is None:
        raise ValueError(f"record {record.key} has no image; image records are needed, not parallel text")
    try:
        return [decode(image) for image in (record.image, *record.others)]
    except ValueError as error:
        # Leaving it out would shrink the gallery, and the numbers would be of another task.
        raise ValueError(f"record {record.key}: {error}; repair or remove it, then build the data again") from error


def image_identity(record: Record) -> bytes:
    """What tells images apart: their bytes, or their keys where records come without (`views` then looks states up)."""
    return hashlib.sha256(record.image or record.key.encode()).digest()


def texts_of(record: Record) -> dict[str, list[str]]:
    """Language -> captions; the parallel sentence in a language that has none."""
    return {language: [text] for language, text in record.parallel.items()} | record.captions
