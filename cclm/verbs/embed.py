"""`cclm embed`: pictures, and their captions, as files of embeddings in clip-retrieval's layout."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.inputs import codes, load

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.data.folder import Listing, Pictures
    from cclm.retrieval.embeddings import Embeddings, Receipt
    from cclm.retrieval.manifest import ModelSource


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="a pretrained folder")
    parser.add_argument("--output", type=Path, required=True, help="img_emb, text_emb and metadata are made in it")
    parser.add_argument("--text", action="store_true", help="embed captions too, each in a row of its own")
    add_source_options(parser)


def add_source_options(parser: ArgumentParser, required: bool = True) -> None:
    """What `embedded` is given: pictures, how they are read and embedded, and by whom.

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


def refuse_source_options(given: Namespace) -> None:
    """Errors: ValueError for options of embedding, where there is nothing to embed: they would do nothing."""
    parser = _no_source()
    named = [name for name, default in parser.items() if name != "source" and given[name] != default]
    if named:
        raise ValueError(f"--{', --'.join(named)}: of no effect on embeddings that are there; leave it out")


def _no_source() -> Namespace:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    add_source_options(parser, required=False)
    return parser.instantiate_classes(parser.parse_args([]))


def find(given: Namespace) -> Listing:
    """What `given.source` holds. Errors: ValueError, one line, as of `embedded`."""
    from cclm.data.folder import Listing, find_pictures

    return Listing.of(find_pictures(given.source, given.pictures_per_part))


@contextmanager
def embedded(
    folder: Path, model: Path, given: Namespace, pictures: Pictures | None = None, private: str = ""
) -> Iterator[Embeddings]:
    """Embed `given.source` with a pretrained folder, or `pictures` of it; parts that a former run has finished are
    kept, and nobody else writes there until the block ends.

    `given`: a namespace with what `add_source_options` declares. `private`: as of `Extraction`. Tells on the way what
    is kept and what is left out. Errors: ValueError, one line, for a source, model or option that does not fit, or a
    folder begun with other ones.
    """
    from cclm.data.shards import check_languages
    from cclm.evaluation.embedding import EmbedOptions
    from cclm.evaluation.extraction import Extraction
    from cclm.models.inference import progress_bar
    from cclm.retrieval.engines import EngineOptions

    languages = codes(given.languages)
    for source in given.source if isinstance(given.source, list) else [given.source]:
        check_languages(source, languages)
    text = given.get("text", False)
    chosen = EmbedOptions(languages, given.caption_language, text, given.dtype, given.encoding)
    gpus = int(given.device.startswith("cuda"))
    engine = EngineOptions(given.engine, given.ray_address, given.actors, given.cpus_per_actor, gpus)
    extraction = Extraction(
        folder, model, given.source, chosen, load, given.device, given.pictures_per_part, pictures, private
    )

    def shown(receipts: Iterable[Receipt], count: int) -> Iterator[Receipt]:
        with progress_bar(None) as bar:
            yield from bar.track(receipts, total=count, description="embedding parts")

    with extraction.running(engine, print, shown) as found:
        yield found


def model_of(found: Embeddings, model: Path | None) -> ModelSource:
    """The model that embeddings come from. Errors: ValueError where they do not tell, or tell another one."""
    from cclm.retrieval.manifest import ModelSource

    if found.manifest is None:
        if model is None:
            raise ValueError(f"embeddings {found.folder} do not tell their model; name its folder by --model")
        return ModelSource.of(model)
    told = found.manifest
    if model is None:
        return ModelSource(os.path.normpath(found.folder.resolve() / told.model_path), told.model_sha256)
    given = ModelSource.of(model)
    if given.sha256 != told.model_sha256:
        raise ValueError(
            f"embeddings {found.folder} are of a model of sha256 {told.model_sha256[:12]}, {model} has "
            f"{given.sha256[:12]}; leave --model out or name theirs"
        )
    return given


def run(given: Namespace) -> None:
    with embedded(given.output, given.model, given) as found:
        print(f"{given.output}: {found.rows} rows of width {found.dim}, {given.dtype}, in {len(found)} part(s)")
