"""`cclm embed`: pictures, and their captions, as files of embeddings in clip-retrieval's layout."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.inputs import codes, load

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def options(parser: ArgumentParser) -> None:
    from cclm.models.encoding import EncodingOptions

    parser.add_argument("--model", type=Path, required=True, help="a pretrained folder")
    parser.add_argument("--source", type=str, required=True, help="a folder of pictures; or shards, a tar or a pattern")
    parser.add_argument("--output", type=Path, required=True, help="img_emb, text_emb and metadata are made in it")
    parser.add_argument("--languages", type=list[str] | str | None, default=None, help="de,fr; all by default")
    parser.add_argument("--caption_language", default="en", help="of captions that do not name theirs")
    parser.add_argument("--text", action="store_true", help="embed captions too, each in a row of its own")
    parser.add_argument("--dtype", default="float16", help="float16, as clip-retrieval's, or float32")
    parser.add_argument("--rows_per_part", type=int, default=100_000, help="rows per numbered file")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ..")
    parser.add_argument("--encoding", type=EncodingOptions, default=EncodingOptions())


def run(given: Namespace) -> None:
    from cclm.data.folder import read_pictures
    from cclm.data.shards import check_languages
    from cclm.evaluation.embedding import EmbedOptions, embed_records
    from cclm.images import open_image
    from cclm.models.inference import progress_bar
    from cclm.retrieval.embeddings import check_options, check_output, write_embeddings

    output, chosen = check_output(given.output), codes(given.languages)
    check_options(given.dtype, given.rows_per_part)
    skipped: Counter[str] = Counter()
    records = read_pictures(given.source, skipped, given.caption_language)
    check_languages(given.source, chosen)
    model, processor = load(given.model, given.device)
    model.check_projections()
    chosen_options = EmbedOptions(chosen, given.text, given.encoding)
    decode = partial(open_image, size=processor.image_size)
    with progress_bar(None) as bar:
        shown = bar.track(records, description="embedding")
        batches = embed_records(model, processor, shown, decode, chosen_options, skipped)
        written = write_embeddings(batches, output, given.dtype, given.rows_per_part)
    print(f"{output}: {written.rows} rows of width {written.width}, {given.dtype}, in {written.parts} part(s)")
    for reason, count in skipped.most_common():
        print(f"left out: {count} x {reason}")
