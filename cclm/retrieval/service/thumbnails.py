"""Small pictures for the grid: made when they are asked for, the ones asked for last are kept."""

from __future__ import annotations

import io
from collections import OrderedDict
from threading import Lock

from cclm.images import open_image

SIDE = 256  # pixels, the longer one
KEPT_BYTES = 64 * 2**20


def thumbnail(data: bytes) -> bytes:
    """A webp of an encoded picture. Errors: SampleError."""
    image = open_image(data, SIDE)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=80, method=2)
    return file.getvalue()


class Kept:
    """Bytes by key, up to `most` of them together."""

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._most, self._size = most, 0
        self._found: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> bytes | None:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: str, data: bytes) -> None:
        with self._lock:
            self._size += len(data) - len(self._found.pop(key, b""))
            self._found[key] = data
            while self._size > self._most:
                self._size -= len(self._found.popitem(last=False)[1])
