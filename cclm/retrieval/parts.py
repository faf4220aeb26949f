"""Writing an embeddings folder, part by part: a part counts once its receipt is there, and is not computed again."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from cclm.retrieval.embeddings import (
    DTYPES,
    IMAGES,
    MANIFEST,
    METADATA,
    METADATA_SCHEMA,
    PARTS,
    TEXTS,
    Receipt,
    part_files,
)
from cclm.storage import check_replaceable, file_hash, whole_file

logger = logging.getLogger(__name__)

LOCK = ".lock"
_KINDS = (f"{IMAGES}/{IMAGES}_*.npy", f"{TEXTS}/{TEXTS}_*.npy", f"{METADATA}/{METADATA}_*.parquet", f"{PARTS}/*.json")
_REMAINS = (*(f"{folder}/.*.partial" for folder in (IMAGES, TEXTS, METADATA, PARTS)), f".{MANIFEST}.*.partial")
FILES = (*_KINDS, *_REMAINS, MANIFEST, LOCK)


@dataclass(frozen=True)
class EmbeddedRows:
    """Rows of one part, N of them."""

    metadata: pa.Table  # of METADATA_SCHEMA
    images: np.ndarray  # (N, E)
    texts: np.ndarray | None = None  # (N, E)


@dataclass(frozen=True)
class PartTask:
    """A part to be made: its number, as its files have it, and what it is made of."""

    label: str
    source: str
    fingerprint: str


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One run at a time writes to an embeddings folder. Errors: ValueError where another one does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another `cclm embed` writes to {folder}; wait for it, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()


def check_output(folder: Path | str, dtype: str) -> Path:
    """Before the work. Errors: ValueError for a folder that holds anything but embeddings that `cclm embed` makes."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose {' or '.join(DTYPES)}")
    folder = check_replaceable(folder, FILES)
    if (folder / IMAGES).exists() and not (folder / PARTS).exists():
        raise ValueError(f"output {folder} holds embeddings of another program or version; choose a new folder")
    return folder


def begin(folder: Path, planned: Sequence[PartTask], settings: dict[str, Any]) -> list[int]:
    """Make a folder ready for the planned parts; the places of those that are still to be made.

    Whole parts of the same sources and settings are kept; what is of no planned part is removed, as is a part whose
    files are damaged, or whose sources have changed: it is made again. Errors: ValueError naming a changed setting.
    """
    for kind in (PARTS, IMAGES, METADATA):
        (folder / kind).mkdir(exist_ok=True)
    receipts = {path: Receipt.read(path) for path in sorted((folder / PARTS).glob("*.json"))}
    for receipt in filter(None, receipts.values()):
        _check_settings(folder, receipt.settings, settings)
    width = len(planned[0].label)
    for path in receipts:
        if path.stem.isdigit() and int(path.stem) < len(planned) and len(path.stem) != width:
            _relabel(folder, path.stem, path.stem.lstrip("0").zfill(width))
    labels = {task.label for task in planned}
    todo = [place for place, task in enumerate(planned) if not _is_whole(folder, task)]
    if changed := sum((folder / PARTS / f"{planned[place].label}.json").exists() for place in todo):
        logger.warning("%s: %d part(s) are made again, their files have changed since", folder, changed)
    surplus = [path for kind in _KINDS for path in folder.glob(kind) if path.stem.rpartition("_")[2] not in labels]
    if todo or surplus:
        (folder / MANIFEST).unlink(missing_ok=True)
    for path in [*surplus, *(folder / PARTS / f"{planned[place].label}.json" for place in todo)]:
        path.unlink(missing_ok=True)
    return todo


def remove(folder: Path) -> None:
    """Remove a folder of embeddings that is `locked`, and the one above if it is empty then."""
    shutil.rmtree(folder)
    with suppress(OSError):
        folder.parent.rmdir()


def remove_unused(folders: Iterable[Path]) -> int:
    """Remove those of these folders of embeddings that nobody is writing to; tells how many."""
    count = 0
    for folder in folders:
        with suppress(ValueError), locked(folder):
            remove(folder)
            count += 1
    return count


def remove_remains(folder: Path) -> None:
    """Remove what killed writers have left half written; under the lock, whoever may write there is known."""
    for kind in _REMAINS:
        for path in folder.glob(kind):
            path.unlink(missing_ok=True)


def _check_settings(folder: Path, former: dict[str, Any], settings: dict[str, Any]) -> None:
    changed = [
        f"{name} {former.get(name)!r}, now {settings.get(name)!r}"
        for name in dict.fromkeys([*settings, *former])
        if former.get(name) != settings.get(name)
    ]
    if changed:
        raise ValueError(
            f"embeddings {folder} were begun with {'; '.join(changed)}; go on with the same, choose another folder, "
            "or remove this one to begin anew"
        )


def _relabel(folder: Path, former: str, label: str) -> None:
    """Give a part's files a number of another width, the receipt last: half of it done, it is done again."""
    targets = part_files(folder, label, texts=True)
    for kind, path in part_files(folder, former, texts=True).items():
        if path.exists():
            path.rename(targets[kind])
    (folder / PARTS / f"{former}.json").rename(folder / PARTS / f"{label}.json")


def _is_whole(folder: Path, task: PartTask) -> bool:
    """Whether the part is there, made of the same files, and as it was written."""
    path = folder / PARTS / f"{task.label}.json"
    receipt = Receipt.read(path) if path.is_file() else None
    if receipt is None or receipt.fingerprint != task.fingerprint:
        return False
    files = part_files(folder, task.label, texts=TEXTS in receipt.files)
    return all(file.is_file() and file_hash(file) == receipt.files.get(kind) for kind, file in files.items())


def write_part(
    folder: Path,
    task: PartTask,
    rows: EmbeddedRows,
    settings: dict[str, Any],
    skipped: Counter[str],
) -> Receipt:
    """Write a part's files, each whole, and then its receipt. `settings["dtype"]` is that of the vectors.

    Errors: ValueError for NaN or infinity.
    """
    files = part_files(folder, task.label, texts=rows.texts is not None)
    for kind, values in ((IMAGES, rows.images), (TEXTS, rows.texts)):
        if values is not None:
            _save(files[kind], values.astype(settings["dtype"], copy=False), task.source)
    _write(files[METADATA], lambda path: pq.write_table(rows.metadata.cast(METADATA_SCHEMA), path, compression="zstd"))
    pictures = len(set(zip(rows.metadata["path"].to_pylist(), rows.metadata["key"].to_pylist(), strict=True)))
    receipt = Receipt(
        task.source,
        task.fingerprint,
        settings,
        rows.metadata.num_rows,
        pictures,
        rows.images.shape[1],
        dict(skipped),
        {kind: file_hash(file) for kind, file in files.items()},
    )
    text = json.dumps(asdict(receipt), ensure_ascii=False, indent=1) + "\n"
    _write(folder / PARTS / f"{task.label}.json", lambda path: path.write_text(text, encoding="utf-8"))
    return receipt


def _save(path: Path, values: np.ndarray, source: str) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{path.parent.name} of {source}: there is NaN or infinity in it; check the model")

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as handle:  # np.save appends .npy to a path
            np.save(handle, values)

    _write(path, save)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    with whole_file(path) as temporary:
        write(temporary)


@dataclass(frozen=True)
class Totals:
    """Of all parts of a folder."""

    parts: int
    rows: int
    pictures: int
    dim: int
    skipped: dict[str, int]
    keys_repeat: bool  # one key stands for several pictures


def count(folder: Path, planned: Sequence[PartTask]) -> Totals:
    """What the receipts of a complete folder add up to. Errors: ValueError where nothing was embedded."""
    receipts = [Receipt.read(folder / PARTS / f"{task.label}.json") for task in planned]
    assert all(receipts)
    whole = [receipt for receipt in receipts if receipt is not None]
    skipped: Counter[str] = Counter()
    for receipt in whole:
        skipped.update(receipt.skipped)
    rows, pictures = sum(receipt.rows for receipt in whole), sum(receipt.pictures for receipt in whole)
    if not rows:
        reasons = ", ".join(f"{number} x {reason}" for reason, number in skipped.most_common())
        raise ValueError(f"nothing to embed; left out: {reasons or 'nothing, it is empty'}")
    files = [part_files(folder, task.label, texts=False)[METADATA] for task in planned]
    keys = pa.chunked_array([pq.read_table(path, columns=["key"])["key"].combine_chunks() for path in files])
    distinct = pc.count_distinct(keys).as_py()
    return Totals(len(planned), rows, pictures, whole[0].dim, dict(skipped.most_common()), distinct < pictures)
