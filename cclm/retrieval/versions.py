"""Versions of an index folder: one writer at a time, a change that is there as a whole or not at all, no remains."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from cclm.errors import first_line
from cclm.retrieval.manifest import MANIFEST_FILE, REBUILD, SEGMENTS, IndexManifest, Segment
from cclm.storage import file_hash, sync_folder, whole_file

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


@contextmanager
def writing(folder: Path, patience: float = 5.0) -> Iterator[None]:
    """Be the only process that changes this folder; another is waited for `patience` seconds.

    A folder that was made for this, and in which no index came to be, is removed. Errors: ValueError, one line, where
    the other does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise ValueError(f"index {folder} is being changed by another process; try again when that is done") from None
    try:
        yield
    finally:
        if not (folder / MANIFEST_FILE).exists():
            with suppress(OSError):  # something else is in it
                (folder / SEGMENTS).rmdir()
            if {path.name for path in folder.iterdir()} == {LOCK_FILE}:
                (folder / LOCK_FILE).unlink()
                folder.rmdir()
        lock.release()


def new_segment(folder: Path, version: int) -> Path:
    """A segment's folder that none has had: readers of a former version may still open that one's."""
    return folder / SEGMENTS / f"{version:06}-{uuid.uuid4().hex[:8]}"


def commit(folder: Path, manifest: IndexManifest, former: IndexManifest | None) -> None:
    """Make `manifest` the state of the index. Its files must be there, fsynced; those that neither it nor `former`
    names are removed afterwards. Only while `writing`.
    """
    (folder / SEGMENTS).mkdir(exist_ok=True)
    sync_folder(folder / SEGMENTS)
    sync_folder(folder)
    if former is None:
        sync_folder(folder.resolve().parent)
    manifest.write(folder)
    _sweep(folder, [manifest] if former is None else [manifest, former])


def _sweep(folder: Path, manifests: Sequence[IndexManifest]) -> None:
    named: dict[str, set[str]] = {}
    for segment in (segment for manifest in manifests for segment in manifest.segments):
        named.setdefault(segment.name, set()).update(segment.files)
    try:
        for path in folder.glob(f".{MANIFEST_FILE}.*"):  # of a writer that was killed
            path.unlink()
        for path in (folder / SEGMENTS).iterdir():
            if path.name not in named:
                shutil.rmtree(path)
                continue
            for file in path.iterdir():
                if file.name not in named[path.name]:
                    file.unlink()
    except OSError as error:  # the change is made; the next one tries again
        logger.warning("index %s: a file that is no longer needed stays (%s)", folder, first_line(error))


def with_deletions(folder: Path, segment: Segment, live: np.ndarray, version: int) -> Segment:
    """The segment as of `version`, in which the rows where `live` (N,) is False are deleted. Writes the file."""
    name = f"deleted-{version}.npy"
    path = folder / SEGMENTS / segment.name / name
    with whole_file(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, np.packbits(~live, bitorder="little"), allow_pickle=False)
    files = {file: digest for file, digest in segment.files.items() if file != segment.deletions}
    return replace(segment, deleted=int((~live).sum()), deletions=name, files=files | {name: file_hash(path)})


def read_live(folder: Path, segment: Segment) -> np.ndarray | None:
    """Which rows (N,) bool of a segment are not deleted; None where all are there.

    Errors: FileNotFoundError where the file is gone; ValueError, one line, where it is none of ours.
    """
    if not segment.deletions:
        return None
    path = folder / SEGMENTS / segment.name / segment.deletions
    try:
        if file_hash(path) != segment.files[segment.deletions]:
            raise ValueError("it was changed or cut off after it was written")
        packed = np.load(path, mmap_mode="r", allow_pickle=False)  # of a header that asks for too much, nothing is read
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; {REBUILD}") from None
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no readable array ({first_line(error)[:200]}); {REBUILD}") from error
    if packed.dtype != np.uint8 or packed.shape != ((segment.rows + 7) // 8,):
        raise ValueError(f"{path}: {packed.dtype} of shape {packed.shape} for {segment.rows} rows; {REBUILD}")
    live = ~np.unpackbits(packed, count=segment.rows, bitorder="little").astype(bool)
    if int((~live).sum()) != segment.deleted:
        raise ValueError(f"{path} deletes {int((~live).sum())} rows, the manifest says {segment.deleted}; {REBUILD}")
    return live
