"""Records -> rows of embeddings, a picture and a caption in each.

Shapes: N rows, E embedding.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from PIL import Image

from cclm.errors import SampleError
from cclm.evaluation.encoding import Decode, texts_of
from cclm.models.encoding import EncodingOptions, Processor, encode_texts, image_batches
from cclm.retrieval.embeddings import EmbeddedRows
from cclm.types import Encoder, Record, View

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedOptions:
    """`languages`: whose captions to take, None for all. `text`: embed captions too, each in a row of its own."""

    languages: tuple[str, ...] | None = None
    text: bool = False
    encoding: EncodingOptions = field(default_factory=EncodingOptions)


@dataclass(frozen=True)
class _Picture:
    path: str
    image: Image.Image
    captions: list[tuple[str | None, str | None]]  # (language, text), one for each row


def embed_records(
    model: Encoder,
    processor: Processor,
    records: Iterable[Record],
    decode: Decode,
    options: EmbedOptions,
    skipped: Counter[str],
) -> Iterator[EmbeddedRows]:
    """Yield rows batch by batch: one for each picture, or with `text` one for each of its captions.

    Without `text` the row names the picture's first caption, where it has one. What is left out, as `decode` refuses it
    or no caption is of the languages asked for, is counted in `skipped`; the first of a kind is logged.
    Errors: ValueError for a record without a picture, and where nothing is left to embed.
    """

    def views(pictures: tuple[_Picture, ...]) -> View:
        pixels = processor.images([picture.image for picture in pictures])
        return model.encode_image(pixels.to(next(model.parameters()).device))

    pictures, found = _pictures(records, decode, options, skipped), False
    for batch, view in image_batches(model, pictures, views, options.encoding):
        rows = [row for row, picture in enumerate(batch) for _ in picture.captions]
        languages, captions = zip(*(caption for picture in batch for caption in picture.captions), strict=True)
        texts = None
        if options.text:
            texts = encode_texts(model, processor, list(captions), options.encoding).embeddings.numpy()  # (N, E)
        images = view.embedding.float().cpu().numpy()[rows]  # (N, E)
        yield EmbeddedRows([batch[row].path for row in rows], captions, languages, images, texts)
        found = True
    if not found:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in skipped.most_common())
        raise ValueError(f"nothing to embed; left out: {reasons or 'nothing, the source is empty'}")


def _pictures(
    records: Iterable[Record], decode: Decode, options: EmbedOptions, skipped: Counter[str]
) -> Iterator[_Picture]:
    for record in records:
        if record.image is None:
            raise ValueError(f"record {record.key} has no image; give pictures, not parallel text")
        try:
            captions = _captions(record, options)
            if options.text and not captions:
                raise SampleError(f"image without a text in {', '.join(options.languages or ()) or 'any language'}")
            picture = _Picture(record.key, decode(record.image), captions or [(None, None)])
        except SampleError as error:
            if error.reason not in skipped:
                logger.warning("left out %s: %s; others like it are only counted", record.key, error.reason)
            skipped[error.reason] += 1
        else:
            yield picture


def _captions(record: Record, options: EmbedOptions) -> list[tuple[str, str]]:
    texts = texts_of(record)
    languages = options.languages or sorted(texts, key=lambda language: language != "en")
    found = [(language, text) for language in languages for text in dict.fromkeys(texts.get(language, ()))]
    return found if options.text else found[:1]
