"""`cclm index add | delete | compact | duplicates | show`: an index that is there already."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclm.errors import first_line, printable
from cclm.verbs.embed import embedded, find, model_of
from cclm.verbs.index import add_budget_options, add_picture_options, budget, check_picture_options, is_demand, option

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.data.folder import Pictures
    from cclm.retrieval.duplicates import Duplicate
    from cclm.retrieval.embeddings import Embeddings
    from cclm.retrieval.index import ImageIndex
    from cclm.retrieval.manifest import IndexManifest

SHOWN = 20  # groups of duplicates, keys that are deleted
IDS_IN_COMMAND = 50


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path)
    option(parser, "replace", False, "pictures take the place of those with their keys, which are dropped")
    option(parser, "new-only", False, "add those alone whose keys are not there: what a folder has grown by")
    parser.add_argument("--model", type=Path, default=None, help="the index's model, where it has moved")
    add_picture_options(parser)


def add(given: Namespace) -> None:
    from cclm.retrieval.embeddings import Embeddings
    from cclm.retrieval.index import ImageIndex
    from cclm.retrieval.manifest import UNFINISHED

    check_picture_options("index add", given)
    if given.replace and given.new_only:
        raise ValueError("index add takes one of --replace and --new-only: the new pictures stand, or the former ones")
    if given.embeddings is not None:
        _add(Embeddings.open(given.embeddings, given.root), given)
        return
    index = ImageIndex.open(given.index)
    model = index.model(given.model)
    pictures = _to_add(index, given)
    if pictures.parts:
        with embedded(given.index / UNFINISHED, model, given, pictures, "add") as found:
            _add(found, given)
    else:
        print(f"{given.index}: nothing new, {_state(index.manifest)}")


def _to_add(index: ImageIndex, given: Namespace) -> Pictures:
    """What is to be embedded. Errors: ValueError where keys are there, before the work."""
    from cclm.retrieval.living import check_absent

    listing = find(given)
    keys = [f"{given.key_prefix}{key}" for own in listing.keys for key in own]
    if given.replace:
        return listing.pictures
    if not given.new_only:
        check_absent(index, keys)
        return listing.pictures
    there = [keys[place].removeprefix(given.key_prefix) for place in (index.ids_of(keys) >= 0).nonzero()[0]]
    return listing.without(frozenset(there))


def _add(found: Embeddings, given: Namespace) -> None:
    from cclm.retrieval.living import IndexWriter

    found.key_prefix = given.key_prefix
    roots = [] if found.root is None else [found.root]
    model = model_of(found, given.model if given.embeddings else None)
    with IndexWriter(given.index) as writer:
        before = writer.index.manifest
        if given.replace:
            manifest = writer.replace(found, roots, model)
        else:
            manifest = writer.append(found, roots, model, given.new_only)
    count = manifest.next_id - before.next_id
    print(f"{given.index}: {count} pictures {'put in' if given.replace else 'added'}, {_state(manifest)}")


def delete_options(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path)
    parser.add_argument(
        "--keys", type=list[str] | str | None, default=None, help="""a,b; where a key has a comma: '["a,b", "c"]'"""
    )
    parser.add_argument("--keys-from", type=Path, default=None, help="a file of keys, one a line; or JSON strings")
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
        keys = _read_keys(given.keys_from)
    if given.dry_run:
        index = ImageIndex.open(given.index)
        chosen = index.select(given.where) if given.where is not None else with_keys(index, keys)
        print(f"{given.index}: {sum(int(rows.sum()) for rows in chosen)} of {len(index)} pictures would be deleted")
        for key in _first_keys(index, chosen):
            print(f"  {printable(key)}")
        return
    with IndexWriter(given.index) as writer:
        count = writer.delete(keys, given.where)
        print(f"{given.index}: {count} pictures deleted, {_state(writer.index.manifest)}")


def _write_keys(path: Path, keys: Iterable[str]) -> None:
    """JSON, as a file's name may have line breaks."""
    from cclm.storage import whole_file

    with whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(key, ensure_ascii=False) + "\n" for key in keys), encoding="utf-8")


def _read_keys(path: Path) -> list[str]:
    """What `_write_keys` has written, or plain keys. Errors: ValueError for what is no such file."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--keys-from {path} is no readable file of UTF-8 text ({first_line(error)})") from None
    keys = [_key(line.removesuffix("\r")) for line in lines if line.strip()]
    if not keys:
        raise ValueError(f"--keys-from {path} names no key; write one on each line")
    return keys


def _key(line: str) -> str:
    try:
        found = json.loads(line) if line.startswith('"') else line
    except ValueError:  # a key that begins with a quotation mark
        found = line
    return found


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
    add_budget_options(parser)


def compact(given: Namespace) -> None:
    from cclm.retrieval.living import IndexWriter, budget_of
    from cclm.retrieval.parts import remove_unused

    with IndexWriter(given.index) as writer:
        before = writer.index.manifest
        former = budget_of(before)
        asked = budget(given, former)
        manifest = writer.compact(asked if asked != former else None, is_demand(given))
    if removed := remove_unused(_unfinished(given.index)):
        print(f"{given.index}: embeddings of {removed} stopped command(s) removed")
    if manifest == before:
        print(f"{given.index}: one segment without deleted rows, nothing to do")
    else:
        print(f"{given.index}: {len(before.segments)} segments became {len(manifest.segments)}, {_state(manifest)}")


def _unfinished(folder: Path) -> list[Path]:
    """Folders of embeddings that a command is making, or was stopped over."""
    from cclm.retrieval.manifest import UNFINISHED

    return sorted(path for path in (folder / UNFINISHED).glob("*") if path.is_dir())


def duplicates_options(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path)
    parser.add_argument("--threshold", type=float, default=0.96, help="the cosine from which on two are alike")
    parser.add_argument("--output", type=Path, default=None, help="write the keys of all but the first of each group")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def duplicates(given: Namespace) -> None:
    from cclm.models.inference import progress_bar
    from cclm.retrieval.duplicates import find_duplicates
    from cclm.retrieval.index import ImageIndex

    index = ImageIndex.open(given.index)
    with progress_bar(None) as bar:
        task = bar.add_task("comparing, %", total=100)
        groups = find_duplicates(index, given.threshold, lambda done: bar.update(task, completed=int(100 * done)))
    more = [one for group in groups for one in group[1:]]
    if given.output is not None:
        _write_keys(given.output, (one.entry.key for one in more))
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
    return printable(f"{one.entry.key}{path}{size}")


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
        print(f"  root {number}    {printable(str(root))}" + " is not there" * (not root.is_dir()))
    if manifest.data:
        print(f"  data      {printable(manifest.data)}")
    if unfinished := _unfinished(given.index):
        size = sum(path.stat().st_size for folder in unfinished for path in folder.rglob("*") if path.is_file())
        print(
            f"  {len(unfinished)} stopped or running command(s) have {size / 1e6:.1f} MB of embeddings: the same "
            "command goes on with them, cclm index compact removes what none is at"
        )


def _state(manifest: IndexManifest) -> str:
    deleted = sum(segment.deleted for segment in manifest.segments)
    segments = f"{len(manifest.segments)} segment{'s' * (len(manifest.segments) != 1)}"
    rest = f", {deleted} deleted rows (cclm index compact drops them)" if deleted else ""
    return f"version {manifest.version}: {manifest.rows} pictures of width {manifest.dim} in {segments}{rest}"
