"""`cclm index add | delete | compact | duplicates | show`: an index that is there already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclm.verbs.embed import add_source_options, embed_into

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.retrieval.duplicates import Duplicate
    from cclm.retrieval.embeddings import Embeddings
    from cclm.retrieval.index import ImageIndex
    from cclm.retrieval.manifest import IndexManifest, ModelSource

SHOWN = 20  # groups of duplicates, keys that are deleted
IDS_IN_COMMAND = 50


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path)
    parser.add_argument("--embeddings", type=Path, default=None, help="a folder of `cclm embed` instead of a source")
    parser.add_argument("--root", type=Path, default=None, help="the pictures' folder, where embeddings do not tell it")
    parser.add_argument("--replace", action="store_true", help="pictures take the place of those with their keys")
    parser.add_argument("--model", type=Path, default=None, help="the index's model, where it has moved")
    add_source_options(parser, required=False)


def add(given: Namespace) -> None:
    from cclm.retrieval.embeddings import Embeddings
    from cclm.retrieval.living import IndexWriter
    from cclm.retrieval.manifest import EMBEDDINGS, IndexManifest, check_model

    if (given.source is None) == (given.embeddings is None):
        raise ValueError("index add takes either --source PICTURES, to be embedded, or --embeddings FOLDER")
    own = given.index / EMBEDDINGS
    if given.embeddings is None:
        model = check_model(given.index, IndexManifest.read(given.index), given.model)
        found = embed_into(own, model, given)
    else:
        found = Embeddings.open(given.embeddings, given.root)
    with IndexWriter(given.index) as writer:
        change = writer.replace if given.replace else writer.append
        manifest = change(found, [] if found.root is None else [found.root], _model_of(found, given))
    if given.embeddings is None:
        shutil.rmtree(own)
    print(f"{given.index}: {found.rows} pictures {'put in' if given.replace else 'added'}, {_state(manifest)}")


def _model_of(found: Embeddings, given: Namespace) -> ModelSource:
    from cclm.retrieval.manifest import ModelSource

    if found.manifest is not None:
        return ModelSource(found.manifest.model_path, found.manifest.model_sha256)
    if given.model is None:
        raise ValueError(f"embeddings {found.folder} do not tell their model; name its folder by --model")
    return ModelSource.of(given.model)


def delete_options(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path)
    parser.add_argument("--keys", type=list[str] | str | None, default=None, help="a,b or [a, b]")
    parser.add_argument("--keys-from", type=Path, default=None, help="a file of keys, one a line")
    parser.add_argument("--where", type=str | None, default=None, help="a condition: \"lang = 'de' and width < 100\"")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be deleted, and change nothing")


def delete(given: Namespace) -> None:
    from cclm.retrieval.index import ImageIndex
    from cclm.retrieval.living import IndexWriter, with_keys

    keys = given["keys"]  # a namespace has a method of that name
    if sum(value is not None for value in (keys, given.keys_from, given.where)) != 1:
        raise ValueError("index delete takes one of --keys a,b, --keys-from FILE and --where CONDITION")
    keys = keys.split(",") if isinstance(keys, str) else keys
    if given.keys_from is not None:
        keys = given.keys_from.read_text(encoding="utf-8").splitlines()
    if given.dry_run:
        index = ImageIndex.open(given.index)
        chosen = index.select(given.where) if given.where is not None else with_keys(index, keys)
        print(f"{given.index}: {sum(int(rows.sum()) for rows in chosen)} of {len(index)} pictures would be deleted")
        for key in _first_keys(index, chosen):
            print(f"  {key}")
        return
    with IndexWriter(given.index) as writer:
        count = writer.delete(keys, given.where)
        print(f"{given.index}: {count} pictures deleted, {_state(writer.index.manifest)}")


def _first_keys(index: ImageIndex, chosen: list[Any]) -> Iterator[str]:
    """The first few; then how many more there are."""
    count = sum(int(rows.sum()) for rows in chosen)
    shown = 0
    for segment, rows in zip(index.segments, chosen, strict=True):
        for entry in segment.metadata.entries(rows.nonzero()[0][: SHOWN - shown]):
            shown += 1
            yield entry.key
    if count > shown:
        yield f".. and {count - shown} more"


def compact_options(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path)


def compact(given: Namespace) -> None:
    from cclm.retrieval.living import IndexWriter

    with IndexWriter(given.index) as writer:
        before = writer.index.manifest
        manifest = writer.compact()
    if manifest == before:
        print(f"{given.index}: one segment without deleted rows, nothing to do")
    else:
        print(f"{given.index}: {len(before.segments)} segments became {len(manifest.segments)}, {_state(manifest)}")


def duplicates_options(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path)
    parser.add_argument("--threshold", type=float, default=0.96, help="the cosine from which on two are alike")
    parser.add_argument("--output", type=Path, default=None, help="write the keys of all but the first of each group")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def duplicates(given: Namespace) -> None:
    from cclm.models.inference import progress_bar
    from cclm.retrieval.duplicates import find_duplicates
    from cclm.retrieval.index import ImageIndex
    from cclm.storage import whole_file

    index = ImageIndex.open(given.index)
    with progress_bar(None) as bar:
        task = bar.add_task("comparing, %", total=100)
        groups = find_duplicates(index, given.threshold, lambda done: bar.update(task, completed=int(100 * done)))
    more = [one for group in groups for one in group[1:]]
    if given.output is not None:
        with whole_file(given.output) as path:
            path.write_text("".join(f"{one.entry.key}\n" for one in more), encoding="utf-8")
    if given.json:
        print(json.dumps([[_fields(one) for one in group] for group in groups], ensure_ascii=False))
        return
    print(
        f"{given.index}: {len(index)} pictures, {len(more)} of them again what another shows, in {len(groups)} groups"
    )
    for group in groups[:SHOWN]:
        print(f"\n{len(group)} alike:")
        for one in group:
            print(f"  {one.similarity:.3f}  {_told(one)}")
    if len(groups) > SHOWN:
        print(f"\n.. and {len(groups) - SHOWN} more groups (--json tells all)")
    if more:
        print(f"\nTo keep the first of each group alone: {_command(given, more)}")


def _command(given: Namespace, more: list[Duplicate]) -> str:
    if given.output is not None:
        return f"cclm index delete {given.index} --keys-from {given.output}"
    if len(more) <= IDS_IN_COMMAND:
        return f'cclm index delete {given.index} --where "id in ({", ".join(str(one.id) for one in more)})"'
    return f"write their keys by --output FILE, then cclm index delete {given.index} --keys-from FILE"


def _told(one: Duplicate) -> str:
    size = f"  {one.entry.width} x {one.entry.height}" if one.entry.width else ""
    path = f"  {one.entry.path}" if one.entry.path not in (None, one.entry.key) else ""
    return f"{one.entry.key}{path}{size}"


def _fields(one: Duplicate) -> dict[str, Any]:
    entry = one.entry
    return {"id": one.id, "key": entry.key, "path": entry.path, "width": entry.width, "height": entry.height,
            "similarity": round(one.similarity, 4)}  # fmt: skip


def show_options(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path)
    parser.add_argument("--verify", action="store_true", help="read everything and compare checksums")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def show(given: Namespace) -> None:
    from cclm.retrieval.index import ImageIndex
    from cclm.retrieval.manifest import IndexManifest, check_model

    manifest = IndexManifest.read(given.index)
    if given.verify:
        manifest = ImageIndex.open(given.index).manifest
        check_model(given.index, manifest)
    size = sum(path.stat().st_size for path in given.index.rglob("*") if path.is_file())
    if given.json:
        facts = {"rows": manifest.rows, "disk_bytes": size, "verified": given.verify}
        print(json.dumps(asdict(manifest) | facts, ensure_ascii=False, indent=2))
        return
    print(f"{given.index}: {_state(manifest)}, {size / 1e6:.1f} MB on disk" + ", verified" * given.verify)
    for segment in manifest.segments:
        measured = segment.measured
        told = f", recall@10 {measured.recall:.3f} in {measured.latency_ms:.1f} ms" if measured else ""
        print(
            f"  {segment.name}  {segment.rows} rows, {segment.deleted / segment.rows:.0%} deleted, {segment.factory} "
            f"{segment.search}".rstrip()
            + f", {segment.bytes_per_vector:.0f} bytes a vector{told}"
        )
    there = manifest.model_folder(given.index)
    print(f"  model     {there} (sha256 {manifest.model_sha256[:12]})" + " is not there" * (not there.is_dir()))
    for number, root in enumerate(manifest.root_folders(given.index)):
        print(f"  root {number}    {root}" + " is not there" * (not root.is_dir()))
    if manifest.data:
        print(f"  data      {manifest.data}")


def _state(manifest: IndexManifest) -> str:
    deleted = sum(segment.deleted for segment in manifest.segments)
    segments = f"{len(manifest.segments)} segment{'s' * (len(manifest.segments) != 1)}"
    rest = f", {deleted} deleted rows (cclm index compact drops them)" if deleted else ""
    return f"version {manifest.version}: {manifest.rows} pictures of width {manifest.dim} in {segments}{rest}"
