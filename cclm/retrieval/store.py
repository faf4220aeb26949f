"""What an index folder holds beside the vectors: metadata by row, and a manifest that binds it all to one model.

image.index        FAISS index of the image embeddings
metadata.parquet   row, key, captions {language: [text, ..]}, shard, thumbnail
manifest.json      versions, sizes, SHA-256 of both files and of the model
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from cclm.storage import file_hash, pretrained_hash

SCHEMA_VERSION = 1
INDEX_FILE = "image.index"
METADATA_FILE = "metadata.parquet"
MANIFEST_FILE = "manifest.json"
REBUILD = "build the index again with `cclm index build`"
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("captions", pa.map_(pa.string(), pa.list_(pa.string()))),
        ("shard", pa.string()),
        ("thumbnail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Entry:
    """What is known of one indexed image. `thumbnail` is a path relative to the index folder."""

    key: str
    captions: dict[str, list[str]] = field(default_factory=dict)
    shard: str | None = None
    thumbnail: str | None = None


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
class IndexManifest:
    """`manifest.json`. Queries must be embedded by the model with `model_sha256`."""

    rows: int
    dim: int
    factory: str  # FAISS factory string
    search: str  # FAISS search parameters, "" for none
    model_path: str  # relative to the index folder, so that both can be moved together
    model_sha256: str
    index_sha256: str
    metadata_sha256: str
    created_by: str
    data: str = ""
    dtype: str = "float32"
    metric: str = "inner_product"
    normalised: bool = True
    schema_version: int = SCHEMA_VERSION

    def write(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Errors: FileNotFoundError without an index folder, ValueError for a manifest of another kind."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            what = f"{folder} holds no {MANIFEST_FILE}" if folder.is_dir() else f"no index folder at {folder}"
            raise FileNotFoundError(
                f"{what}; build one with `cclm index build --model M --data SHARDS --output {folder}`"
            )
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            version = stored.get("schema_version")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise ValueError(f"{path} is not readable as JSON ({error}); {REBUILD}") from error
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path} has schema_version {version}, this cclm reads {SCHEMA_VERSION}; {REBUILD}")
        known = {f.name for f in fields(cls)}
        if known != set(stored):
            raise ValueError(f"{path}: fields missing or unknown: {', '.join(sorted(known ^ set(stored)))}; {REBUILD}")
        return cls(**stored)

    def model_folder(self, folder: Path) -> Path:
        """Where the model was when the index was built, seen from where the index is now."""
        return Path(os.path.normpath(folder.resolve() / self.model_path))


def check_files(folder: Path, manifest: IndexManifest) -> None:
    """Compare both files with the manifest before anything parses them.

    Errors: FileNotFoundError for a missing one; ValueError for one that is not the file that was written.
    """
    for name, expected in ((INDEX_FILE, manifest.index_sha256), (METADATA_FILE, manifest.metadata_sha256)):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"index {folder}: {name} is missing; {REBUILD}")
        found = file_hash(path)
        if found != expected:
            raise ValueError(
                f"index {folder}: {name} was changed or cut off after it was written "
                f"(sha256 {found[:12]}, manifest.json says {expected[:12]}); {REBUILD}"
            )


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


class MetadataWriter:
    """Writes entries batch by batch; rows are numbered in the order they come."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self.rows = 0

    def write(self, entries: Sequence[Entry]) -> None:
        columns = {
            "row": range(self.rows, self.rows + len(entries)),
            "key": [entry.key for entry in entries],
            "captions": [list(entry.captions.items()) for entry in entries],
            "shard": [entry.shard for entry in entries],
            "thumbnail": [entry.thumbnail for entry in entries],
        }
        self._writer.write_table(pa.table({n: pa.array(v, SCHEMA.field(n).type) for n, v in columns.items()}, SCHEMA))
        self.rows += len(entries)

    def close(self) -> None:
        self._writer.close()


class Metadata:
    """The entries of an index, looked up by row; they stay in Arrow's columns until asked for."""

    def __init__(self, path: Path) -> None:
        self._table = pq.read_table(path, schema=SCHEMA)

    def __len__(self) -> int:
        return self._table.num_rows

    def entries(self, rows: Iterable[int]) -> list[Entry]:
        """The entries of these rows, in this order."""
        found = self._table.take(pa.array(list(rows), pa.int64())).drop_columns(["row"]).to_pylist()
        return [Entry(**(columns | {"captions": dict(columns["captions"])})) for columns in found]
