"""Searching a segment: exactly, approximately, among some rows; and files of indices that are refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from cclm.retrieval import vectors as searched
from cclm.retrieval.builder import write_segment
from cclm.retrieval.manifest import Segment
from cclm.retrieval.metadata import Entry, Rows
from cclm.retrieval.plan import Budget, check_factory
from cclm.retrieval.segment import OpenSegment
from cclm.retrieval.vectors import Vectors
from cclm.storage import file_hash

ROWS, DIM = 3000, 32
KINDS = {
    "Flat": "",
    "SQ8": "",
    "HNSW16,SQ8": "efSearch=128",
    "IVF16,Flat": "nprobe=8",
    "IVF16,RaBitQfs4": "nprobe=8",
    "IVF16,RaBitQ,Refine(SQ8)": "nprobe=8,k_factor_rf=16",
    "IVF16,PQ8x4fs,Refine(SQ8)": "nprobe=8,k_factor_rf=16",
    "IVF16,PQ8x4fs,RFlat": "nprobe=8,k_factor_rf=16",
    "PQ8x4fs,RFlat": "k_factor_rf=64",
}


def normal(rows: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


AMONG = {
    "HNSW8,Flat": "efSearch=24",
    "IVF128,Flat": "nprobe=3",
    "IVF128,PQ16x4fs,Refine(SQ8)": "nprobe=3,k_factor_rf=16",
    "IVF128,RaBitQfs4": "nprobe=3",
    "PCA24,IVF128,SQ8": "nprobe=3",
}
CLUSTER = np.random.default_rng(0).integers(50, size=40_000)
CLUSTERED = (normal(50, 5)[CLUSTER] + 0.6 * normal(40_000, 6)).astype(np.float32)
CLUSTERED /= np.linalg.norm(CLUSTERED, axis=1, keepdims=True)
VECTORS, QUERIES = normal(ROWS, 0), normal(50, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("segments")


@pytest.fixture(scope="module")
def segments(place: Path) -> dict[str, Segment]:
    parts = [Rows.of([Entry(f"k{row}") for row in range(ROWS)], VECTORS)]
    return {
        kind: write_segment(parts, place / f"s{number}", budget=Budget(factory=kind, search=search))
        for number, (kind, search) in enumerate(KINDS.items())
    }


def exact(allowed: np.ndarray | None = None, k: int = 10) -> np.ndarray:
    scores = QUERIES @ VECTORS.T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    rows = np.argsort(-scores, axis=1)[:, :k]
    return np.where(np.isfinite(np.take_along_axis(scores, rows, 1)), rows, -1)


def recall(expected: np.ndarray, rows: np.ndarray) -> float:
    return float((expected[:, :, None] == rows[:, None, :]).any(2).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_fall_and_are_nearly_those_of_the_vectors(place: Path, segments: dict[str, Segment], kind: str) -> None:
    opened = OpenSegment(place / segments[kind].name, segments[kind])
    scores, rows = opened.search(QUERIES, 10)
    assert scores.shape == rows.shape == (50, 10) and rows.dtype == np.int64 and (np.diff(scores, axis=1) <= 0).all()
    error = 0.1 if "RaBitQfs" in kind else 0.03  # codes alone, which nothing refines
    assert scores == pytest.approx((QUERIES[:, None] * VECTORS[rows]).sum(2), abs=error)
    assert recall(exact(), rows) > (0.999 if kind == "Flat" else 0.7)
    wanted = np.array([ROWS - 1, 0, 7, 7])
    assert opened.vectors(wanted) == pytest.approx(VECTORS[wanted], abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_are_searched_exactly_whatever_the_index(place: Path, segments: dict[str, Segment], kind: str) -> None:
    allowed = np.random.default_rng(2).random(ROWS) < 0.02
    opened = OpenSegment(place / segments[kind].name, segments[kind])
    _, rows = opened.search(QUERIES, 10, allowed)
    assert recall(exact(allowed), rows) > 0.99  # stored in half precision, two may change places
    few = np.zeros(ROWS, bool)
    few[[3, 70]] = True
    scores, rows = opened.search(QUERIES, 10, few)
    assert (np.sort(rows[:, :2]) == [3, 70]).all() and (rows[:, 2:] == -1).all()
    assert (opened.search(QUERIES, 10, np.zeros(ROWS, bool))[1] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_selector_keeps_the_parameters_of_the_search(
    place: Path, segments: dict[str, Segment], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searched, "FEW_ROWS", 0)
    monkeypatch.setattr(searched, "FEW", 0)
    opened = OpenSegment(place / segments[kind].name, segments[kind])
    scores, rows = opened.search(QUERIES[:5], 10)  # so few that Flat takes a selector too
    if kind not in ("PQ8x4fs,RFlat", "HNSW16,SQ8"):  # takes none, is as much work: are searched exactly
        assert (opened.search(QUERIES[:5], 10, np.ones(ROWS, bool))[1] == rows).all()
    allowed = np.random.default_rng(2).random(ROWS) < 0.3
    _, rows = opened.search(QUERIES, 10, allowed)
    assert allowed[rows[rows >= 0]].all() and (rows >= 0).mean() > 0.99
    assert recall(exact(allowed), rows) > (0.999 if kind == "Flat" else 0.7)


@pytest.fixture(scope="module", params=AMONG)
def opened_kind(request: pytest.FixtureRequest, place: Path) -> Vectors:
    """Clusters, so many rows that a half of them is not compared row by row."""
    folder = place / f"among {request.param}"
    folder.mkdir()
    index = check_factory(request.param, DIM)
    index.train(CLUSTERED[::4].copy())
    index.add(CLUSTERED)
    faiss.write_index(index, str(folder / "image.index"))
    np.save(folder / "vectors.npy", CLUSTERED.astype("f2"))
    return Vectors(folder, request.param, AMONG[request.param])


@pytest.mark.parametrize("chosen", ["other clusters", "any half", "all but one cluster"])
def test_among_some_rows_as_much_is_found_as_among_all(opened_kind: Vectors, chosen: str) -> None:
    allowed = {
        "other clusters": CLUSTER >= 24,
        "any half": np.random.default_rng(4).random(len(CLUSTER)) < 0.55,
        "all but one cluster": CLUSTER != 0,
    }[chosen]
    assert np.count_nonzero(allowed) > searched.FEW_ROWS
    queries = CLUSTERED[~allowed][:60]

    def reached(rows: np.ndarray, among: np.ndarray) -> float:
        scores = np.where(among, queries @ CLUSTERED.T, -np.inf)
        return recall(np.argpartition(-scores, 10)[:, :10], rows)

    _, rows = opened_kind.search(queries, 10, allowed)
    assert allowed[rows].all() and (rows >= 0).all()
    everything = np.ones(len(allowed), bool)
    assert reached(rows, allowed) > reached(opened_kind.search(queries, 10)[1], everything) - 0.06


@pytest.mark.parametrize("k", [1, 2, 300])
def test_as_much_is_found_of_few_or_many_as_of_ten(opened_kind: Vectors, k: int) -> None:
    queries = CLUSTERED[:60]
    for allowed in (np.ones(len(CLUSTER), bool), np.random.default_rng(4).random(len(CLUSTER)) < 0.9):
        order = np.argsort(-np.where(allowed, queries @ CLUSTERED.T, -np.inf))[:, : max(k, 10)]
        among = None if allowed.all() else allowed
        of_ten = recall(order[:, :10], opened_kind.search(queries, 10, among)[1])
        assert recall(order[:, :k], opened_kind.search(queries, k, among)[1]) > of_ten - 0.06


def test_as_many_are_found_as_are_asked_for(opened_kind: Vectors) -> None:
    allowed = CLUSTER >= 24
    for among in (None, allowed):
        scores, rows = opened_kind.search(CLUSTERED[:3], 4000, among)
        assert (rows >= 0).all() and all(len(set(row)) == 4000 for row in rows.tolist())
        assert (np.diff(scores, axis=1) <= 0).all() and (among is None or allowed[rows].all())


@pytest.mark.parametrize("kind", ["PQ4x4", "RQ2x4", "IVF4,RQ4x4fs", "LSQ2x4", "PRQ2x1x4", "PQ8x4fs", "IVF4,SQ8"])
def test_kinds_that_take_no_selector_are_searched_by_hand(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searched, "FEW_ROWS", 0)
    monkeypatch.setattr(searched, "FEW", 0)
    folder, index, rows = place / f"selector {kind}", check_factory(kind, DIM), VECTORS[:1000]
    folder.mkdir()
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(folder / "image.index"))
    np.save(folder / "vectors.npy", rows.astype("f2"))
    live = np.random.default_rng(4).random(len(rows)) < 0.9
    opened = Vectors(folder, kind, "")
    for k in (1, 10, 300):
        assert (opened.search(QUERIES, k)[1] >= 0).all()
        assert live[opened.search(QUERIES, k, live)[1]].all()
    assert opened._takes_selector == (kind == "IVF4,SQ8")


def test_deleted_rows_are_never_found(place: Path, segments: dict[str, Segment]) -> None:
    for kind in ("Flat", "IVF16,PQ8x4fs,Refine(SQ8)"):
        live = np.ones(ROWS, bool)
        live[exact()[:, 0]] = False
        opened = OpenSegment(place / segments[kind].name, segments[kind], live)
        assert not np.isin(opened.search(QUERIES, 10)[1], np.flatnonzero(~live)).any()
        allowed = np.arange(ROWS) % 2 == 0
        assert (allowed & live)[opened.search(QUERIES, 10, allowed)[1]].all()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_queries_and_change_nothing(place: Path, segments: dict[str, Segment], threads: int) -> None:
    before = faiss.omp_get_max_threads()
    opened = Vectors(place / segments["Flat"].name, "Flat", "")
    try:
        faiss.omp_set_num_threads(threads)
        queries = np.tile(QUERIES, (4, 1))
        scores, rows = opened.search(queries, 5)
        assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert (rows == np.tile(exact(k=5), (4, 1))).all()
    assert scores == pytest.approx(np.take_along_axis(queries @ VECTORS.T, rows, 1), abs=1e-5)


@pytest.mark.parametrize("kind", ["Flat", "IVF16,PQ8x4fs,Refine(SQ8)", "IVF16,Flat"])
def test_a_large_file_is_mapped(
    place: Path, segments: dict[str, Segment], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place / segments[kind].name
    read = Vectors(folder, kind, segments[kind].search)
    monkeypatch.setattr(searched, "MAPPED_FROM", 1)
    mapped = Vectors(folder, kind, segments[kind].search)
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("image.index")]
    assert any(str(folder) in line for line in lines)
    assert (read.search(QUERIES, 10)[1] == mapped.search(QUERIES, 10)[1]).all()


def copied(place: Path, segment: Segment, folder: Path) -> Path:
    return Path(shutil.copytree(place / segment.name, folder))


def forged(folder: Path, segment: Segment) -> Segment:
    """As if whoever changed the files had written the manifest too."""
    return replace(segment, files={name: file_hash(folder / name) for name in segment.files})


@pytest.mark.parametrize("name", ["image.index", "vectors.npy", "metadata.parquet"])
def test_changed_and_missing_files(place: Path, segments: dict[str, Segment], tmp_path: Path, name: str) -> None:
    segment = segments["IVF16,PQ8x4fs,Refine(SQ8)"]
    folder = copied(place, segment, tmp_path / "s")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} was changed or cut off after it was written"):
        OpenSegment(folder, segment)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
        OpenSegment(folder, segment)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_were_cut_or_claim_any_number(
    place: Path, segments: dict[str, Segment], tmp_path: Path, kind: str
) -> None:
    segment = segments[kind]
    folder = copied(place, segment, tmp_path / "s")
    whole = (folder / "image.index").read_bytes()
    limit = faiss.get_deserialization_vector_byte_limit()
    for share in range(10):
        (folder / "image.index").write_bytes(whole[: len(whole) * share // 10])
        with pytest.raises(ValueError, match="is no readable FAISS index") as caught:
            OpenSegment(folder, forged(folder, segment))
        assert "\n" not in str(caught.value)
    generator = np.random.default_rng(0)
    refused = 0
    for at in [8, *generator.integers(60, size=40), *len(whole) - generator.integers(8, 60, size=20)]:
        (folder / "image.index").write_bytes(whole[:at] + (2**50).to_bytes(8, "little") + whole[at + 8 :])
        try:
            OpenSegment(folder, forged(folder, segment))
        except ValueError as error:  # the rest was codes and coordinates, where any number is one
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10
    assert faiss.get_deserialization_vector_byte_limit() == limit


def test_an_index_of_another_kind_than_the_manifest_says(
    place: Path, segments: dict[str, Segment], tmp_path: Path
) -> None:
    folder = copied(place, segments["SQ8"], tmp_path / "s")
    for factory in ("Flat", "SQ4,RFlat", "IVF16,SQ8"):
        with pytest.raises(ValueError, match=r"holds IndexScalarQuantizer, not .* as manifest\.json says"):
            OpenSegment(folder, replace(segments["SQ8"], factory=factory))
    for factory in ("IVF999999999999,SQ8", "no such", "IVF1048577,Flat"):
        with pytest.raises(ValueError, match="factory"):
            OpenSegment(folder, replace(segments["SQ8"], factory=factory))
    for search in ("nprobe=8", "nprobe=99999999999", "k_factor_rf=1e9", "x"):
        with pytest.raises(ValueError, match=r"search parameters .* do not fit the index"):
            OpenSegment(folder, replace(segments["SQ8"], search=search))


def test_an_index_for_distances_or_untrained(place: Path, segments: dict[str, Segment], tmp_path: Path) -> None:
    folder = copied(place, segments["SQ8"], tmp_path / "s")
    other = faiss.index_factory(DIM, "SQ8", faiss.METRIC_L2)
    other.train(VECTORS)
    other.add(VECTORS)
    for index in (other, check_factory("SQ8", DIM)):
        faiss.write_index(index, str(folder / "image.index"))
        with pytest.raises(ValueError, match="is not trained for inner products"):
            OpenSegment(folder, forged(folder, segments["SQ8"]))


def test_an_index_within_an_index_without_end(place: Path, segments: dict[str, Segment], tmp_path: Path) -> None:
    folder = copied(place, segments["Flat"], tmp_path / "s")
    whole = (folder / "image.index").read_bytes()
    header = whole[4:41]  # width, rows, two reserved numbers, whether trained, metric
    (folder / "image.index").write_bytes(b"".join([b"IxPT" + header + bytes(4)] * 200_000) + whole)
    with pytest.raises(ValueError, match="is no readable FAISS index"):
        OpenSegment(folder, forged(folder, segments["Flat"]))


@pytest.mark.parametrize(
    "stored", [np.zeros((ROWS, DIM), np.float64), np.zeros((ROWS - 1, DIM), np.float16), "objects"]
)
def test_vectors_of_another_shape_or_kind(
    place: Path, segments: dict[str, Segment], tmp_path: Path, stored: np.ndarray | str
) -> None:
    folder = copied(place, segments["SQ8"], tmp_path / "s")
    content = np.array([{"a": 1}], object) if isinstance(stored, str) else stored
    np.save(folder / "vectors.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match=r"vectors\.npy") as caught:
        OpenSegment(folder, forged(folder, segments["SQ8"])).vectors(np.array([0]))
    assert "\n" not in str(caught.value)
