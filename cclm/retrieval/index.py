"""An index of pictures: building, opening and searching its folder.

Shapes: Q queries, E embedding, k hits per query, N rows of a segment.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from cclm.retrieval.manifest import (
    MANIFEST_FILE,
    REBUILD,
    SEGMENTS,
    IndexManifest,
    ModelSource,
    check_model,
)
from cclm.retrieval.metadata import Entry, Rows
from cclm.retrieval.segment import OpenSegment, unit, write_segment
from cclm.storage import check_replaceable

logger = logging.getLogger(__name__)

FILES = (MANIFEST_FILE, f"{SEGMENTS}/*/*", "embeddings/*", "embeddings/*/*", ".*")

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
    parts: Sequence[Rows], output: Path | str, model: ModelSource, roots: Sequence[Path] = (), data: str = ""
) -> IndexManifest:
    """Write an index folder; a former one stands until this is complete.

    Errors: ValueError for no rows, NaN or infinity, changing widths, or a folder that holds something else.
    """
    import faiss

    output = Path(output)
    check_replaceable(output, FILES)
    name = f"000001-{uuid.uuid4().hex[:8]}"
    segment = write_segment(parts, output / SEGMENTS / name)
    manifest = IndexManifest(
        dim=parts[0].vectors.shape[1],
        model_path=os.path.relpath(Path(model.path).resolve(), output.resolve()),
        model_sha256=model.sha256,
        created_by=f"faiss {faiss.__version__}",
        segments=[segment],
        next_id=segment.rows,
        roots=[os.path.relpath(root.resolve(), output.resolve()) for root in roots],
        data=data,
    )
    manifest.write(output)
    logger.info("index of %d rows (%s) written to %s", manifest.rows, segment.factory, output)
    return manifest


class ImageIndex:
    """An opened index folder: one version of it, which stays as it is while later ones are written."""

    def __init__(self, folder: Path, manifest: IndexManifest, segments: Sequence[OpenSegment]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.segments = segments

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Errors: FileNotFoundError where a part is missing, ValueError where parts do not belong together."""
        folder = Path(folder)
        manifest = IndexManifest.read(folder)
        segments = [OpenSegment(folder / SEGMENTS / segment.name, segment) for segment in manifest.segments]
        for segment in segments:
            if segment.dim != manifest.dim:
                raise ValueError(
                    f"index {folder}: width is {manifest.dim}, but {segment.dim} in segment {segment.segment.name}; "
                    f"{REBUILD}"
                )
        return cls(folder, manifest, segments)

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
        if k > len(self):
            logger.warning("index %s holds %d images; k %d is cut to that", self.folder, len(self), k)
        nearest = self.nearest(queries, min(k, len(self)) if k > 0 else k, among)
        found = nearest.ids >= 0
        entries = iter(self.entries(nearest.ids[found]))
        return [
            [
                Hit(rank, float(score), int(number), next(entries))
                for rank, (score, number) in enumerate(zip(scores[real], ids[real], strict=True), start=1)
            ]
            for scores, ids, real in zip(nearest.scores, nearest.ids, found, strict=True)
        ]

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
            located.append((segment, places, rows[places]))
            missing[places] = False
        if missing.any():
            raise KeyError(int(ids[missing][0]))
        return located
