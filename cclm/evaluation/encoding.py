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
    """Views from the stored pictures; `decode` is where damaged or oversized files are refused.

    Errors, when called: ValueError for a record without an image or with one that `decode` refuses.
    """

    def views(records: tuple[Record, ...]) -> View:
        images = []
        for record in records:
            if record.image is None:
                raise ValueError(f"record {record.key} has no image; retrieval needs image records, not parallel text")
            try:
                images.append(decode(record.image))
            except ValueError as error:
                # Leaving it out would shrink the gallery, and the numbers would be of another task.
                raise ValueError(
                    f"record {record.key}: {error}; repair or remove it, then build the data again"
                ) from error
        return model.encode_image(processor.images(images).to(next(model.parameters()).device))

    return views


def image_identity(record: Record) -> bytes:
    """What tells images apart: their bytes, or their keys where records come without (`views` then looks states up)."""
    return hashlib.sha256(record.image or record.key.encode()).digest()


def texts_of(record: Record) -> dict[str, list[str]]:
    """Language -> captions; the parallel sentence in a language that has none."""
    return {language: [text] for language, text in record.parallel.items()} | record.captions
