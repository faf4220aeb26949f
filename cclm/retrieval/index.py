"""Building, opening and searching an index folder; the only file that imports faiss.

Shapes: Q queries, E embedding, k hits per query.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from torch import Tensor

from cclm.errors import first_line
from cclm.retrieval.store import (
    INDEX_FILE,
    MANIFEST_FILE,
    METADATA_FILE,
    REBUILD,
    Entry,
    IndexManifest,
    Metadata,
    MetadataWriter,
    ModelSource,
    check_files,
    check_model,
)
from cclm.storage import check_replaceable, file_hash, whole_folder

if TYPE_CHECKING:
    import faiss

logger = logging.getLogger(__name__)

EXACT_BELOW = 100_000  # rows; up to here every vector is compared
TRAINING_ROWS_PER_LIST = 64
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Array = Tensor | np.ndarray
EmbeddedEntries = tuple[Sequence[Entry], Array]  # entries and their embeddings (B, E)


@dataclass(frozen=True)
class Hit:
    """One found image. `rank` counts from 1; `score` is the inner product of unit-norm embeddings."""

    rank: int
    score: float
    key: str
    captions: dict[str, list[str]]
    shard: str | None = None
    thumbnail: str | None = None


def query_kind(query: str) -> Literal["image", "text"]:
    """Whether a query is the path of an image file or a text.

    Errors: ValueError for an empty query; FileNotFoundError for what looks like an image path but names no file: a
    typing error, hardly a text.
    """
    if not query.strip():
        raise ValueError("the query is empty; give a text, or the path of an image file")
    path = Path(query)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        if path.suffix and path.is_file():
            raise ValueError(
                f"query {query!r} is a file, but of none of {', '.join(sorted(IMAGE_SUFFIXES))}; convert it"
            )
        return "text"
    if not path.is_file():
        raise FileNotFoundError(f"query {query!r} looks like an image file, but there is none; check the path")
    return "image"


def build_index(
    batches: Iterable[EmbeddedEntries],
    output: Path | str,
    model: ModelSource,
    data: str = "",
    exact_below: int = EXACT_BELOW,
) -> IndexManifest:
    """Write an index folder from batches of entries and embeddings; the former folder stands until it is complete.

    Below `exact_below` rows search is exact (Flat); from there on it is approximate (IVF, an eighth of the lists
    probed). Vectors are scaled to unit norm.
    Errors: ValueError for no rows, NaN or infinity, changing widths, or a folder that holds something else.
    """
    import faiss

    output = Path(output)
    check_replaceable(output, (INDEX_FILE, METADATA_FILE, MANIFEST_FILE))
    with whole_folder(output) as folder:
        vectors = _write_metadata(batches, folder / METADATA_FILE)
        factory, search = plan(len(vectors), exact_below)
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            lists = faiss.extract_index_ivf(index).nlist
            chosen = np.random.default_rng(0).permutation(len(vectors))[: TRAINING_ROWS_PER_LIST * lists]
            index.train(vectors[np.sort(chosen)])
        index.add(vectors)
        faiss.write_index(index, str(folder / INDEX_FILE))
        manifest = IndexManifest(
            rows=len(vectors),
            dim=vectors.shape[1],
            factory=factory,
            search=search,
            model_path=os.path.relpath(Path(model.path).resolve(), output.resolve()),
            model_sha256=model.sha256,
            index_sha256=file_hash(folder / INDEX_FILE),
            metadata_sha256=file_hash(folder / METADATA_FILE),
            created_by=f"faiss {faiss.__version__}",
            data=data,
        )
        manifest.write(folder)
    logger.info("index of %d rows (%s) written to %s", manifest.rows, factory, output)
    return manifest


def plan(rows: int, exact_below: int = EXACT_BELOW) -> tuple[str, str]:
    """FAISS factory string and search parameters for this many rows."""
    if rows < exact_below:
        return "Flat", ""
    lists = 2 ** round(np.log2(4 * np.sqrt(rows)))
    return f"IVF{lists},Flat", f"nprobe={max(1, lists // 8)}"


def _write_metadata(batches: Iterable[EmbeddedEntries], path: Path) -> np.ndarray:
    """Write the entries and return their embeddings (N, E), unit norm."""
    writer, parts = MetadataWriter(path), []
    try:
        for entries, embeddings in batches:
            vectors = _unit(_as_numpy(embeddings), f"embeddings from row {writer.rows}")
            if len(vectors) != len(entries):
                raise ValueError(f"{len(entries)} entries came with {len(vectors)} embeddings; each needs one")
            if parts and vectors.shape[1] != parts[0].shape[1]:
                raise ValueError(f"embedding width changes from {parts[0].shape[1]} to {vectors.shape[1]} on the way")
            writer.write(entries)
            parts.append(vectors)
    finally:
        writer.close()
    if not writer.rows:
        raise ValueError("no images to index: the data is empty; build it with `cclm data build`")
    return np.concatenate(parts)


def _as_numpy(vectors: Array) -> np.ndarray:
    return (vectors.detach().float().cpu().numpy() if isinstance(vectors, Tensor) else np.asarray(vectors)).astype("f4")


def _unit(vectors: np.ndarray, name: str) -> np.ndarray:
    """The vectors (N, E) scaled to unit norm. Errors: ValueError for NaN, infinity or zero."""
    if vectors.ndim != 2:
        raise ValueError(f"{name}: shape is {vectors.shape}, expected (rows, width)")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    broken = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(broken):
        raise ValueError(
            f"{name}: {len(broken)} hold NaN, infinity or only zeros (first: {broken[0]}); check the model"
        )
    return np.ascontiguousarray(vectors / norms)


class ImageIndex:
    """An opened index folder. Opening verifies that its files are the ones written, before they are parsed."""

    def __init__(self, folder: Path, manifest: IndexManifest, index: faiss.Index, metadata: Metadata) -> None:
        self.folder = folder
        self.manifest = manifest
        self._index = index
        self._metadata = metadata

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Errors: FileNotFoundError where a part is missing, ValueError where parts do not belong together."""
        import faiss

        folder = Path(folder)
        manifest = IndexManifest.read(folder)
        check_files(folder, manifest)
        index = _read(folder / INDEX_FILE)
        metadata = Metadata(folder / METADATA_FILE)
        sizes = {"manifest.json": manifest.rows, INDEX_FILE: index.ntotal, METADATA_FILE: len(metadata)}
        if len(set(sizes.values())) > 1 or index.d != manifest.dim:
            listed = ", ".join(f"{name} {rows} rows" for name, rows in sizes.items())
            raise ValueError(
                f"index {folder}: its files do not belong together ({listed}; width {manifest.dim} and {index.d}); "
                f"{REBUILD}"
            )
        try:
            faiss.ParameterSpace().set_index_parameters(index, manifest.search)
        except RuntimeError as error:
            raise ValueError(f"index {folder}: search parameters {manifest.search!r} do not fit; {REBUILD}") from error
        return cls(folder, manifest, index, metadata)

    def __len__(self) -> int:
        return self.manifest.rows

    def model(self, model: Path | str | None = None) -> Path:
        """The model folder to embed queries with, checked against the manifest; `model` names it if it has moved."""
        return check_model(self.folder, self.manifest, model)

    def search(self, queries: Array, k: int = 10) -> list[list[Hit]]:
        """The k nearest images of each query embedding (Q, E), best first; all of them where there are fewer.

        Errors: ValueError for k < 1, another width, or a query that is not finite.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if k > len(self):
            logger.warning("index %s holds %d images; k %d is cut to that", self.folder, len(self), k)
        vectors = _unit(_as_numpy(queries), "query")
        if vectors.shape[1] != self.manifest.dim:
            raise ValueError(
                f"query has width {vectors.shape[1]}, index {self.folder} has {self.manifest.dim}: "
                "they are not of one model; embed with the model of the index or build the index again"
            )
        scores, rows = self._index.search(vectors, min(k, len(self)))
        return [self._hits(*found) for found in zip(scores, rows, strict=True)]

    def _hits(self, scores: np.ndarray, rows: np.ndarray) -> list[Hit]:
        # An approximate index pads with -1 where the probed lists hold fewer than k.
        scores, rows = scores[rows >= 0], rows[rows >= 0]
        entries = self._metadata.entries(rows.tolist())
        return [
            Hit(rank, float(score), entry.key, entry.captions, entry.shard, entry.thumbnail)
            for rank, (score, entry) in enumerate(zip(scores, entries, strict=True), start=1)
        ]


def search(folder: Path | str, query: Array, k: int = 10) -> list[Hit]:
    """Open an index folder and search it with one query embedding (E,)."""
    return ImageIndex.open(folder).search(_as_numpy(query).reshape(1, -1), k)[0]


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
