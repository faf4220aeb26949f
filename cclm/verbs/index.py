"""`cclm index build`: pictures, or their embeddings, into an index folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.embed import add_source_options, embed_into

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.retrieval.embeddings import Embeddings
    from cclm.retrieval.manifest import IndexManifest, ModelSource
    from cclm.retrieval.plan import Budget


def build_options(parser: ArgumentParser) -> None:
    def option(name: str, default: str | bool, text: str) -> None:
        names = (f"--{name}", f"--{name.replace('-', '_')}")
        if isinstance(default, bool):
            parser.add_argument(*names, action="store_true", help=text)
        else:
            parser.add_argument(*names, type=str, default=default, help=text)

    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=None, help="a pretrained folder; embeddings name theirs")
    parser.add_argument("--embeddings", type=Path, default=None, help="a folder of `cclm embed` instead of a source")
    parser.add_argument("--root", type=Path, default=None, help="the pictures' folder, where embeddings do not tell it")
    option("max-memory", "", "of building, and of the index: 512MB, 2GB ..; what is free by default")
    option("min-recall", "0.95", "of the 10 nearest that an exact search finds")
    option("max-latency", "", "of one query alone, in the median: 5ms; any by default")
    option("factory", "", "FAISS index factory string instead of a choice: IVF4096,PQ64x4fs,Refine(SQ8)")
    option("search", "", "its search parameters instead of tuning: nprobe=16,k_factor_rf=4")
    option("dry-run", False, "tell the plan, and do nothing")
    option("keep-embeddings", False, "leave OUTPUT/embeddings there when the index stands")
    add_source_options(parser, required=False)


def build(given: Namespace) -> None:
    from cclm.retrieval.embeddings import Embeddings
    from cclm.retrieval.index import FILES, build_index
    from cclm.retrieval.manifest import EMBEDDINGS
    from cclm.retrieval.tuning import text_queries
    from cclm.storage import check_replaceable

    if (given.source is None) == (given.embeddings is None):
        raise ValueError("index build takes either --source PICTURES, to be embedded, or --embeddings FOLDER")
    if given.embeddings is None and given.model is None:
        raise ValueError("index build --source needs the model to embed with: --model FOLDER")
    check_replaceable(given.output, FILES)
    budget = _budget(given)
    found = None if given.embeddings is None else Embeddings.open(given.embeddings, given.root)
    _show_plan(budget, *(_to_embed(given) if found is None else (found.rows, found.dim)))
    if given.dry_run:
        return
    if found is None:
        found = embed_into(given.output / EMBEDDINGS, given.model, given)
    roots = [] if found.root is None else [found.root]
    texts = text_queries(found.folder, found.dim)
    manifest = build_index(found, given.output, _model_of(found, given.model), roots, _data(found), budget, texts)
    if given.embeddings is None and not given.keep_embeddings:
        shutil.rmtree(given.output / EMBEDDINGS)
    _show_reached(given.output, manifest)


def _budget(given: Namespace) -> Budget:
    from cclm.retrieval.plan import Budget, milliseconds, size

    try:
        recall = float(given.min_recall)
    except ValueError:
        raise ValueError(f"--min-recall {given.min_recall!r} is no number; give 0.95, say") from None
    return Budget(
        max_memory=size(given.max_memory) if given.max_memory else 0,
        min_recall=recall,
        max_latency=milliseconds(given.max_latency) if given.max_latency else 0.0,
        factory=given.factory,
        search=given.search,
    )


def _to_embed(given: Namespace) -> tuple[int, int]:
    """How many pictures a source holds, damaged ones included, and the width of the model's embeddings."""
    from cclm.data.folder import find_pictures
    from cclm.errors import SampleError
    from cclm.retrieval.manifest import ModelSource

    ModelSource.of(given.model)
    config = given.model / "config.json"
    try:
        dim = int(json.loads(config.read_text(encoding="utf-8")).get("embedding_size", 256))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{config} is no config of a model ({type(error).__name__}); choose another folder") from None
    count = 0
    for part in find_pictures(given.source, given.pictures_per_part).parts:
        try:
            for _ in part.pictures():
                count += 1
        except SampleError:  # told when it is embedded
            pass
    return count, dim


def _show_plan(budget: Budget, rows: int, dim: int) -> None:
    from cclm.retrieval.plan import check_parameters, ladder, size_text

    plans = ladder(rows, dim, budget)
    if budget.search:
        check_parameters(budget.factory, budget.search, dim)
    latency = f", {budget.max_latency:g} ms for a query" if budget.max_latency else ""
    asked = f"recall {budget.min_recall:g}, {size_text(budget.memory)} of memory{latency}"
    print(f"plan: {rows} pictures of width {dim}; asked for: {asked}")
    for place, plan in enumerate(plans):
        print(f"  {'if that misses it, ' if place else ''}{plan}")


def _show_reached(output: Path, manifest: IndexManifest) -> None:
    (segment,) = manifest.segments
    reached, asked = segment.measured, manifest.budget
    parameters = f" searched with {segment.search}" if segment.search else ""
    print(
        f"{output}: {manifest.rows} pictures, {segment.factory} index of width {manifest.dim}{parameters}, "
        f"{segment.bytes_per_vector:.0f} bytes per vector"
    )
    if reached is not None:
        print(
            f"reached: recall {reached.recall:.3f} (asked for {asked['min_recall']:g}), {reached.latency_ms:.2f} ms "
            f"for a query, {reached.queries_per_s:.0f} queries/s; of {reached.queries} {reached.origin}"
        )


def _model_of(found: Embeddings, model: Path | None) -> ModelSource:
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


def _data(found: Embeddings) -> str:
    return ", ".join(found.manifest.source) if found.manifest is not None else str(found.folder)
