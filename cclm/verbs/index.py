"""`cclm index build`: pictures, or their embeddings, into an index folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclm.verbs.embed import add_source_options, embedded, find, model_of, refuse_source_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.retrieval.embeddings import Embeddings
    from cclm.retrieval.manifest import IndexManifest
    from cclm.retrieval.plan import Budget


def option(parser: ArgumentParser, name: str, default: str | bool, text: str) -> None:
    """Declare `--a-name`, which may also be written `--a_name`."""
    names = dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))
    if isinstance(default, bool):
        parser.add_argument(*names, action="store_true", help=text)
    else:
        parser.add_argument(*names, type=str, default=default, help=text)


def add_picture_options(parser: ArgumentParser) -> None:
    """Pictures for an index: a source that is to be embedded, or embeddings."""
    parser.add_argument("--embeddings", type=Path, default=None, help="a folder of `cclm embed` instead of a source")
    parser.add_argument("--root", type=Path, default=None, help="the pictures' folder, where embeddings do not tell it")
    option(parser, "key-prefix", "", "put before every key, where two sources have the same ones: holiday/")
    add_source_options(parser, required=False)


def check_picture_options(verb: str, given: Namespace) -> None:
    """Errors: ValueError for both, or none, of a source and embeddings, and for options of the other one."""
    if (given.source is None) == (given.embeddings is None):
        raise ValueError(f"{verb} takes either --source PICTURES, to be embedded, or --embeddings FOLDER")
    if given.source is None:
        refuse_source_options(given)
    elif given.root is not None:
        raise ValueError("--root is of embeddings that are there; a source tells its own: leave it out")


def add_budget_options(parser: ArgumentParser) -> None:
    """What `budget` is made from."""
    option(parser, "max-memory", "", "of building, and of the index: 512MB, 2GB ..; what is free by default")
    option(parser, "min-recall", "", "of the 10 nearest that an exact search finds; 0.95, or the nearest, by default")
    option(parser, "max-latency", "", "of one query alone, in the median: 5ms; any by default")
    option(parser, "factory", "", "FAISS index factory string instead of a choice: IVF4096,PQ64x4fs,Refine(SQ8)")
    option(parser, "search", "", "its search parameters instead of tuning: nprobe=16,k_factor_rf=4")


def budget(given: Namespace, former: Budget | None = None) -> Budget:
    """What is given, for the rest what a former one says. Errors: ValueError for what is no size, number or duration,
    or search parameters of no index.
    """
    from cclm.retrieval.plan import Budget, milliseconds, size

    changed: dict[str, Any] = {}
    if given.max_memory:
        changed["max_memory"] = size(given.max_memory)
    if given.min_recall:
        try:
            changed["min_recall"] = float(given.min_recall)
        except ValueError:
            raise ValueError(f"--min-recall {given.min_recall!r} is no number; give 0.95, say") from None
    if given.max_latency:
        changed["max_latency"] = milliseconds(given.max_latency)
    if given.factory or given.search:
        changed |= {"factory": given.factory or (former.factory if former else ""), "search": given.search}
    elif changed:  # what was named by hand reaches what it reaches: to ask for more is to have it chosen
        changed |= {"factory": "", "search": ""}
    return replace(former or Budget(), **changed)


def is_demand(given: Namespace) -> bool:
    """Whether what a budget asks was said, and is not to be missed."""
    return bool(given.min_recall or given.max_latency)


def build_options(parser: ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=None, help="a pretrained folder; embeddings name theirs")
    add_budget_options(parser)
    option(parser, "dry-run", False, "tell the plan, and do nothing")
    option(parser, "keep-embeddings", False, "have them in OUTPUT/embeddings, and leave them there")
    add_picture_options(parser)


def build(given: Namespace) -> None:
    from cclm.retrieval.embeddings import Embeddings
    from cclm.retrieval.index import FILES
    from cclm.retrieval.manifest import EMBEDDINGS, UNFINISHED
    from cclm.storage import check_replaceable

    check_picture_options("index build", given)
    if given.embeddings is None and given.model is None:
        raise ValueError("index build --source needs the model to embed with: --model FOLDER")
    check_replaceable(given.output, FILES)
    asked = budget(given)
    if given.embeddings is not None:
        found = Embeddings.open(given.embeddings, given.root)
        _show_plan(asked, found.rows, found.dim)
        if not given.dry_run:
            _index(found, given, asked)
        return
    dim, listing = _width(given.model), find(given)
    _show_plan(asked, sum(map(len, listing.keys)), dim)
    if given.dry_run:
        return
    kept = given.keep_embeddings
    folder, private = (given.output / EMBEDDINGS, "") if kept else (given.output / UNFINISHED, "build")
    with embedded(folder, given.model, given, listing.pictures, private) as found:
        _index(found, given, asked)


def _index(found: Embeddings, given: Namespace, asked: Budget) -> None:
    from cclm.retrieval.index import build_index
    from cclm.retrieval.tuning import text_queries

    found.key_prefix = given.key_prefix
    roots = [] if found.root is None else [found.root]
    texts = text_queries(found.folder, found.dim)
    model = model_of(found, given.model)
    manifest = build_index(found, given.output, model, roots, _data(found), asked, texts, is_demand(given))
    _show_reached(given.output, manifest)


def _width(model: Path) -> int:
    """Of the model's embeddings."""
    from cclm.retrieval.manifest import ModelSource

    ModelSource.of(model)
    config = model / "config.json"
    try:
        return int(json.loads(config.read_text(encoding="utf-8")).get("embedding_size", 256))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{config} is no config of a model ({type(error).__name__}); choose another folder") from None


def _show_plan(budget: Budget, rows: int, dim: int) -> None:
    from cclm.retrieval.builder import planned
    from cclm.retrieval.plan import check_parameters, size_text

    plans = planned(rows, dim, budget)
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
        reaches = "reached" if reached.recall >= asked["min_recall"] else "reached only"
        print(
            f"{reaches}: recall {reached.recall:.3f} (asked for {asked['min_recall']:g}), {reached.latency_ms:.2f} ms "
            f"for a query, {reached.queries_per_s:.0f} queries/s; of {reached.queries} {reached.origin}"
        )


def _data(found: Embeddings) -> str:
    return ", ".join(found.manifest.source) if found.manifest is not None else str(found.folder)
