"""The state of an index folder, in one file: which segments make it up, and the model that it is bound to.

manifest.json                   this version of the index; the rename that puts it there is what makes a change
segments/NAME/image.index       FAISS index of the embeddings; like the next two it never changes once written
segments/NAME/metadata.parquet  id, key, captions, place, size, date of each row
segments/NAME/vectors.npy       (N, E) float16, where image.index does not hold them exactly
segments/NAME/deleted-V.npy     rows that are deleted as of version V: one bit each, the lowest first
unfinished/WORK-HASH/           embeddings of pictures that a command is to index; gone once they are
embeddings/                     of all pictures, where they were to be kept
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from cclm.errors import first_line
from cclm.storage import pretrained_hash, whole_file

SCHEMA_VERSION = 2
MANIFEST_FILE = "manifest.json"
INDEX_FILE, METADATA_FILE, VECTORS_FILE = "image.index", "metadata.parquet", "vectors.npy"
SEGMENTS, EMBEDDINGS, UNFINISHED = "segments", "embeddings", "unfinished"
REBUILD = "build the index again with `cclm index build`"


@dataclass(frozen=True)
class ModelSource:
    """The model that the embeddings come from."""

    path: str
    sha256: str

    @classmethod
    def of(cls, folder: Path | str) -> Self:
        """Errors: FileNotFoundError where the folder is missing or holds no weights."""
        folder = Path(folder)
        if not any(folder.glob("*.safetensors")):
            what = "no *.safetensors in" if folder.is_dir() else "no pretrained folder at"
            raise FileNotFoundError(f"{what} {folder}; give one that `cclm fit` has written")
        return cls(str(folder), pretrained_hash(folder))


@dataclass(frozen=True)
class Measured:
    """What search in a segment was found to reach: against exact search, with that segment's search parameters."""

    recall: float  # of the 10 nearest, 0 to 1
    queries: int
    latency_ms: float  # median of one query at a time
    queries_per_s: float  # of all of them at once
    origin: str = "pictures, each without itself"  # of the queries; or texts


@dataclass(frozen=True)
class Segment:
    """Rows that were indexed together."""

    name: str
    rows: int  # deleted ones included
    factory: str  # FAISS factory string
    search: str  # FAISS search parameters, "" for none
    bytes_per_vector: float  # of image.index
    files: dict[str, str]  # name -> SHA-256; all that the segment consists of
    deleted: int = 0  # rows
    deletions: str = ""  # which of the files tells the deleted rows, "" for none
    measured: Measured | None = None


@dataclass(frozen=True)
class IndexManifest:
    """`manifest.json`. Queries must be embedded by the model with `model_sha256`."""

    dim: int
    model_path: str  # relative to the index folder, so that both can be moved together
    model_sha256: str
    created_by: str
    segments: list[Segment] = field(default_factory=list)
    version: int = 1  # counts changes
    next_id: int = 0  # of the next row; ids are never used twice
    roots: list[str] = field(default_factory=list)  # folders of the pictures, relative to the index folder
    data: str = ""  # what was indexed, in the user's words
    budget: dict[str, Any] = field(default_factory=dict)  # what was asked of the first build
    dtype: str = "float32"
    metric: str = "inner_product"
    normalised: bool = True
    schema_version: int = SCHEMA_VERSION

    @property
    def rows(self) -> int:
        """Pictures that can be found."""
        return sum(segment.rows - segment.deleted for segment in self.segments)

    def write(self, folder: Path) -> None:
        """Make this the state of the index: from the rename on, whoever opens the folder sees it."""
        with whole_file(folder / MANIFEST_FILE) as path:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Errors: FileNotFoundError without an index folder, ValueError for a manifest of another kind."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            what = f"{folder} holds no {MANIFEST_FILE}" if folder.is_dir() else f"no index folder at {folder}"
            raise FileNotFoundError(
                f"{what}; build one with `cclm index build --model M --source PICTURES --output {folder}`"
            )
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            version = stored.get("schema_version")
        except (ValueError, RecursionError, AttributeError) as error:
            raise ValueError(f"{path} is not readable as JSON ({first_line(error)}); {REBUILD}") from error
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path} has schema_version {version}, this cclm reads {SCHEMA_VERSION}; {REBUILD}")
        try:
            checked = _checked(cls, stored)
            manifest = cls(**(checked | {"segments": [_segment(given) for given in checked["segments"]]}))
            manifest._check()
        except ValueError as error:
            raise ValueError(f"{path} is not as it was written: {error}; {REBUILD}") from error
        return manifest

    def _check(self) -> None:
        names = [segment.name for segment in self.segments]
        rows = sum(segment.rows for segment in self.segments)
        told = (self.dtype, self.metric, self.normalised)
        if told != ("float32", "inner_product", True):
            raise ValueError(f"it tells of {told}, this cclm knows float32, inner_product, normalised")
        if not 0 < self.dim < 2**16 or not 0 < self.version < 2**53 or not rows <= self.next_id < 2**53:
            raise ValueError(f"dim {self.dim}, version {self.version}, next_id {self.next_id} for {rows} rows")
        if len(set(names)) < len(names):
            raise ValueError("a segment is named twice")

    def model_folder(self, folder: Path) -> Path:
        """Where the model was when the index was built, seen from where the index is now."""
        return Path(os.path.normpath(folder.resolve() / self.model_path))

    def root_folders(self, folder: Path) -> list[Path]:
        """Where the pictures were when they were indexed, seen from where the index is now."""
        return [Path(os.path.normpath(folder.resolve() / root)) for root in self.roots]


def _segment(given: Any) -> Segment:
    if not isinstance(given, dict):
        raise ValueError("a segment is no object")
    measured = given.get("measured")
    if measured is not None:
        given = given | {"measured": Measured(**_checked(Measured, measured))}
    segment = Segment(**_checked(Segment, given))
    for name in (segment.name, *segment.files):
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise ValueError(f"{name[:40]!r} is no plain name")
    missing = {INDEX_FILE, METADATA_FILE, segment.deletions or INDEX_FILE} - set(segment.files)
    if missing:
        raise ValueError(f"segment {segment.name} lacks {', '.join(sorted(missing))}")
    if segment.deleted > segment.rows or not segment.rows or bool(segment.deleted) != bool(segment.deletions):
        raise ValueError(f"segment {segment.name} has {segment.deleted} of {segment.rows} rows deleted")
    return segment


_KINDS: dict[str, Callable[[Any], bool]] = {  # by annotation
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: type(value) is int and 0 <= value < 2**63,
    "float": lambda value: type(value) in (int, float) and math.isfinite(value) and value >= 0,
    "list[str]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "dict[str, str]": lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values()),
    "dict[str, Any]": lambda value: isinstance(value, dict),
    "list[Segment]": lambda value: isinstance(value, list),  # each is checked by itself
    "Measured | None": lambda value: value is None or isinstance(value, Measured),
}


def _checked(kind: type, given: Any) -> dict[str, Any]:
    """The fields of this dataclass, each of its type. Errors: ValueError that names those that are not."""
    if not isinstance(given, dict):
        raise ValueError(f"{kind.__name__.lower()} is no object")
    annotations = {f.name: str(f.type) for f in fields(kind)}
    if set(annotations) != set(given):
        raise ValueError(f"fields missing or unknown: {', '.join(sorted(set(annotations) ^ set(given)))}")
    for name, annotation in annotations.items():
        if not _KINDS[annotation](given[name]):
            raise ValueError(f"{name} is {str(given[name])[:40]!r}, expected {annotation}")
    return given


def check_model(folder: Path, manifest: IndexManifest, model: Path | str | None = None) -> Path:
    """The folder of the model that this index belongs to: `model` if given, else the one noted at build time.

    Errors: FileNotFoundError where it is missing; ValueError where its files are not those the index was built with.
    """
    chosen = Path(model) if model is not None else manifest.model_folder(folder)
    if not chosen.is_dir():
        raise FileNotFoundError(f"index {folder}: no model at {chosen}; name the folder it was built with by --model")
    found = pretrained_hash(chosen)
    if found != manifest.model_sha256:
        raise ValueError(
            f"index {folder} and model {chosen} do not belong together: the index was built with a model of "
            f"sha256 {manifest.model_sha256[:12]}, this one has {found[:12]}; {REBUILD} or name that model by --model"
        )
    return chosen
