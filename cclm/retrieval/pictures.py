"""The bytes of indexed pictures, from declared folders only: what an entry says of its place is not trusted."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from cclm.errors import SampleError
from cclm.images import open_image
from cclm.retrieval.metadata import Entry

PICTURE_BYTES = 64 * 2**20  # a 64 megapixel jpeg is about half of this
_STARTS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"RIFF": "image/webp"}


class Pictures:
    """Reads pictures under `roots`, the folders that entries number by their `root`.

    A path that is absolute, has `..` in it, or leads out of its root by a symbolic link is refused, whatever it names;
    so is all that is no regular file, all that does not begin as a jpeg, png or webp does, and a picture that is not
    the one that was indexed, by its SHA-256 where the entry has it.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = [Path(root) for root in roots]

    def read(self, entry: Entry) -> bytes:
        """The picture's file, or the part of a tar that holds it. Errors: SampleError."""
        descriptor = self._descriptor(entry)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise SampleError("picture is no regular file")
            offset, size = (0, facts.st_size) if entry.offset is None else (entry.offset, entry.size or 0)
            if size > PICTURE_BYTES:
                raise SampleError(f"picture over {PICTURE_BYTES >> 20} MiB")
            if offset < 0 or size <= 0 or offset + size > facts.st_size:
                raise SampleError("picture reaches beyond its file")
            data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise SampleError("picture's file not readable") from error
        finally:
            os.close(descriptor)
        media_type(data)
        if entry.sha256 and hashlib.sha256(data).hexdigest() != entry.sha256:
            raise SampleError("picture is another one than was indexed")
        return data

    def open(self, entry: Entry, size: int | None = None) -> Image.Image:
        """The picture in RGB, decoded near `size` where that is enough (`open_image`). Errors: SampleError."""
        return open_image(self.read(entry), size)

    def _descriptor(self, entry: Entry) -> int:
        if entry.path is None:
            raise SampleError("picture's file not known")
        if not 0 <= entry.root < len(self.roots):
            raise SampleError("picture in no declared folder")
        place = PurePosixPath(entry.path)
        if place.is_absolute() or ".." in place.parts or "\0" in entry.path or "\\" in entry.path:
            raise SampleError("picture's path leads out of its folder")
        try:
            root = self.roots[entry.root].resolve(strict=True)
            resolved = root.joinpath(place).resolve(strict=True)
            if not resolved.is_relative_to(root):
                raise SampleError("picture's path leads out of its folder")
            return _open_below(root, resolved.relative_to(root).parts)
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, SampleError):
                raise
            raise SampleError("picture's file missing or not readable") from error


def _open_below(root: Path, parts: Sequence[str]) -> int:
    """Open step by step, following no link: what was resolved may have been replaced by one since. Never waits."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        name = parts[-1] if parts else "."
        return os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)


def media_type(data: bytes) -> str:
    """Told by the first bytes, not by a name. Errors: SampleError for anything but jpeg, png and webp."""
    found = next((kind for start, kind in _STARTS.items() if data.startswith(start)), None)
    if found is None or (found == "image/webp" and data[8:12] != b"WEBP"):
        raise SampleError("picture is no jpeg, png or webp")
    return found
