"""Index folders: what is found, and what is refused before it is parsed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cclm.retrieval.index import ImageIndex, build_index, plan, query_kind, search
from cclm.retrieval.manifest import ModelSource
from cclm.retrieval.metadata import Entry
from cclm.storage import file_hash

ROWS, DIM = 300, 16


def vectors(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, DIM)).astype("f4")
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def entries(rows: int = ROWS) -> list[Entry]:
    return [
        Entry(f"k{row}", {"en": [f"picture {row}"], "de": [f"Bild {row}", "ж"]}, f"{row % 3:06}.tar")
        for row in range(rows)
    ]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    embeddings, listed = vectors(), entries()
    batches = (
        (listed[start : start + 64], torch.from_numpy(embeddings[start : start + 64])) for start in range(0, ROWS, 64)
    )
    build_index(batches, tmp_path / "index", ModelSource.of(model), data="data/test")
    return tmp_path / "index"


def rewrite_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_search_is_exact_and_returns_metadata(folder: Path) -> None:
    queries = vectors(5, seed=1)
    index = ImageIndex.open(folder)
    scores = queries @ vectors().T
    for row, hits in enumerate(index.search(3.0 * queries, k=7)):  # the length of a query plays no part
        best = np.argsort(-scores[row])[:7]
        assert [hit.key for hit in hits] == [f"k{number}" for number in best]
        assert [hit.rank for hit in hits] == list(range(1, 8))
        assert np.allclose([hit.score for hit in hits], scores[row, best], atol=1e-6)
        assert hits[0].captions == {"en": [f"picture {best[0]}"], "de": [f"Bild {best[0]}", "ж"]}
        assert hits[0].shard == f"{best[0] % 3:06}.tar" and hits[0].thumbnail is None
    assert [hit.key for hit in search(folder, torch.from_numpy(queries[2]), 3)] == [
        hit.key for hit in index.search(queries, 3)[2]
    ]


def test_manifest_names_everything_an_index_depends_on(folder: Path, model: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"] == ROWS and manifest["dim"] == DIM and manifest["factory"] == "Flat"
    assert manifest["index_sha256"] == file_hash(folder / "image.index")
    assert manifest["metadata_sha256"] == file_hash(folder / "metadata.parquet")
    assert manifest["model_sha256"] == ModelSource.of(model).sha256
    assert manifest["model_path"] == "../model"
    assert pq.read_table(folder / "metadata.parquet")["row"].to_pylist() == list(range(ROWS))


def test_index_and_model_can_move_together(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(folder, moved / "index")
    with pytest.raises(FileNotFoundError, match=r"no model at .* --model"):
        ImageIndex.open(moved / "index").model()
    assert ImageIndex.open(moved / "index").model(tmp_path / "model") == tmp_path / "model"
    shutil.move(tmp_path / "model", moved / "model")
    assert ImageIndex.open(moved / "index").model().samefile(moved / "model")


def test_approximate_index_from_the_threshold_on(tmp_path: Path, model: Path) -> None:
    assert plan(99_999) == ("Flat", "")
    assert plan(1_000_000) == ("IVF4096,Flat", "nprobe=512")
    # Clustered vectors, as real embeddings are.
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((50, DIM))
    data = (centres[generator.integers(50, size=2000)] + 0.3 * generator.standard_normal((2000, DIM))).astype("f4")
    manifest = build_index([(entries(2000), data)], tmp_path / "ivf", ModelSource.of(model), exact_below=2000)
    assert manifest.factory == "IVF128,Flat" and manifest.search == "nprobe=16"
    index = ImageIndex.open(tmp_path / "ivf")
    assert faiss.extract_index_ivf(index._index).nprobe == 16
    unit = data / np.linalg.norm(data, axis=1, keepdims=True)
    exact = np.argsort(-(unit[:100] @ unit.T), axis=1)[:, :10]
    found = [[int(hit.key[1:]) for hit in hits] for hits in index.search(data[:100], 10)]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found, strict=True)])
    assert recall > 0.9


def test_model_that_does_not_belong(folder: Path, model: Path) -> None:
    assert ImageIndex.open(folder).model() == model
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"do not belong together: .* sha256 .* build the index again") as caught:
        ImageIndex.open(folder).model()
    assert "\n" not in str(caught.value)


def test_changed_metadata(folder: Path) -> None:
    path = folder / "metadata.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(reversed(range(ROWS)))), path)
    with pytest.raises(ValueError, match=r"metadata.parquet was changed or cut off .* build the index again"):
        ImageIndex.open(folder)


def test_truncated_index_is_refused_before_it_is_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(folder / "image.index", os.path.getsize(folder / "image.index") // 2)
    parsed = []
    monkeypatch.setattr(faiss, "read_index", parsed.append)
    with pytest.raises(ValueError, match=r"image\.index was changed or cut off"):
        ImageIndex.open(folder)
    assert not parsed


def test_truncated_index_with_a_forged_manifest(folder: Path) -> None:
    limit = faiss.get_deserialization_vector_byte_limit()
    os.truncate(folder / "image.index", os.path.getsize(folder / "image.index") // 2)
    rewrite_manifest(folder, index_sha256=file_hash(folder / "image.index"))
    with pytest.raises(ValueError, match="no readable FAISS index") as caught:
        ImageIndex.open(folder)
    assert "\n" not in str(caught.value)
    assert faiss.get_deserialization_vector_byte_limit() == limit


def test_header_that_asks_for_more_than_the_file_holds(folder: Path) -> None:
    data = bytearray((folder / "image.index").read_bytes())
    count = ROWS * DIM * 4
    place = data.index((count // 4).to_bytes(8, "little"))  # how many floats follow
    data[place : place + 8] = (2**34).to_bytes(8, "little")  # 64 GiB
    (folder / "image.index").write_bytes(data)
    rewrite_manifest(folder, index_sha256=file_hash(folder / "image.index"))
    with pytest.raises(ValueError, match="no readable FAISS index"):
        ImageIndex.open(folder)


def test_index_and_metadata_of_two_builds(folder: Path, tmp_path: Path, model: Path) -> None:
    build_index([(entries(10), vectors(10))], tmp_path / "small", ModelSource.of(model))
    shutil.copy(tmp_path / "small" / "metadata.parquet", folder / "metadata.parquet")
    rewrite_manifest(folder, metadata_sha256=file_hash(folder / "metadata.parquet"))
    with pytest.raises(ValueError, match=r"do not belong together .* image.index 300 rows, metadata.parquet 10 rows"):
        ImageIndex.open(folder)


def test_missing_parts(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no index folder at .*none; build one with `cclm index build"):
        ImageIndex.open(tmp_path / "none")
    (folder / "image.index").unlink()
    with pytest.raises(FileNotFoundError, match=r"image\.index is missing"):
        ImageIndex.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        ImageIndex.open(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not readable as JSON"), ("[]", "not readable as JSON"), ('{"schema_version": 9}', "schema_version 9"),
     ('{"schema_version": 1}', "fields missing or unknown: created_by")],
)  # fmt: skip
def test_broken_manifest(folder: Path, text: str, message: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ImageIndex.open(folder)


def test_search_parameters_that_do_not_fit(folder: Path) -> None:
    rewrite_manifest(folder, search="nprobe=many")
    with pytest.raises(ValueError, match=r"search parameters 'nprobe=many' do not fit"):
        ImageIndex.open(folder)


def test_k_below_one_is_an_error_and_above_all_is_cut(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = ImageIndex.open(folder)
    with pytest.raises(ValueError, match="k is 0"):
        index.search(vectors(1), 0)
    with caplog.at_level(logging.WARNING):
        assert len(index.search(vectors(1), ROWS + 50)[0]) == ROWS
    assert "holds 300 images; k 350 is cut" in caplog.text


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.ones((1, 3)), "width 3, .* not of one model"),
        (np.full((1, DIM), np.nan), "NaN"),
        (np.zeros((1, DIM)), "zeros"),
    ],
)
def test_wrong_queries(folder: Path, query: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageIndex.open(folder).search(query)


def test_empty_data_leaves_nothing_and_keeps_the_former_index(folder: Path, tmp_path: Path, model: Path) -> None:
    before = file_hash(folder / "manifest.json")
    for output in (tmp_path / "new", folder):
        with pytest.raises(ValueError, match="no images to index"):
            build_index([], output, ModelSource.of(model))
    assert not (tmp_path / "new").exists() and file_hash(folder / "manifest.json") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "model"]


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, model: Path) -> None:
    broken = vectors(4)
    broken[1, 2] = np.inf
    for batch, message in (
        ((entries(4), broken), "row 10: 1 hold NaN"),
        ((entries(3), vectors(4)), "3 entries came with 4"),
        ((entries(4), np.ones((4, 5))), "width changes from 16 to 5"),
    ):
        with pytest.raises(ValueError, match=message):
            build_index([(entries(10), vectors(10)), batch], tmp_path / "index", ModelSource.of(model))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_full_disk_keeps_the_former_index(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = file_hash(folder / "manifest.json")
    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(OSError, match="disk full while writing .*index: free some space"):
        build_index([(entries(4), vectors(4))], folder, ModelSource.of(model))
    assert file_hash(folder / "manifest.json") == before and len(ImageIndex.open(folder)) == ROWS
    assert sorted(path.name for path in folder.parent.iterdir()) == ["index", "model"]


def test_output_that_holds_something_else_is_not_replaced(tmp_path: Path, model: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match="thesis holds chapter.tex, which is not replaced"):
        build_index([(entries(4), vectors(4))], tmp_path / "thesis", ModelSource.of(model))
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    with pytest.raises(ValueError, match="chapter.tex is a file"):
        build_index([(entries(4), vectors(4))], tmp_path / "thesis" / "chapter.tex", ModelSource.of(model))


def test_model_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors in"):
        ModelSource.of(tmp_path)


def test_query_kind(tmp_path: Path) -> None:
    (tmp_path / "cat.JPG").write_bytes(b"")
    assert query_kind(str(tmp_path / "cat.JPG")) == "image"
    assert query_kind("two dogs in the snow.") == "text"
    with pytest.raises(ValueError, match="the query is empty"):
        query_kind("  ")
    with pytest.raises(FileNotFoundError, match="looks like an image file"):
        query_kind(str(tmp_path / "dog.png"))
