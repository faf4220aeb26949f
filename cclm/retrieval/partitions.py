"""Inverted files that are built a part at a time, and merged on disk list by list into the file that FAISS would write.

N rows, P parts, L inverted lists.
"""

from __future__ import annotations

import ctypes
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from cclm.retrieval.among import inner_of

if TYPE_CHECKING:
    import faiss

_COPIED = 2**20  # bytes at a time


def ends_in_lists(index: faiss.Index) -> bool:
    """Whether an empty index is an inverted file whose lists FAISS writes one after the other, at the end: such a file
    is merged of parts, and searched where it lies. Lists of fast-scan codes are none.
    """
    import faiss

    base = faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index
    inner = inner_of(base)
    return isinstance(inner, faiss.IndexIVF) and faiss.serialize_index(base).tobytes().endswith(_section(inner, None))


class Partitions:
    """What is added to a trained index; codes and row numbers of former parts lie in a file without a name."""

    def __init__(self, index: faiss.Index, part_rows: int, folder: Path) -> None:
        """`part_rows`: that are held at a time, of an index that `ends_in_lists`; 0: all. `folder`: of that file."""
        self._index, self._part_rows = index, part_rows
        self._spilled = TemporaryFile(dir=folder) if part_rows else None  # noqa: SIM115 - gone however a build ends
        self._rows = 0  # in former parts
        self._sizes: list[np.ndarray] = []  # (L,) rows of each list in each part

    def add(self, block: np.ndarray) -> None:
        """Rows (N, E) float32."""
        if self._part_rows and self._index.ntotal and self._index.ntotal + len(block) > self._part_rows:
            self._spill()
        if self._rows:
            first = self._rows + self._index.ntotal
            self._index.add_with_ids(block, np.arange(first, first + len(block)))
        else:
            self._index.add(block)

    def write(self, path: Path) -> None:
        """All that was added, as FAISS writes it."""
        import faiss

        if self._spilled is None or not self._rows:
            faiss.write_index(self._index, str(path))
            return
        self._spill()
        inner, sizes = inner_of(self._index), np.array(self._sizes)  # (P, L)
        self._index.ntotal = inner.ntotal = self._rows
        head = faiss.serialize_index(self._index).tobytes().removesuffix(_section(inner, None))
        with open(path, "wb") as into, self._spilled as parts:
            into.write(head + _section(inner, sizes.sum(0)))
            _merge(parts, into, sizes, inner.code_size)

    def _spill(self) -> None:
        """Write what is held, list by list, codes before row numbers, and go on with empty lists."""
        import faiss

        inner, into = inner_of(self._index), self._spilled
        lists = inner.invlists
        sizes = np.array([lists.list_size(number) for number in range(inner.nlist)])
        for number in np.flatnonzero(sizes).tolist():
            into.write(_bytes_at(lists.get_codes(number), int(sizes[number]) * inner.code_size))
            into.write(_bytes_at(lists.get_ids(number), int(sizes[number]) * 8))
        empty = faiss.ArrayInvertedLists(inner.nlist, inner.code_size)  # emptied ones would keep their room
        inner.replace_invlists(empty, True)
        empty.this.disown()
        self._sizes.append(sizes)
        self._rows += self._index.ntotal
        self._index.ntotal = inner.ntotal = 0


def _merge(parts: BinaryIO, into: BinaryIO, sizes: np.ndarray, code_size: int) -> None:
    """Each list's codes of all parts, then its row numbers of all parts. sizes: (P, L)."""
    ends = np.cumsum(sizes.ravel() * (code_size + 8))
    starts = np.concatenate([[0], ends[:-1]]).reshape(sizes.shape)
    for number in range(sizes.shape[1]):
        codes = sizes[:, number] * code_size
        for start, count in zip(starts[:, number].tolist(), codes.tolist(), strict=True):
            _copy(parts, into, start, count)
        for start, count in zip((starts[:, number] + codes).tolist(), (8 * sizes[:, number]).tolist(), strict=True):
            _copy(parts, into, start, count)


def _copy(source: BinaryIO, into: BinaryIO, start: int, count: int) -> None:
    if count:
        source.seek(start)
    for done, end in pairwise([*range(0, count, _COPIED), count]):
        into.write(source.read(end - done))


def _section(inner: faiss.IndexIVF, sizes: np.ndarray | None) -> bytes:
    """What FAISS writes before the lists, of these sizes (L,) or none: few that are not empty it names one by one."""
    head = b"ilar" + inner.nlist.to_bytes(8, "little") + inner.code_size.to_bytes(8, "little")
    filled = np.zeros(0, np.int64) if sizes is None else np.flatnonzero(sizes)
    if 2 * len(filled) > inner.nlist:
        return head + b"full" + inner.nlist.to_bytes(8, "little") + sizes.astype("<u8").tobytes()
    pairs = np.stack([filled, sizes[filled]], 1) if len(filled) else filled
    return head + b"sprs" + (2 * len(filled)).to_bytes(8, "little") + pairs.astype("<u8").tobytes()


def _bytes_at(pointer: object, count: int) -> memoryview:
    return memoryview((ctypes.c_char * count).from_address(int(pointer)))  # where they lie: nothing is copied
