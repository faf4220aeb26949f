"""Inverted files that memory does not hold: merged on disk they are what memory makes, and are searched as they lie."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from cclm.retrieval import builder
from cclm.retrieval.builder import write_segment
from cclm.retrieval.manifest import Segment
from cclm.retrieval.metadata import Entry, Rows
from cclm.retrieval.partitions import ends_in_lists
from cclm.retrieval.plan import BLOCK_ROWS, Budget, check_factory, ladder
from cclm.retrieval.segment import OpenSegment
from cclm.retrieval.vectors import unit
from cclm.storage import file_hash

ROWS, DIM = 120_000, 64
SMALL = unit(np.random.default_rng(0).standard_normal((6000, 32)), "small")
KIND = "IVF64,Flat"  # 264 bytes per vector: 32 MB of codes
TIGHT = Budget(max_memory=230 * 10**6, factory=KIND, search="nprobe=8")  # that 17 MB are left of


def clustered(rows: int, seed: int) -> np.ndarray:
    """(N, E) of unit norm, sorted by cluster: each part fills other lists."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((64, DIM))
    spread = 0.6 * generator.standard_normal((rows, DIM))
    return unit(centres[np.sort(generator.integers(64, size=rows))] + spread, "clustered")


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(40, seed=1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Segment, Segment]:
    """The same rows, indexed in parts and at once."""
    place = tmp_path_factory.mktemp("partitions")
    parts = [Rows.of([Entry(f"k{row}") for row in range(ROWS)], clustered(ROWS, seed=0))]
    ample = replace(TIGHT, max_memory=2 * 10**9)
    return place, write_segment(parts, place / "parts", budget=TIGHT), write_segment(parts, place / "w", budget=ample)


@pytest.mark.parametrize("stop", [6000, 1500])
@pytest.mark.parametrize(
    "factory",
    ["IVF16,Flat", "IVF16,SQ8", "IVF4000,SQ8", "IVF16,PQ8", "IVF16,RaBitQ4", "OPQ8,IVF16,PQ8", "IVF16,SQ4,Refine(SQ8)"],
)
def test_a_file_merged_of_parts_is_what_faiss_writes(tmp_path: Path, factory: str, stop: int) -> None:
    index = check_factory(factory, 32)
    assert ends_in_lists(index)
    builder._train_codes_plainly(index)
    index.train(SMALL)
    empty = faiss.clone_index(index)
    blocks = [SMALL[start : min(start + 400, stop)] for start in range(0, stop, 400)]
    for block in blocks:
        index.add(block)
    faiss.write_index(index, str(tmp_path / "whole"))
    builder._write_index(empty, iter(blocks), stop, tmp_path, 900)
    assert (tmp_path / "image.index").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.index", "whole"]


@pytest.mark.parametrize("factory", ["IVF16,PQ8x4fs", "IVF16,RaBitQfs", "HNSW8,SQ8", "SQ8", "Flat"])
def test_kinds_that_are_not_merged(factory: str) -> None:
    assert not ends_in_lists(check_factory(factory, 32))


def test_parts_find_what_the_whole_finds(built: tuple[Path, Segment, Segment], queries: np.ndarray) -> None:
    place, parts, whole = built
    (planned,), (ample,) = (ladder(ROWS, DIM, replace(TIGHT, max_memory=most)) for most in (TIGHT.max_memory, 2**31))
    assert BLOCK_ROWS <= planned.part_rows < ROWS / 2 and ample.part_rows == 0 and "codes on disk" in str(planned)
    assert set(parts.files) == {"image.index", "metadata.parquet", "vectors.npy"}
    assert parts.files["image.index"] == whole.files["image.index"]
    assert parts.measured is not None and parts.measured.recall > 0.5
    scores, rows = OpenSegment(place / "parts", parts).search(queries, 10)
    assert (OpenSegment(place / "w", whole).search(queries, 10)[1] == rows).all() and (np.diff(scores) <= 0).all()


def test_rows_are_deleted_and_chosen_where_it_was_moved(
    built: tuple[Path, Segment, Segment], queries: np.ndarray, tmp_path: Path
) -> None:
    place, segment, _ = built
    moved = Path(shutil.copytree(place / "parts", tmp_path / "elsewhere"))
    rows = OpenSegment(moved, segment).search(queries, 10)[1]
    live = np.ones(ROWS, bool)
    live[rows[:, 0]] = False
    opened = OpenSegment(moved, segment, live)
    assert not np.isin(opened.search(queries, 10)[1], rows[:, 0]).any()
    odd = np.arange(ROWS) % 2 == 1
    assert (opened.search(queries, 10, odd)[1] % 2 == 1).all()
    assert opened.vectors(np.array([5, ROWS - 1])).shape == (2, DIM)


MEASURE = """
import re, sys
from pathlib import Path
from cclm.retrieval import builder
from cclm.retrieval.plan import Plan
from cclm.retrieval.vectors import Vectors

def held(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

path, kind, part_rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
builder._try_factory(kind, 64)  # what libraries hold once they were at work
before = held("VmRSS")
builder._build(Plan(kind, "", 0, 0.0, 0, part_rows), path)
building, before = held("VmHWM") - before, held("VmRSS")
opened = Vectors(path, kind, "nprobe=1")
print(building, held("VmRSS") - before, len(opened))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is told by Linux")
def test_neither_building_nor_opening_holds_the_codes(built: tuple[Path, Segment, Segment], tmp_path: Path) -> None:
    shutil.copy(built[0] / "parts" / "vectors.npy", tmp_path)
    grown = {}
    for part_rows in (0, 8192):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), KIND, str(part_rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        building, opening, rows = map(int, done.stdout.split())
        assert rows == ROWS and opening < 8 * 10**6
        grown[part_rows] = building
    codes = 264 * ROWS
    assert grown[0] > codes and grown[8192] < 0.7 * codes, grown


def test_the_ladder_leaves_codes_on_disk_only_where_nothing_else_finds_enough() -> None:
    def factories(memory: int) -> list[str]:
        return [plan.factory for plan in ladder(10**7, 512, Budget(max_memory=memory)) if plan.part_rows]

    assert factories(10**9) == ["IVF4096,SQ8"] and factories(10**11) == []


@pytest.mark.parametrize("kind", ["IVF16,SQ8", "IVF16,PQ8x4fs"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_file_that_names_another_is_refused(tmp_path: Path, kind: str, beside: bool) -> None:
    parts = [Rows.of([Entry(f"k{row}") for row in range(6000)], SMALL)]
    segment = write_segment(parts, tmp_path / "s", budget=Budget(factory=kind, search="nprobe=2"))
    index = check_factory("IVF16,SQ8", 32)
    index.train(SMALL)
    lists = faiss.OnDiskInvertedLists(16, 32, str(tmp_path / "lists"))
    index.replace_invlists(lists, True)
    lists.this.disown()
    index.add(SMALL)
    faiss.write_index(index, str(tmp_path / "s" / "image.index"))
    del index
    if beside:
        shutil.copy(tmp_path / "lists", tmp_path / "s")
    files = {name: file_hash(tmp_path / "s" / name) for name in segment.files}
    with pytest.raises(ValueError, match="is no readable FAISS index|OnDiskInvertedLists") as caught:
        OpenSegment(tmp_path / "s", replace(segment, files=files))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [2**50, 5000])
def test_lists_that_claim_to_be_of_another_size(tmp_path: Path, size: int) -> None:
    parts = [Rows.of([Entry(f"k{row}") for row in range(6000)], SMALL)]
    segment = write_segment(parts, tmp_path / "s", budget=Budget(factory="IVF16,SQ8", search="nprobe=16"))
    data = bytearray((tmp_path / "s" / "image.index").read_bytes())
    at = data.rindex(b"full", 0, len(data) - 6000 * 40) + 12
    data[at + 15 * 8 : at + 16 * 8] = size.to_bytes(8, "little")  # the last list's
    (tmp_path / "s" / "image.index").write_bytes(data)
    files = {name: file_hash(tmp_path / "s" / name) for name in segment.files}
    with pytest.raises(ValueError, match=r"image\.index"):
        OpenSegment(tmp_path / "s", replace(segment, files=files))
