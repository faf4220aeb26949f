"""Parts of a source -> rows of embeddings, a picture and a caption in each.

Shapes: N rows, E embedding, S image size.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cclm.data.folder import LocatedPicture, Place, SourcePart
from cclm.errors import SampleError, printable
from cclm.evaluation.encoding import texts_of
from cclm.images import decoded, open_header, taken_at, upright_size
from cclm.models.encoding import EncodingOptions, encode_texts, image_batches
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.retrieval.embeddings import METADATA_SCHEMA
from cclm.retrieval.engines import ahead
from cclm.retrieval.parts import EmbeddedRows
from cclm.types import View

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedOptions:
    """What decides the rows, beside model and source.

    `languages`: whose captions to take, None for all. `caption_language`: of captions that do not name theirs.
    `text`: embed captions too, each in a row of its own.
    """

    languages: tuple[str, ...] | None = None
    caption_language: str = "en"
    text: bool = False
    dtype: str = "float16"
    encoding: EncodingOptions = field(default_factory=EncodingOptions)


@dataclass(frozen=True)
class _Picture:
    """One that has been read: all but its bytes."""

    key: str
    place: Place
    captions: dict[str, list[str]]
    rows: list[tuple[str | None, str | None]]  # (language, caption) of each of its rows
    size: tuple[int, int]  # width, height as stored
    taken: datetime | None
    sha256: str
    pixels: Tensor  # (3, S, S)


class PartEmbedder:
    """Embeds one part after the other; pictures are read and decoded by threads while the model is at work."""

    def __init__(self, model: CCLMModel, processor: CCLMProcessor, options: EmbedOptions) -> None:
        self._model = model
        self._processor = processor
        self._options = options

    def embed(self, part: SourcePart, skipped: Counter[str]) -> EmbeddedRows:
        """A row for each picture, or with `text` for each of its captions; perhaps none.

        Without `text` a row names the picture's first caption, where it has one. What is left out is counted in
        `skipped`, the first of a kind is logged.
        """
        options, tables = self._options, [METADATA_SCHEMA.empty_table()]
        width = self._model.config.embedding_size
        images, texts = [np.empty((0, width), options.dtype)], [np.empty((0, width), options.dtype)]
        pictures = self._pictures(part, skipped)
        for batch, view in image_batches(self._model, pictures, self._views, options.encoding):
            rows = [row for row, picture in enumerate(batch) for _ in picture.rows]
            images.append(view.embedding.float().cpu().numpy()[rows].astype(options.dtype))  # (N, E)
            tables.append(_table(part, batch))
            if options.text:
                captions = [str(caption) for picture in batch for _, caption in picture.rows]
                found = encode_texts(self._model, self._processor, captions, options.encoding).embeddings
                texts.append(found.numpy().astype(options.dtype))  # (N, E)
        return EmbeddedRows(
            pa.concat_tables(tables), np.concatenate(images), np.concatenate(texts) if options.text else None
        )

    def _views(self, pictures: tuple[_Picture, ...]) -> View:
        pixels = torch.stack([picture.pixels for picture in pictures])  # (B, 3, S, S)
        return self._model.encode_image(pixels.to(next(self._model.parameters()).device))

    def _pictures(self, part: SourcePart, skipped: Counter[str]) -> Iterator[_Picture]:
        def left_out(what: str, reason: str) -> None:
            if reason not in skipped:
                logger.warning("left out %s: %s; others like it are only counted", printable(what), reason)
            skipped[reason] += 1

        def located() -> Iterator[LocatedPicture]:
            try:
                yield from part.pictures()
            except SampleError as error:
                left_out(f"what follows in {part}", error.reason)

        waiting = 2 * self._options.encoding.image_batch  # one batch is embedded, one made, one gathered
        for found, picture in ahead(self._prepared, located(), waiting):
            if isinstance(picture, SampleError):
                left_out(f"{part} {found.key}" if part.is_shard else found.key, picture.reason)
            else:
                yield picture

    def _prepared(self, found: LocatedPicture) -> tuple[LocatedPicture, _Picture | SampleError]:
        """Read, checked, decoded and resized: no more than its pixels as the model takes them waits for its turn."""
        try:
            record, place = found.read(self._options.caption_language)
            assert record.image is not None
            captions = self._captions(texts_of(record))
            rows = [(language, text) for language, texts in captions.items() for text in dict.fromkeys(texts)]
            if self._options.text and not rows:
                wanted = ", ".join(self._options.languages or ()) or "any language"
                raise SampleError(f"image without a text in {wanted}")
            image = open_header(record.image)
            size, taken = upright_size(image), taken_at(image)
            (pixels,) = self._processor.images([decoded(image, self._processor.image_size)])
        except SampleError as error:
            return found, error
        own: list[tuple[str | None, str | None]] = [*rows] if self._options.text else [*rows[:1]] or [(None, None)]
        digest = hashlib.sha256(record.image).hexdigest()
        return found, _Picture(record.key, place, captions, own, size, taken or place.changed, digest, pixels)

    def _captions(self, texts: dict[str, list[str]]) -> dict[str, list[str]]:
        """Those of the chosen languages, in their order; English first where all are."""
        languages = self._options.languages or sorted(texts, key=lambda language: language != "en")
        return {language: texts[language] for language in languages if language in texts}


def _table(part: SourcePart, pictures: Iterable[_Picture]) -> pa.Table:
    """Metadata of a batch, N rows; clip-retrieval opens what it finds at `image_path`, or knows a shard's key."""
    rows: list[dict[str, Any]] = []
    for picture in pictures:
        known = {
            "image_path": picture.key if part.is_shard else str(part.root / picture.place.path),
            "key": picture.key,
            "captions": list(picture.captions.items()),
            "root": 0,
            "path": picture.place.path,
            "offset": picture.place.offset,
            "size": picture.place.size,
            "width": picture.size[0],
            "height": picture.size[1],
            "date": picture.taken,
            "sha256": picture.sha256,
        }
        rows += [known | {"caption": caption, "language": language} for language, caption in picture.rows]
    return pa.Table.from_pylist(rows, METADATA_SCHEMA)
