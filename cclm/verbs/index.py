"""`cclm index ..`: pictures into an index folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.inputs import add_inputs, load

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def build_options(parser: ArgumentParser) -> None:
    add_inputs(parser)
    parser.add_argument("--output", type=Path, required=True)


def build(given: Namespace) -> None:
    from cclm.data.shards import read_records
    from cclm.evaluation.encoding import pixel_views, texts_of
    from cclm.images import open_image
    from cclm.models.encoding import EncodingOptions, image_batches
    from cclm.retrieval.index import build_index
    from cclm.retrieval.manifest import ModelSource
    from cclm.retrieval.metadata import Entry, Rows

    source = ModelSource.of(given.model)
    model, processor = load(given.model, given.device)
    views = pixel_views(model, processor, lambda data: open_image(data, processor.image_size))
    parts = [
        Rows.of([Entry(record.key, texts_of(record)) for record in records], view.embedding.float().cpu().numpy())
        for records, view in image_batches(model, read_records(given.data), views, EncodingOptions())
    ]
    manifest = build_index(parts, given.output, source, data=given.data)
    print(f"{given.output}: {manifest.rows} images, {manifest.segments[0].factory} index of width {manifest.dim}")
