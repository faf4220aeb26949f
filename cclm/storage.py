"""Files that are whole or absent: temporary name, fsync, rename. And their checksums."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

CHOICE_FILE = "choice.json"  # tells how a pretrained folder was chosen, by data that may lie anywhere
MODEL_FILES = ("*.safetensors", "*.json", "*.model")  # of a pretrained folder: what makes it the model it is
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """No room for a file; what stood there before still does."""


@contextmanager
def _told_where_full(path: Path) -> Iterator[None]:
    """Writers say it in their own ways, torch not at all: whatever failed for want of room becomes one message."""
    try:
        yield
    except Exception as error:
        silent = not isinstance(error, OSError) or error.errno is None
        if _is_full(error) or (silent and shutil.disk_usage(path.parent).free < 2**16):
            raise DiskFullError(f"disk full while writing {path}: free some space or write elsewhere") from error
        raise


def _is_full(error: BaseException) -> bool:
    if isinstance(error, DiskFullError) or getattr(error, "errno", None) in _FULL:
        return True
    if any(f"(os error {number})" in str(error) for number in _FULL):  # as libraries in Rust put it
        return True
    return error.__context__ is not None and _is_full(error.__context__)


def check_replaceable(path: Path | str, kinds: Collection[str]) -> Path:
    """Refuse, before the work, to replace anything but a folder of nothing but our own files.

    `kinds`: patterns of the files, relative to the folder, that whoever writes there writes; `*` crosses no `/`.
    Errors: ValueError for a file, a folder that holds anything else (names it), and where nothing can be written.
    """
    path = Path(path)
    if not path.name:
        raise ValueError(f"output {path} is the current folder; name a new one")
    if path.exists() and not path.is_dir():
        raise ValueError(f"output {path} is a file; choose a new or empty folder")
    for file in sorted(path.rglob("*")) if path.is_dir() else ():
        name = file.relative_to(path).as_posix()
        if not file.is_dir() and not any(_matches(name, kind) for kind in kinds):
            raise ValueError(f"output {path} holds {name}, which is not replaced; choose a new or empty folder")
    return check_writable(path)


def check_writable(path: Path) -> Path:
    """Before the work. Errors: ValueError where nothing can be written beside `path`."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"output {path} cannot be written: {above} is no folder that you may write to; choose another")
    return path


def _matches(name: str, kind: str) -> bool:
    parts, patterns = name.split("/"), kind.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def sync_folder(folder: Path) -> None:
    """Have the names of its files survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over it, else removed.

    Errors: DiskFullError; whatever else the body raises. `path` then keeps its former content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _told_where_full(path):
            yield temporary
            _sync_file(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """Like `whole_file` for a folder: the old one, if any, stands until the new one is complete."""
    path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    retired = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with _told_where_full(path):
            yield temporary
            for file in (temporary, *temporary.rglob("*")):
                if file.is_dir():
                    sync_folder(file)
                elif file.is_file():
                    _sync_file(file)
            if path.exists():
                os.replace(path, retired)
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        if retired.exists() and not path.exists():  # stopped between the two renames
            os.replace(retired, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def remove_remains(folder: Path) -> None:
    """Remove what `whole_file` left in a folder when its process was killed, a minute ago at least: what is no process
    here may be one on another machine, at its writing.
    """
    for file in folder.glob(".*.partial"):
        process = file.name.split(".")[-2]
        try:
            old = file.is_file() and time.time() - file.stat().st_mtime > 60
            if old and process.isdigit() and not _lives(int(process)):
                file.unlink()
        except FileNotFoundError:  # another run was faster
            continue


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user's
        pass
    return True


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def pretrained_hash(path: Path | str, patterns: tuple[str, ...] = MODEL_FILES) -> str:
    """`folder_hash` of what makes a pretrained folder the model it is: equal wherever it, and its data, lie."""
    return folder_hash(path, patterns, without=(CHOICE_FILE,))


def folder_hash(path: Path | str, patterns: tuple[str, ...] = ("*",), without: Collection[str] = ()) -> str:
    """SHA-256 over the names and contents of the files of a folder that match `patterns`, not recursive."""
    digest = hashlib.sha256()
    files = {file for pattern in patterns for file in Path(path).glob(pattern) if file.is_file()}
    files = {file for file in files if file.name not in without}
    for file in sorted(files):
        digest.update(f"{file.name}\0{file_hash(file)}\0".encode())
    return digest.hexdigest()
