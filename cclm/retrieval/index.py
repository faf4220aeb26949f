"""An index of pictures: building, opening and searching its folder.

Shapes: Q queries, E embedding, k hits per query, N rows of a segment.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from cclm.retrieval.builder import write_segment
from cclm.retrieval.filters import Condition
from cclm.retrieval.manifest import (
    EMBEDDINGS,
    MANIFEST_FILE,
    REBUILD,
    SEGMENTS,
    UNFINISHED,
    IndexManifest,
    ModelSource,
    Segment,
    check_model,
)
from cclm.retrieval.metadata import Entry, Outline, Rows
from cclm.retrieval.plan import Budget
from cclm.retrieval.segment import OpenSegment
from cclm.retrieval.vectors import unit
from cclm.retrieval.versions import commit, new_segment, read_live, writing
from cclm.storage import check_replaceable

logger = logging.getLogger(__name__)

_EMBEDDINGS = (f"{EMBEDDINGS}/*", f"{EMBEDDINGS}/*/*", f"{UNFINISHED}/*/*", f"{UNFINISHED}/*/*/*")
FILES = (MANIFEST_FILE, f"{SEGMENTS}/*/*", *_EMBEDDINGS, ".*")

_KEPT_SELECTIONS = 16

Selection = list[np.ndarray]  # (N,) bool for each segment: the rows to search among


@dataclass(frozen=True)
class Hit:
    """One found picture. `rank` counts from 1; `score` is the inner product of unit-norm embeddings.

    `match`: probability that query and picture match, where the matching head has judged them (`Searcher`).
    """

    rank: int
    score: float
    id: int
    entry: Entry
    match: float | None = None


@dataclass(frozen=True)
class Nearest:
    """The nearest rows of each query, best first; where there are fewer than k, id -1 and score -inf fill up."""

    scores: np.ndarray  # (Q, k) float32
    ids: np.ndarray  # (Q, k) int64


def build_index(
    parts: Sequence[Rows],
    output: Path | str,
    model: ModelSource,
    roots: Sequence[Path] = (),
    data: str = "",
    budget: Budget | None = None,
    texts: np.ndarray | None = None,
    strict: bool = False,
) -> IndexManifest:
    """Write an index folder; a former one stands until this is complete.

    `budget`: what the index may cost and should reach. `texts`: queries (Q, E) to measure it with, its own rows if none
    are given. `strict`: fail where none reaches the budget, rather than take the nearest. Errors: ValueError for a
    budget that no index holds, no rows, NaN or infinity, changing widths, a key that is there twice, a folder that
    holds something else, or that another process is changing.
    """
    import faiss

    output = Path(output)
    check_replaceable(output, FILES)
    outline = Outline.of(parts)
    outline.check_unique()
    width = min(outline.widths, default=0)
    del outline  # with all keys
    with writing(output):
        former = _former(output)
        version, first_id = (former.version + 1, former.next_id) if former else (1, 0)
        segment = write_segment(parts, new_segment(output, version), first_id, budget, texts, strict)
        manifest = IndexManifest(
            dim=width,
            model_path=os.path.relpath(Path(model.path).resolve(), output.resolve()),
            model_sha256=model.sha256,
            created_by=f"faiss {faiss.__version__}",
            segments=[segment],
            version=version,
            next_id=first_id + segment.rows,
            roots=[os.path.relpath(root.resolve(), output.resolve()) for root in roots],
            data=data,
            budget=asdict(budget or Budget()),
        )
        commit(output, manifest, former)
    logger.info("index of %d rows (%s) written to %s", manifest.rows, segment.factory, output)
    return manifest


def _former(folder: Path) -> IndexManifest | None:
    try:
        return IndexManifest.read(folder)
    except (FileNotFoundError, ValueError):  # of one that cannot be read, a new build is the cure
        return None


class ImageIndex:
    """An opened index folder: one version of it, which stays as it is while later ones are written."""

    def __init__(self, folder: Path, manifest: IndexManifest, segments: Sequence[OpenSegment]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.segments = segments
        self._selections: OrderedDict[str, Selection] = OrderedDict()
        self._selecting = threading.Lock()

    @classmethod
    def open(cls, folder: Path | str, former: Self | None = None) -> Self:
        """The newest version. Segments that `former` has open are taken from it, with their deletions as of now.

        Errors: FileNotFoundError where a part is missing, ValueError where parts do not belong together.
        """
        folder = Path(folder)
        opened = {segment.segment.name: segment for segment in (former.segments if former else ())}
        while True:
            manifest = IndexManifest.read(folder)
            try:
                for segment in manifest.segments:
                    opened[segment.name] = _opened(folder, segment, manifest.dim, opened.get(segment.name))
                return cls(folder, manifest, [opened[segment.name] for segment in manifest.segments])
            except (FileNotFoundError, ValueError):  # perhaps of a file that a writer has removed meanwhile
                if IndexManifest.read(folder) == manifest:
                    raise

    def newer(self) -> bool:
        """Whether the folder holds another version by now; reads the manifest alone."""
        return IndexManifest.read(self.folder) != self.manifest

    def __len__(self) -> int:
        return self.manifest.rows

    def model(self, model: Path | str | None = None) -> Path:
        """The model folder to embed queries with, checked against the manifest; `model` names it if it has moved."""
        return check_model(self.folder, self.manifest, model)

    def nearest(self, queries: np.ndarray, k: int, among: Selection | None = None) -> Nearest:
        """The k nearest pictures of each query embedding (Q, E), exactly k columns.

        Errors: ValueError for k < 1, another width, or a query that is not finite.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        vectors = unit(queries, "query")
        if vectors.shape[1] != self.manifest.dim:
            raise ValueError(
                f"query has width {vectors.shape[1]}, index {self.folder} has {self.manifest.dim}: "
                "they are not of one model; embed with the model of the index or build the index again"
            )
        scores, ids = [], []
        for place, segment in enumerate(self.segments):
            own, rows = segment.search(vectors, min(k, segment.segment.rows), among and among[place])
            found = rows >= 0
            scores.append(np.where(found, own, -np.inf))
            ids.append(np.where(found, segment.metadata.ids[rows], -1))
        scores.append(np.full((len(vectors), k), -np.inf, np.float32))
        ids.append(np.full((len(vectors), k), -1))
        together, numbers = np.concatenate(scores, axis=1), np.concatenate(ids, axis=1)
        best = np.argsort(-together, axis=1, kind="stable")[:, :k]
        return Nearest(np.take_along_axis(together, best, 1), np.take_along_axis(numbers, best, 1))

    def search(self, queries: np.ndarray, k: int = 10, among: Selection | None = None) -> list[list[Hit]]:
        """The k nearest pictures of each query embedding (Q, E), best first; all of them where there are fewer.

        Errors: as of `nearest`.
        """
        if k > len(self) > 0:
            logger.warning("index %s holds %d images; k %d is cut to that", self.folder, len(self), k)
        nearest = self.nearest(queries, min(k, max(len(self), 1)), among)
        found = nearest.ids >= 0
        entries = iter(self.entries(nearest.ids[found]))
        return [
            [
                Hit(rank, float(score), int(number), next(entries))
                for rank, (score, number) in enumerate(zip(scores[real], ids[real], strict=True), start=1)
            ]
            for scores, ids, real in zip(nearest.scores, nearest.ids, found, strict=True)
        ]

    def select(self, where: str) -> Selection:
        """The rows that are there and fulfil a condition such as `lang = 'de' and width > 500` (retrieval/filters.py).

        Errors: ValueError, one line, for anything else.
        """
        with self._selecting:
            if where not in self._selections:
                condition = Condition.parse(where)
                self._selections[where] = [
                    _alive(segment, condition.rows(segment.metadata)) for segment in self.segments
                ]
            self._selections.move_to_end(where)
            if len(self._selections) > _KEPT_SELECTIONS:
                self._selections.popitem(last=False)
            return self._selections[where]

    def ids_of(self, keys: Sequence[str] | pa.ChunkedArray) -> np.ndarray:
        """The id (K,) int64 of each key, -1 where none is there."""
        found = np.full(len(keys), -1)
        for segment in self.segments:
            rows = segment.metadata.rows_of(keys)
            own = rows >= 0
            if segment.live is not None:
                own &= segment.live[rows]
            found[own] = segment.metadata.ids[rows[own]]
        return found

    def entries(self, ids: np.ndarray) -> list[Entry]:
        """The entries of these ids, in this order. Errors: KeyError for one that is not there, or deleted."""
        found: dict[int, Entry] = {}
        for segment, places, rows in self._located(ids):
            found |= zip(places.tolist(), segment.metadata.entries(rows.tolist()), strict=True)
        return [found[place] for place in range(len(ids))]

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """The embeddings (R, E) float32 of these ids. Errors: KeyError for one that is not there, or deleted."""
        found = np.empty((len(ids), self.manifest.dim), np.float32)
        for segment, places, rows in self._located(ids):
            found[places] = segment.vectors(rows)
        return found

    def _located(self, ids: np.ndarray) -> list[tuple[OpenSegment, np.ndarray, np.ndarray]]:
        """Per segment: which of `ids` (places in it) are there, and in which rows."""
        ids = np.asarray(ids, np.int64)
        located, missing = [], np.ones(len(ids), bool)
        for segment in self.segments:
            rows = np.minimum(np.searchsorted(segment.metadata.ids, ids), len(segment.metadata) - 1)
            own = segment.metadata.ids[rows] == ids
            if segment.live is not None:
                own &= segment.live[rows]
            places = np.flatnonzero(own)
            if len(places):
                located.append((segment, places, rows[places]))
            missing[places] = False
        if missing.any():
            raise KeyError(int(ids[missing][0]))
        return located


def _opened(folder: Path, segment: Segment, dim: int, former: OpenSegment | None) -> OpenSegment:
    """A segment, its files as they are in `former`, all but its deletions."""
    live = read_live(folder, segment)
    if former is None or former.segment.name != segment.name:
        opened = OpenSegment(folder / SEGMENTS / segment.name, segment)
    else:
        opened = copy.copy(former)
        opened.segment = segment
    opened.live = live
    if opened.dim != dim:
        raise ValueError(f"index {folder}: width is {dim}, but {opened.dim} in segment {segment.name}; {REBUILD}")
    return opened


def _alive(segment: OpenSegment, rows: np.ndarray) -> np.ndarray:
    return rows if segment.live is None else rows & segment.live
