"""Embeddings as clip-retrieval lays them out, which autofaiss and the readers of that layout take as they are: reading.

img_emb/img_emb_0.npy        (rows, E) float16 or float32, of unit norm
text_emb/text_emb_0.npy      (rows, E), where texts were embedded
metadata/metadata_0.parquet  image_path, caption, language; then what an index notes of a picture
parts/0.json                 written last: what part 0 was made of, and checksums of its files
manifest.json                when all parts are there: the model, the pictures' folder, what was left out
Row i of the first three is of one picture and one caption. Parts are numbered from 0, all numbers of one width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cclm.errors import first_line
from cclm.retrieval.metadata import ENTRY_SCHEMA, Entry, Rows, table_of
from cclm.storage import file_hash, whole_file

MANIFEST, PARTS = "manifest.json", "parts"
IMAGES, TEXTS, METADATA = "img_emb", "text_emb", "metadata"
METADATA_SCHEMA = pa.schema([*((name, pa.string()) for name in ("image_path", "caption", "language")), *ENTRY_SCHEMA])
DTYPES = ("float16", "float32")
SCHEMA_VERSION = 1
AGAIN = "embed again with `cclm embed`"


@dataclass(frozen=True)
class EmbeddingsManifest:
    """What a finished folder holds. Paths are relative to it, so that all can be moved together."""

    model_path: str
    model_sha256: str
    dim: int
    dtype: str
    rows: int
    pictures: int
    parts: int
    root: str  # what the paths in the metadata begin at
    source: list[str]  # as it was given
    keys: str  # "sample": as the shards have them; "shard/sample": they came twice, the shard's path tells them apart
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> pictures left out
    normalised: bool = True
    schema_version: int = SCHEMA_VERSION

    def write(self, folder: Path) -> None:
        with whole_file(folder / MANIFEST) as path:
            path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Errors: ValueError for a file of another kind."""
        path = folder / MANIFEST
        try:
            stored = json.loads(path.read_bytes())
            wrong = set(stored) ^ {f.name for f in fields(cls)}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not readable as JSON ({first_line(error)}); {AGAIN}") from None
        if wrong:
            raise ValueError(f"{path}: fields missing or unknown: {', '.join(sorted(wrong))}; {AGAIN}")
        if stored["schema_version"] != SCHEMA_VERSION:
            found = stored["schema_version"]
            raise ValueError(f"{path} has schema_version {found}, this cclm reads {SCHEMA_VERSION}; {AGAIN}")
        return cls(**stored)


@dataclass(frozen=True)
class Receipt:
    """`parts/N.json`: what a part was made of and what came out."""

    source: str
    fingerprint: str  # of the files that it was made of
    settings: dict[str, Any]  # what else decides its content
    rows: int
    pictures: int
    dim: int
    skipped: dict[str, int]  # reason -> pictures left out
    files: dict[str, str]  # kind -> SHA-256

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None for what is no receipt: that part is to be made again."""
        try:
            stored = json.loads(path.read_bytes())
            return cls(**stored) if set(stored) == {f.name for f in fields(cls)} else None
        except (ValueError, TypeError):
            return None


def part_files(folder: Path, label: str, texts: bool) -> dict[str, Path]:
    """Kind -> file of the part with this number."""
    kinds = {IMAGES: "npy", **({TEXTS: "npy"} if texts else {}), METADATA: "parquet"}
    return {kind: folder / kind / f"{kind}_{label}.{suffix}" for kind, suffix in kinds.items()}


@dataclass(frozen=True)
class _Part:
    images: Path
    metadata: Path
    rows: int
    dim: int


class Embeddings(Sequence[Rows]):
    """An embeddings folder, one `Rows` for each part: a row for each picture, whatever the number of its captions.

    Vectors are memory-mapped where each row is a picture. A folder of clip-retrieval's has no manifest: whoever
    indexes it must name the model.
    """

    def __init__(
        self, folder: Path, manifest: EmbeddingsManifest | None, parts: list[_Part], root: Path | None
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.root = root  # folder of the pictures, None where it is not known
        self.key_prefix = ""  # that all keys are given
        self._parts = parts
        self._checked: set[Path] = set()

    @classmethod
    def open(cls, folder: Path | str, root: Path | str | None = None) -> Self:
        """`root`: the pictures' folder, where they have moved or there is no manifest.

        Every file's header is held against its size and its neighbour's rows; where there is a manifest, a part's files
        are held against its receipt before they are used. Errors: FileNotFoundError, ValueError.
        """
        folder = Path(folder)
        manifest = EmbeddingsManifest.read(folder) if (folder / MANIFEST).is_file() else None
        if manifest is None and (folder / PARTS).is_dir():
            raise ValueError(f"embeddings {folder} are not finished; run the same `cclm embed` again, it goes on")
        files = sorted((folder / IMAGES).glob(f"{IMAGES}_*.npy"))
        if not files:
            raise FileNotFoundError(f"no {IMAGES}/{IMAGES}_*.npy in {folder}; {AGAIN}")
        parts = [_check_part(folder, path.stem.removeprefix(f"{IMAGES}_")) for path in files]
        if len(widths := {part.dim for part in parts if part.rows}) > 1:
            raise ValueError(f"embeddings {folder}: parts are of widths {sorted(widths)}, not of one model; {AGAIN}")
        found = (len(parts), sum(part.rows for part in parts))
        if manifest is not None and found != (manifest.parts, manifest.rows):
            raise ValueError(
                f"embeddings {folder}: {found[0]} parts of {found[1]} rows are there, {MANIFEST} says "
                f"{manifest.parts} of {manifest.rows}; {AGAIN}"
            )
        if root is None and manifest is not None:
            root = os.path.normpath(folder.resolve() / manifest.root)
        return cls(folder, manifest, parts, None if root is None else Path(root))

    @property
    def rows(self) -> int:
        """Of all parts; with texts, one for each caption."""
        return sum(part.rows for part in self._parts)

    @property
    def dim(self) -> int:
        return max((part.dim for part in self._parts if part.rows), default=0)

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Rows: ...

    @overload
    def __getitem__(self, index: slice) -> list[Rows]: ...

    def __getitem__(self, index: int | slice) -> Rows | list[Rows]:
        """Errors: ValueError for vectors that are not finite, or files that are not as they were written."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        part = self._parts[index]
        self._check_receipt(part)
        vectors = _vectors(part)
        try:
            table = pq.ParquetFile(part.metadata).read()
            entries = self._own_entries(table) if self.manifest is not None else self._foreign_entries(part, table)
        except (pa.ArrowException, KeyError, TypeError, OverflowError, UnicodeError) as error:
            raise ValueError(f"{part.metadata} is no metadata of pictures ({first_line(error)}); {AGAIN}") from None
        if self.key_prefix:
            keys = pc.binary_join_element_wise(self.key_prefix, entries["key"], "")
            entries = _with_keys(entries, keys)
        keys = entries["key"].combine_chunks()
        first = np.zeros(len(keys), bool)
        first[:1] = True
        if len(keys):  # as in `Outline`, without pandas
            first[1:][np.from_dlpack(pc.indices_nonzero(pc.not_equal(keys[1:], keys[:-1])))] = True
        return Rows(entries, vectors) if first.all() else Rows(entries.filter(pa.array(first)), vectors[first])

    def _own_entries(self, table: pa.Table) -> pa.Table:
        assert self.manifest is not None
        entries = table.select(ENTRY_SCHEMA.names).cast(ENTRY_SCHEMA)
        if self.manifest.keys == "sample":
            return entries
        shards = pc.replace_substring_regex(entries["path"], r"\.tar$", "")
        keys = pc.binary_join_element_wise(shards, entries["key"], "/")
        return _with_keys(entries, keys)

    def _check_receipt(self, part: _Part) -> None:
        if self.manifest is None or part.images in self._checked:
            return
        label = part.images.stem.removeprefix(f"{IMAGES}_")
        path = self.folder / PARTS / f"{label}.json"
        receipt = Receipt.read(path) if path.is_file() else None
        if receipt is None:
            raise ValueError(f"{path}, which tells what part {label} consists of, is missing or damaged; {AGAIN}")
        for kind, file in part_files(self.folder, label, texts=False).items():
            if file_hash(file) != receipt.files.get(kind):
                raise ValueError(f"{file} was changed after it was written, or is of another part; {AGAIN}")
        self._checked.add(part.images)

    def _foreign_entries(self, part: _Part, table: pa.Table) -> pa.Table:
        names = [name for name in ("image_path", "key", "caption", "language", "width", "height", "sha256")
                 if name in table.column_names]  # fmt: skip
        rows = table.select(names).to_pylist()
        return table_of([self._foreign_entry(row, f"{part.images.stem}/{place}") for place, row in enumerate(rows)])

    def _foreign_entry(self, row: dict[str, object], name: str) -> Entry:
        """What clip-retrieval notes of a picture; its path counts where it is below the root."""
        path, caption = row.get("image_path"), row.get("caption")
        below = None
        if self.root is not None and path:
            below = os.path.relpath(os.path.join(self.root, str(path)), self.root)
            below = None if below.startswith("..") else PurePosixPath(below).as_posix()
        return Entry(
            key=str(path or row.get("key") or name),
            captions={str(row.get("language") or "en"): [str(caption)]} if caption else {},
            path=below,
            width=row.get("width"),
            height=row.get("height"),
            sha256=row.get("sha256"),
        )


def _with_keys(entries: pa.Table, keys: pa.ChunkedArray) -> pa.Table:
    return entries.set_column(entries.schema.get_field_index("key"), ENTRY_SCHEMA.field("key"), keys)


def _check_part(folder: Path, label: str) -> _Part:
    """Errors: FileNotFoundError, ValueError naming the file."""
    files = part_files(folder, label, texts=False)
    rows, dim = check_array(files[IMAGES])
    if not files[METADATA].is_file():
        raise FileNotFoundError(f"{files[METADATA]} is missing beside {files[IMAGES].name}; {AGAIN}")
    try:
        described = pq.read_metadata(files[METADATA]).num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{files[METADATA]} is no readable parquet file ({first_line(error)}); {AGAIN}") from None
    if described != rows:
        raise ValueError(f"{files[METADATA]} has {described} rows, {files[IMAGES].name} has {rows}; {AGAIN}")
    return _Part(files[IMAGES], files[METADATA], rows, dim)


def check_array(path: Path) -> tuple[int, int]:
    """Rows and width of an npy file of embeddings, by its header, held against the file's size; nothing is unpickled.

    Errors: ValueError for objects, other types or shapes, and a size that is another than the header's.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as handle:
            version = np.lib.format.read_magic(handle)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"npy version {version}")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(handle)
            start = handle.tell()
    except Exception as error:  # a header is parsed as Python's literals: SyntaxError, MemoryError, ..
        raise ValueError(f"{path} is no readable npy file ({first_line(error)[:200]}); {AGAIN}") from None
    if dtype not in (np.dtype("<f2"), np.dtype("<f4")):
        raise ValueError(f"{path} holds {dtype}, expected float16 or float32; {AGAIN}")
    if len(shape) != 2 or fortran or shape[0] < 0 or shape[1] < 1:
        raise ValueError(f"{path} has shape {shape}, expected (rows, width) in C order; {AGAIN}")
    if start + shape[0] * shape[1] * dtype.itemsize != size:
        raise ValueError(f"{path} claims {shape[0]} x {shape[1]} {dtype}, but has {size} bytes; {AGAIN}")
    return shape


def _vectors(part: _Part) -> np.ndarray:
    """(N, E), memory-mapped. Errors: ValueError for NaN or infinity."""
    vectors = np.load(part.images, mmap_mode="r" if part.rows else None, allow_pickle=False)
    for start in range(0, len(vectors), 65536):
        if not np.isfinite(vectors[start : start + 65536]).all():
            raise ValueError(f"{part.images}: NaN or infinity from row {start} on; {AGAIN} with a sound model")
    return vectors
