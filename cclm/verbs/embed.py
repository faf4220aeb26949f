"""`cclm embed`: pictures, and their captions, as files of embeddings in clip-retrieval's layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.inputs import codes, load

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.retrieval.embeddings import Embeddings


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="a pretrained folder")
    parser.add_argument("--output", type=Path, required=True, help="img_emb, text_emb and metadata are made in it")
    parser.add_argument("--text", action="store_true", help="embed captions too, each in a row of its own")
    add_source_options(parser)


def add_source_options(parser: ArgumentParser, required: bool = True) -> None:
    """What `embed_into` is given: pictures, how they are read and embedded, and by whom.

    `required`: whether there must be a source; without one, `given.source` is None.
    """
    from cclm.models.options import EncodingOptions

    source = "a folder of pictures, shards, a tar, a pattern, or a list of these: '[photos, shards/*.tar]'"
    parser.add_argument("--source", type=list[str] | str | None, required=required, default=None, help=source)
    parser.add_argument("--languages", type=list[str] | str | None, default=None, help="de,fr; all by default")
    parser.add_argument("--caption_language", default="en", help="of captions that do not name theirs")
    parser.add_argument("--dtype", default="float16", help="float16, as clip-retrieval's, or float32")
    parser.add_argument(
        "--pictures_per_part", type=int, default=1000, help="of a folder of pictures; a tar is one part"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda ..")
    parser.add_argument("--engine", default="local", help="local, or ray: a cluster that shares this file system")
    parser.add_argument("--ray_address", default="", help="of the cluster's head; one is started here by default")
    parser.add_argument("--actors", type=int, default=0, help="models at work at once; 0: as many as ray has room for")
    parser.add_argument("--cpus_per_actor", type=int, default=1)
    parser.add_argument("--encoding", type=EncodingOptions, default=EncodingOptions())


def embed_into(folder: Path | str, model: Path | str, given: Namespace, text: bool = False) -> Embeddings:
    """Embed `given.source` with a pretrained folder; parts that a former run has finished are kept.

    `given`: a namespace with what `add_source_options` declares. Tells on the way what is kept and what is left out.
    Errors: ValueError, one line, for a source, model or option that does not fit, or a folder begun with other ones.
    """
    from cclm.data.shards import check_languages
    from cclm.evaluation.embedding import EmbedOptions
    from cclm.evaluation.extraction import Extraction
    from cclm.models.inference import progress_bar
    from cclm.retrieval.engines import EngineOptions

    languages = codes(given.languages)
    for source in given.source if isinstance(given.source, list) else [given.source]:
        check_languages(source, languages)
    chosen = EmbedOptions(languages, given.caption_language, text, given.dtype, given.encoding)
    gpus = int(given.device.startswith("cuda"))
    engine = EngineOptions(given.engine, given.ray_address, given.actors, given.cpus_per_actor, gpus)
    extraction = Extraction(
        Path(folder), Path(model), given.source, chosen, load, given.device, given.pictures_per_part
    )
    with progress_bar(None) as bar:
        return extraction.run(
            engine, print, lambda parts, count: bar.track(parts, total=count, description="embedding parts")
        )


def run(given: Namespace) -> None:
    found = embed_into(given.output, given.model, given, given.text)
    print(f"{given.output}: {found.rows} rows of width {found.dim}, {given.dtype}, in {len(found)} part(s)")
