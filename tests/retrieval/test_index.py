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

from cclm.retrieval.index import ImageIndex, build_index
from cclm.retrieval.manifest import ModelSource
from cclm.retrieval.metadata import Entry, Rows
from cclm.retrieval.query import query_kind
from cclm.storage import file_hash

ROWS, DIM = 300, 16


def vectors(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, DIM)).astype("f4")
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def entries(rows: int = ROWS) -> list[Entry]:
    return [
        Entry(f"k{row}", {"en": [f"picture {row}"], "de": [f"Bild {row}", "ж"]}, 0, f"{row % 3:06}.tar")
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
    parts = [Rows.of(listed[start : start + 64], embeddings[start : start + 64]) for start in range(0, ROWS, 64)]
    build_index(parts, tmp_path / "index", ModelSource.of(model), [tmp_path], data="data/test")
    return tmp_path / "index"


def rewrite_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_segment(folder: Path, **changes: object) -> None:
    segments = json.loads((folder / "manifest.json").read_text())["segments"]
    rewrite_manifest(folder, segments=[segments[0] | changes])


def forge(folder: Path, name: str) -> None:
    """Have the manifest say that a file is as it should be."""
    files = json.loads((folder / "manifest.json").read_text())["segments"][0]["files"]
    rewrite_segment(folder, files=files | {name: file_hash(segment(folder) / name)})


def segment(folder: Path) -> Path:
    """The only segment of an index."""
    (found,) = (folder / "segments").iterdir()
    return found


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_search_is_exact_and_returns_metadata(folder: Path) -> None:
    queries = vectors(5, seed=1)
    index = ImageIndex.open(folder)
    scores = queries @ vectors().T
    for row, hits in enumerate(index.search(3.0 * queries, k=7)):  # the length of a query plays no part
        best = np.argsort(-scores[row])[:7]
        assert [hit.entry.key for hit in hits] == [f"k{number}" for number in best]
        assert [hit.id for hit in hits] == best.tolist()
        assert [hit.rank for hit in hits] == list(range(1, 8))
        assert np.allclose([hit.score for hit in hits], scores[row, best], atol=1e-6)
        assert hits[0].entry == entries()[best[0]]


def test_manifest_names_everything_an_index_depends_on(folder: Path, model: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (named,) = manifest["segments"]
    assert named["rows"] == ROWS and manifest["dim"] == DIM and named["factory"] == "Flat"
    assert named["name"] == segment(folder).name
    assert named["files"] == {path.name: file_hash(path) for path in segment(folder).iterdir()}
    assert set(named["files"]) == {"image.index", "metadata.parquet"}
    assert manifest["model_sha256"] == ModelSource.of(model).sha256
    assert manifest["model_path"] == "../model" and manifest["roots"] == [".."] and manifest["version"] == 1
    assert pq.read_table(segment(folder) / "metadata.parquet")["id"].to_pylist() == list(range(ROWS))


def test_index_and_model_can_move_together(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(folder, moved / "index")
    with pytest.raises(FileNotFoundError, match=r"no model at .* --model"):
        ImageIndex.open(moved / "index").model()
    assert ImageIndex.open(moved / "index").model(tmp_path / "model") == tmp_path / "model"
    shutil.move(tmp_path / "model", moved / "model")
    assert ImageIndex.open(moved / "index").model().samefile(moved / "model")


def test_model_that_does_not_belong(folder: Path, model: Path) -> None:
    assert ImageIndex.open(folder).model() == model
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"do not belong together: .* sha256 .* build the index again") as caught:
        ImageIndex.open(folder).model()
    assert "\n" not in str(caught.value)


def test_changed_metadata(folder: Path) -> None:
    path = segment(folder) / "metadata.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(reversed(range(ROWS)))), path)
    with pytest.raises(ValueError, match=r"metadata.parquet was changed or cut off .* build the index again"):
        ImageIndex.open(folder)


def test_truncated_index_is_refused_before_it_is_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(segment(folder) / "image.index")
    parsed = []
    monkeypatch.setattr(faiss, "read_index", parsed.append)
    with pytest.raises(ValueError, match=r"image\.index was changed or cut off"):
        ImageIndex.open(folder)
    assert not parsed


def test_truncated_index_with_a_forged_manifest(folder: Path) -> None:
    limit = faiss.get_deserialization_vector_byte_limit()
    cut(segment(folder) / "image.index")
    forge(folder, "image.index")
    with pytest.raises(ValueError, match="no readable FAISS index") as caught:
        ImageIndex.open(folder)
    assert "\n" not in str(caught.value)
    assert faiss.get_deserialization_vector_byte_limit() == limit


def test_header_that_asks_for_more_than_the_file_holds(folder: Path) -> None:
    path = segment(folder) / "image.index"
    data = bytearray(path.read_bytes())
    count = ROWS * DIM * 4
    place = data.index((count // 4).to_bytes(8, "little"))  # how many floats follow
    data[place : place + 8] = (2**34).to_bytes(8, "little")  # 64 GiB
    path.write_bytes(data)
    forge(folder, "image.index")
    with pytest.raises(ValueError, match="no readable FAISS index"):
        ImageIndex.open(folder)


def test_index_and_metadata_of_two_builds(folder: Path, tmp_path: Path, model: Path) -> None:
    build_index([Rows.of(entries(10), vectors(10))], tmp_path / "small", ModelSource.of(model))
    shutil.copy(segment(tmp_path / "small") / "metadata.parquet", segment(folder) / "metadata.parquet")
    forge(folder, "metadata.parquet")
    with pytest.raises(ValueError, match=r"do not belong together .*image.index 300 rows, metadata.parquet 10 rows"):
        ImageIndex.open(folder)


def test_missing_parts(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no index folder at .*none; build one with `cclm index build"):
        ImageIndex.open(tmp_path / "none")
    (segment(folder) / "image.index").unlink()
    with pytest.raises(FileNotFoundError, match=r"image\.index is missing"):
        ImageIndex.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        ImageIndex.open(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not readable as JSON"), ("[]", "not readable as JSON"), ('{"schema_version": 9}', "schema_version 9"),
     ('{"schema_version": 2}', "fields missing or unknown: budget, created_by")],
)  # fmt: skip
def test_broken_manifest(folder: Path, text: str, message: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ImageIndex.open(folder)


def test_search_parameters_that_do_not_fit(folder: Path) -> None:
    rewrite_segment(folder, search="nprobe=many")
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
        with pytest.raises(ValueError, match="no pictures to index"):
            build_index([], output, ModelSource.of(model))
    assert not (tmp_path / "new").exists() and file_hash(folder / "manifest.json") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "model"]


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, model: Path) -> None:
    broken = vectors(4)
    broken[1, 2] = np.inf
    for embeddings, message in ((broken, "row 10 on: 1 hold NaN"), (np.ones((4, 5)), "width changes from 16 to 5")):
        parts = [Rows.of(entries(10), vectors(10)), Rows.of(entries(14)[10:], embeddings)]
        with pytest.raises(ValueError, match=message):
            build_index(parts, tmp_path / "index", ModelSource.of(model))
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_as_many_entries_as_embeddings() -> None:
    with pytest.raises(ValueError, match="3 entries came with 4"):
        Rows.of(entries(3), vectors(4))


def test_full_disk_keeps_the_former_index(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = file_hash(folder / "manifest.json")
    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(OSError, match="disk full while writing .*: free some space"):
        build_index([Rows.of(entries(4), vectors(4))], folder, ModelSource.of(model))
    assert file_hash(folder / "manifest.json") == before and len(ImageIndex.open(folder)) == ROWS
    assert sorted(path.name for path in folder.parent.iterdir()) == ["index", "model"]
    assert segment(folder).is_dir()  # and no remains beside it


def test_output_that_holds_something_else_is_not_replaced(tmp_path: Path, model: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match="thesis holds chapter.tex, which is not replaced"):
        build_index([Rows.of(entries(4), vectors(4))], tmp_path / "thesis", ModelSource.of(model))
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    with pytest.raises(ValueError, match="chapter.tex is a file"):
        build_index([Rows.of(entries(4), vectors(4))], tmp_path / "thesis" / "chapter.tex", ModelSource.of(model))


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
