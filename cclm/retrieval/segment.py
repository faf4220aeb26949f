"""Segments: rows that were indexed together, written once, opened and searched.

Shapes: N rows, Q queries, E embedding, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cclm.errors import first_line
from cclm.retrieval.manifest import INDEX_FILE, METADATA_FILE, REBUILD, VECTORS_FILE, Segment
from cclm.retrieval.metadata import Metadata, MetadataWriter, Rows
from cclm.storage import file_hash, whole_folder

if TYPE_CHECKING:
    import faiss


def write_segment(parts: Sequence[Rows], folder: Path, first_id: int = 0) -> Segment:
    """Index the rows of `parts` in a new segment folder; their ids count from `first_id` where they have none.

    Vectors are scaled to unit norm. Errors: ValueError for no rows, NaN, infinity or zeros, changing widths.
    """
    import faiss

    with whole_folder(folder) as path:
        writer, vectors = MetadataWriter(path / METADATA_FILE, first_id), []
        try:
            for rows in parts:
                vectors.append(unit(rows.vectors, f"embeddings from row {sum(map(len, vectors))} on"))
                if vectors[-1].shape[1] != vectors[0].shape[1]:
                    raise ValueError(
                        f"embedding width changes from {vectors[0].shape[1]} to {vectors[-1].shape[1]} on the way"
                    )
                writer.write(rows.entries)
        finally:
            writer.close()
        if not sum(map(len, vectors)):
            raise ValueError("no pictures to index: the source is empty")
        joined = np.concatenate(vectors)
        index = faiss.IndexFlatIP(joined.shape[1])
        index.add(joined)
        faiss.write_index(index, str(path / INDEX_FILE))
        files = {file.name: file_hash(file) for file in sorted(path.iterdir())}
        size = (path / INDEX_FILE).stat().st_size
    return Segment(folder.name, len(joined), "Flat", "", size / len(joined), files)


def unit(vectors: np.ndarray, name: str) -> np.ndarray:
    """The vectors (N, E) as float32 of unit norm. Errors: ValueError for NaN, infinity, zeros or another shape."""
    if vectors.ndim != 2:
        raise ValueError(f"{name}: shape is {vectors.shape}, expected (rows, width)")
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    broken = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(broken):
        raise ValueError(
            f"{name}: {len(broken)} hold NaN, infinity or only zeros (first: {broken[0]}); check the model"
        )
    return np.ascontiguousarray(vectors / norms)


class OpenSegment:
    """A segment that can be searched. Opening verifies that its files are those written, before they are parsed."""

    def __init__(self, folder: Path, segment: Segment) -> None:
        """Errors: FileNotFoundError where a file is missing, ValueError where one is not what the manifest says."""
        import faiss

        self.folder, self.segment = folder, segment
        for name, expected in segment.files.items():
            _check_file(folder / name, expected)
        self._index = _read(folder / INDEX_FILE)
        self.metadata = Metadata(folder / METADATA_FILE)
        sizes = {"manifest.json": segment.rows, INDEX_FILE: self._index.ntotal, METADATA_FILE: len(self.metadata)}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {rows} rows" for name, rows in sizes.items())
            raise ValueError(f"segment {folder}: its files do not belong together ({listed}); {REBUILD}")
        try:
            faiss.ParameterSpace().set_index_parameters(self._index, segment.search)
        except RuntimeError as error:
            raise ValueError(f"segment {folder}: search parameters {segment.search!r} do not fit; {REBUILD}") from error
        self.live: np.ndarray | None = None  # (N,) bool; None where nothing is deleted
        if segment.deletions:
            packed = np.load(folder / segment.deletions, allow_pickle=False)
            self.live = ~np.unpackbits(packed, count=segment.rows, bitorder="little").astype(bool)

    @property
    def dim(self) -> int:
        return self._index.d

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) float32 and rows (Q, k) int64 of the nearest, best first; row -1 where there are no more.

        `allowed`: (N,) bool, the rows to search among; deleted ones are never found.
        """
        import faiss

        chosen = self.live if allowed is None else allowed if self.live is None else allowed & self.live
        if chosen is None:
            return self._index.search(queries, k)
        bits = np.packbits(chosen, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        parameters = faiss.SearchParameters(sel=selector)
        return self._index.search(queries, k, params=parameters)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings (R, E) float32 of these rows."""
        if VECTORS_FILE in self.segment.files:
            stored = np.load(self.folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
            return unit(stored[rows], "stored vectors")
        return np.stack([self._index.reconstruct(int(row)) for row in rows])


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {REBUILD}")
    found = file_hash(path)
    if found != expected:
        raise ValueError(
            f"{path} was changed or cut off after it was written "
            f"(sha256 {found[:12]}, manifest.json says {expected[:12]}); {REBUILD}"
        )


def _read(path: Path) -> faiss.Index:
    """Read a FAISS file within the bounds that its size allows: no header may ask for more memory than it can hold.

    The limits belong to the process, not to the call; they are set back afterwards.
    """
    import faiss

    size = path.stat().st_size
    names = ("deserialization_vector_byte_limit", "deserialization_loop_limit")
    before = {name: getattr(faiss, f"get_{name}")() for name in names}
    try:
        faiss.set_deserialization_vector_byte_limit(size + 1)
        faiss.set_deserialization_loop_limit(max(1024, size // 8))  # a list takes 8 bytes in the file at the least
        return faiss.read_index(str(path))
    except RuntimeError as error:
        reason = first_line(error)[:200]
        raise ValueError(f"{path} is no readable FAISS index ({reason}); {REBUILD}") from error
    finally:
        for name, value in before.items():
            getattr(faiss, f"set_{name}")(value)
