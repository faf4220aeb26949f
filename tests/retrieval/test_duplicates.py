"""Pictures that are there twice: found by bytes and by embedding, against every pair compared in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cclm.retrieval import duplicates
from cclm.retrieval.duplicates import find_duplicates
from cclm.retrieval.index import ImageIndex, build_index
from cclm.retrieval.living import IndexWriter
from cclm.retrieval.metadata import Entry, Rows
from tests.retrieval.indexed import DIM, model_in


def index_of(folder: Path, entries: list[Entry], vectors: np.ndarray) -> Path:
    build_index([Rows.of(entries, vectors)], folder / "index", model_in(folder / "model"))
    return folder / "index"


def spread(count: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def keys(groups: list[list[duplicates.Duplicate]]) -> list[list[str]]:
    return [[one.entry.key for one in group] for group in groups]


def test_equal_bytes_and_near_embeddings(tmp_path: Path) -> None:
    vectors = spread(8)
    vectors[5] = vectors[0] + 0.02 * vectors[1]
    vectors[6] = vectors[5] + 0.02 * vectors[2]
    sizes = [(10, 10), (20, 20), (5, 5), (5, 5), (30, 30), (40, 40), (10, 10), (5, 5)]
    hashes = ["a", "b", None, "d", "b", "f", "g", None]
    entries = [
        Entry(f"k{row}", width=width, height=height, sha256=digest)
        for row, ((width, height), digest) in enumerate(zip(sizes, hashes, strict=True))
    ]
    index = ImageIndex.open(index_of(tmp_path, entries, vectors))
    groups = find_duplicates(index)
    assert keys(groups) == [["k5", "k0", "k6"], ["k4", "k1"]]  # of most pixels first
    assert groups[0][0].similarity == pytest.approx(1, abs=1e-6) and 0.96 < groups[0][1].similarity < 1
    assert groups[1][1].similarity < 0.9  # alike by their bytes alone


@pytest.mark.parametrize("threshold", [0.7, 0.9, 1.0])
def test_groups_are_those_around_one_picture_each(
    tmp_path: Path, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", 16)
    monkeypatch.setattr(duplicates, "_PENDING_PAIRS", 5)
    rng = np.random.default_rng(1)
    centres = spread(12, seed=2)
    vectors = centres[rng.integers(12, size=90)] + 0.15 * spread(90, seed=3) * (rng.random((90, 1)) < 0.8)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    folder = index_of(tmp_path, [Entry(f"k{row}") for row in range(60)], vectors[:60])
    with IndexWriter(folder) as writer:
        writer.append([Rows.of([Entry(f"k{row}") for row in range(60, 90)], vectors[60:])])
        writer.delete(keys=[f"k{row}" for row in range(5, 90, 9)])
    there = [row for row in range(90) if row % 9 != 5]
    near = vectors[there] @ vectors[there].T >= threshold - 1e-6
    expected, left = [], list(range(len(there)))
    while left:
        group = [row for row in left if near[left[0], row]]
        left = [row for row in left if row not in group]
        expected += [[f"k{there[row]}" for row in group]] * (len(group) > 1)
    shares: list[float] = []
    groups = find_duplicates(ImageIndex.open(folder), threshold, shares.append)
    assert keys(groups) == sorted(expected, key=lambda group: (-len(group), int(group[0][1:])))
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)
    assert shares == sorted(shares) and shares[-1] == 1
    assert expected or threshold < 1


def test_the_ends_of_a_chain_are_not_alike(tmp_path: Path) -> None:
    angles = np.linspace(0, np.pi / 2, 10)  # each within cosine 0.98 of the next one, the last at a right angle
    vectors = np.zeros((10, DIM), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    index = ImageIndex.open(index_of(tmp_path, [Entry(f"k{row}") for row in range(10)], vectors))
    groups = find_duplicates(index)
    assert keys(groups) == [[f"k{row}", f"k{row + 1}"] for row in range(0, 10, 2)]
    assert all(one.similarity > 0.96 for group in groups for one in group)


def test_none_and_no_cosine(tmp_path: Path) -> None:
    folder = index_of(tmp_path, [Entry("a"), Entry("b")], np.eye(DIM, dtype=np.float32)[:2])
    assert find_duplicates(ImageIndex.open(folder)) == []
    for threshold in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="threshold is .*; give a cosine"):
            find_duplicates(ImageIndex.open(folder), threshold)
    with IndexWriter(folder) as writer:
        writer.delete(where="key like '%'")
    assert find_duplicates(ImageIndex.open(folder)) == []
