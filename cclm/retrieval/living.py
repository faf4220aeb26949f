"""Changing an index while it is searched: each change is one new version, there as a whole or not at all.

N rows of a segment, K keys.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cclm.errors import first_line
from cclm.retrieval.builder import write_segment
from cclm.retrieval.index import ImageIndex, Selection
from cclm.retrieval.manifest import REBUILD, IndexManifest, ModelSource, Segment
from cclm.retrieval.metadata import Outline, Rows, as_array
from cclm.retrieval.plan import Budget
from cclm.retrieval.segment import OpenSegment
from cclm.retrieval.versions import commit, new_segment, with_deletions, writing

logger = logging.getLogger(__name__)

BLOCK_ROWS = 16_384  # that a compaction holds at a time


class IndexWriter:
    """Changes an index folder, alone: `with IndexWriter(folder) as writer: writer.append(parts)`.

    When a method has returned, its change is on the disk. Readers go on with the version that they have open.
    """

    def __init__(self, folder: Path | str, patience: float = 5.0) -> None:
        """`patience`: seconds that another writer is waited for."""
        self.folder, self._patience = Path(folder), patience
        self._stack = ExitStack()
        self.index: ImageIndex  # as of now

    def __enter__(self) -> Self:
        """Errors: FileNotFoundError without an index; ValueError while another process is changing it."""
        IndexManifest.read(self.folder)
        with ExitStack() as stack:
            stack.enter_context(writing(self.folder, self._patience))
            self.index = ImageIndex.open(self.folder)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def append(
        self,
        parts: Sequence[Rows],
        roots: Sequence[Path] = (),
        model: ModelSource | None = None,
        new_only: bool = False,
    ) -> IndexManifest:
        """Add pictures; none of them, by its key, may be there already, or with `new_only` those that are stay out.

        `roots`: the folders that `root` of the entries counts, those of the index if none is given. `model`: that the
        embeddings come from. Errors: ValueError for such keys, another model or width, and as of `build_index`.
        """
        outline = self._outline(parts, model)
        outline.check_unique("give each a key of its own, or have the last of each stand by --replace")
        if not new_only:
            check_absent(self.index, outline.keys)
            return self._change([], parts, roots)
        new = self.index.ids_of(outline.keys) < 0
        return self._change([], _Chosen(parts, new), roots) if new.any() else self.index.manifest

    def replace(
        self, parts: Sequence[Rows], roots: Sequence[Path] = (), model: ModelSource | None = None
    ) -> IndexManifest:
        """Add pictures; each takes the place of what has its key, in the same new version. Of several that are given
        with one key, the last stands. Errors: as of `append`, but for keys that are there.
        """
        keys = self._outline(parts, model).keys
        former = [np.zeros(segment.segment.rows, bool) for segment in self.index.segments]
        for rows, segment in zip(former, self.index.segments, strict=True):
            found = segment.metadata.rows_of(keys)
            rows[found[found >= 0]] = True
        return self._change(former, parts, roots, _but_the_last(keys))

    def delete(self, keys: Sequence[str] | None = None, where: str | None = None) -> int:
        """Delete the pictures with these keys, or all that fulfil a condition (`ImageIndex.select`); tells how many.

        Errors: ValueError for keys that are not there (nothing is deleted then), or a condition that is none.
        """
        if (keys is None) == (where is None):
            raise ValueError("give either the keys or a condition of what is to be deleted")
        chosen = self.index.select(where) if where is not None else with_keys(self.index, keys or ())
        count = sum(int(rows.sum()) for rows in chosen)
        if count:
            self._change(chosen)
        return count

    def compact(self, budget: Budget | None = None, strict: bool = False) -> IndexManifest:
        """Index all that is there in one new segment, whose kind is chosen anew; ids stay, deleted rows go.

        `budget`: what it may cost and should reach, from now on; by default what the first build was given, less an
        index named by hand that the rows left are too few for. `strict`: as of `build_index`. Errors: ValueError
        where no index holds it.
        """
        manifest = self.index.manifest
        if budget is None and len(manifest.segments) <= 1 and not any(segment.deleted for segment in manifest.segments):
            return manifest
        chosen = budget or budget_of(manifest)
        try:
            segments = self._joined(chosen, strict)
        except ValueError as error:
            if budget is not None or not chosen.factory:
                raise
            logger.warning("%s is not built again (%s); an index is chosen", chosen.factory, first_line(error))
            chosen = replace(chosen, factory="", search="")
            segments = self._joined(chosen, strict)
        return self._commit(segments, budget=asdict(chosen))

    def _joined(self, budget: Budget, strict: bool) -> list[Segment]:
        """All that is there in one segment, none if nothing is."""
        manifest = self.index.manifest
        if not manifest.rows:
            return []
        parts = _LiveRows.of(self.index.segments)
        return [write_segment(parts, new_segment(self.folder, manifest.version + 1), budget=budget, strict=strict)]

    def _outline(self, parts: Sequence[Rows], model: ModelSource | None) -> Outline:
        """Errors: ValueError for another model, or width, than the index has."""
        manifest = self.index.manifest
        if model is not None and model.sha256 != manifest.model_sha256:
            raise ValueError(
                f"the embeddings are of model {model.path} (sha256 {model.sha256[:12]}), index {self.folder} is of "
                f"{manifest.model_folder(self.folder)} ({manifest.model_sha256[:12]}); embed with that one"
            )
        outline = Outline.of(parts)
        if others := outline.widths - {manifest.dim}:
            raise ValueError(
                f"the embeddings have width {min(others)}, index {self.folder} has {manifest.dim}: not of one model"
            )
        return outline

    def _change(
        self,
        gone: Selection,
        parts: Sequence[Rows] | None = None,
        roots: Sequence[Path] = (),
        superseded: np.ndarray | None = None,
    ) -> IndexManifest:
        """One new version: without the rows `gone`, and with a segment of `parts`, less its rows `superseded`."""
        manifest = self.index.manifest
        version, known = manifest.version + 1, list(manifest.roots)
        added = []
        if parts is not None:
            renumbered = _Renumbered(parts, _numbers(known, roots, self.folder))
            # An index that was named by hand is for all rows; of a few, the kind is chosen.
            budget = replace(budget_of(manifest), factory="", search="")
            new = write_segment(renumbered, new_segment(self.folder, version), manifest.next_id, budget)
            if superseded is not None and superseded.any():
                new = with_deletions(self.folder, new, ~superseded, version)
            added = [new]
        segments = list(manifest.segments)
        for place, rows in enumerate(gone):
            segment, live = segments[place], self.index.segments[place].live
            left = ~rows if live is None else live & ~rows
            if int(left.sum()) < segment.rows - segment.deleted:
                segments[place] = with_deletions(self.folder, segment, left, version)
        segments = [segment for segment in segments if segment.deleted < segment.rows]
        return self._commit(
            segments + added, next_id=manifest.next_id + sum(segment.rows for segment in added), roots=known
        )

    def _commit(self, segments: list[Segment], **changes: object) -> IndexManifest:
        former = self.index.manifest
        manifest = replace(former, version=former.version + 1, segments=segments, **changes)
        commit(self.folder, manifest, former)
        self.index = ImageIndex.open(self.folder, self.index)
        logger.info("index %s: version %d, %d rows", self.folder, manifest.version, manifest.rows)
        return manifest


def budget_of(manifest: IndexManifest) -> Budget:
    try:
        return Budget(**manifest.budget)
    except TypeError as error:
        raise ValueError(f"the manifest's budget is not as it was written ({error}); {REBUILD}") from error


def check_absent(index: ImageIndex, keys: Sequence[str] | pa.ChunkedArray) -> None:
    """Errors: ValueError where a picture of one of these keys is there."""
    there = np.flatnonzero(index.ids_of(keys) >= 0)
    if len(there):
        first = keys[int(there[0])]
        raise ValueError(
            f"{len(there)} of {len(keys)} pictures are in index {index.folder} already (first: {str(first)!r}); "
            "--new-only adds the others alone, --replace drops the pictures of these keys and adds all, and if they "
            "are other pictures, --key-prefix NAME/ gives these keys of their own"
        )


def with_keys(index: ImageIndex, keys: Sequence[str]) -> Selection:
    """The rows that have these keys. Errors: ValueError where one is not there."""
    ids = index.ids_of(keys)
    missing = np.flatnonzero(ids < 0)
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(keys)} keys are not in index {index.folder} (first: {keys[missing[0]]!r}); "
            "nothing was changed: check them, as `cclm search` tells keys"
        )
    return [np.isin(segment.metadata.ids, ids) for segment in index.segments]


def _but_the_last(keys: pa.ChunkedArray) -> np.ndarray:
    """Which rows (N,) bool another one of the same key follows."""
    numbers = as_array(keys).dictionary_encode().indices.to_numpy()
    last = np.zeros(len(numbers), bool)
    last[len(numbers) - 1 - np.unique(numbers[::-1], return_index=True)[1]] = True
    return ~last


def _numbers(known: list[str], roots: Sequence[Path], folder: Path) -> np.ndarray | None:
    """The number in `known` of each of `roots`, which are appended where they are new; None where none are given."""
    names = [os.path.relpath(root.resolve(), folder.resolve()) for root in roots]
    known.extend(name for name in dict.fromkeys(names) if name not in known)
    return np.array([known.index(name) for name in names], np.int32) if names else None


class _Renumbered(Sequence[Rows]):
    """The same rows, their roots counted as the index counts them."""

    def __init__(self, parts: Sequence[Rows], numbers: np.ndarray | None) -> None:
        self._parts, self._numbers = parts, numbers

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, place: int) -> Rows:
        rows = self._parts[place]
        if self._numbers is None:
            return rows
        given = pc.fill_null(rows.entries["root"], 0).to_numpy()
        if len(given) and not 0 <= given.min() <= given.max() < len(self._numbers):
            raise ValueError(f"entries are of roots {given.min()} to {given.max()}, {len(self._numbers)} are given")
        column = rows.entries.schema.get_field_index("root")
        entries = rows.entries.set_column(column, rows.entries.field("root"), pa.array(self._numbers[given]))
        return Rows(entries, rows.vectors)


class _Chosen(Sequence[Rows]):
    """Some of the rows, parts that have none of them left out."""

    def __init__(self, parts: Sequence[Rows], rows: np.ndarray) -> None:
        """`rows`: which of all, bool."""
        ends = np.cumsum([len(part) for part in parts])
        own = np.split(rows, ends[:-1])
        self._parts, self._rows = parts, [(place, chosen) for place, chosen in enumerate(own) if chosen.any()]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Rows:
        number, chosen = self._rows[place]
        part = self._parts[number]
        return Rows(part.entries.filter(pa.array(chosen)), part.vectors[chosen])


@dataclass(frozen=True)
class _Block:
    segment: OpenSegment
    rows: np.ndarray  # those of up to BLOCK_ROWS that are there


class _LiveRows(Sequence[Rows]):
    """What is there of segments, a block at a time, with its ids; read whenever it is asked for."""

    def __init__(self, blocks: list[_Block]) -> None:
        self._blocks = blocks

    @classmethod
    def of(cls, segments: Sequence[OpenSegment]) -> Self:
        return cls([_Block(segment, rows) for segment in segments for rows in _blocks(segment)])

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, place: int) -> Rows:
        segment, rows = self._blocks[place].segment, self._blocks[place].rows
        first = int(rows[0])
        entries = segment.metadata.table(first, int(rows[-1]) + 1).take(pa.array(rows - first))
        return Rows(entries, segment.vectors(rows))


def _blocks(segment: OpenSegment) -> Iterator[np.ndarray]:
    rows = np.arange(segment.segment.rows) if segment.live is None else np.flatnonzero(segment.live)
    for start in range(0, len(rows), BLOCK_ROWS):
        yield rows[start : start + BLOCK_ROWS]
