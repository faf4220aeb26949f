"""Segments: rows that were indexed together, written once, opened and searched.

Shapes: N rows, Q queries, E embedding, k neighbours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cclm.retrieval.manifest import INDEX_FILE, METADATA_FILE, REBUILD, Segment
from cclm.retrieval.metadata import Metadata
from cclm.retrieval.vectors import Found, Vectors
from cclm.storage import file_hash


class OpenSegment:
    """A segment that can be searched. Opening verifies that its files are those written, before they are parsed.

    A copy may stand for the same rows with other deletions: its files are not read again.
    """

    def __init__(self, folder: Path, segment: Segment, live: np.ndarray | None = None) -> None:
        """`live`: (N,) bool, the rows that are not deleted; None for all.

        Errors: FileNotFoundError where a file is missing, ValueError where one is not what the manifest says.
        """
        self.folder, self.segment, self.live = folder, segment, live
        for name, expected in segment.files.items():
            _check_file(folder / name, expected)
        self._vectors = Vectors(folder, segment.factory, segment.search)
        self.metadata = Metadata(folder / METADATA_FILE)
        sizes = {"manifest.json": segment.rows, INDEX_FILE: len(self._vectors), METADATA_FILE: len(self.metadata)}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {rows} rows" for name, rows in sizes.items())
            raise ValueError(f"segment {folder}: its files do not belong together ({listed}); {REBUILD}")

    @property
    def dim(self) -> int:
        return self._vectors.dim

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """Scores (Q, k) float32 and rows (Q, k) int64 of the nearest, best first; row -1 where there are no more.

        `allowed`: (N,) bool, the rows to search among; deleted ones are never found.
        """
        chosen = self.live if allowed is None else allowed if self.live is None else allowed & self.live
        return self._vectors.search(queries, k, chosen)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings (R, E) float32 of these rows."""
        return self._vectors.take(rows)


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {REBUILD}")
    found = file_hash(path)
    if found != expected:
        raise ValueError(
            f"{path} was changed or cut off after it was written "
            f"(sha256 {found[:12]}, manifest.json says {expected[:12]}); {REBUILD}"
        )
