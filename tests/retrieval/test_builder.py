"""Segments that are built: what FAISS itself would write, measured, within the budget or told what comes nearest."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cclm.cli import main
from cclm.retrieval import builder, plan, tuning
from cclm.retrieval.builder import write_segment
from cclm.retrieval.embeddings import METADATA_SCHEMA, EmbeddingsManifest
from cclm.retrieval.index import ImageIndex
from cclm.retrieval.metadata import Entry, Rows
from cclm.retrieval.parts import EmbeddedRows, PartTask, write_part
from cclm.retrieval.plan import Budget, check_factory
from cclm.retrieval.segment import OpenSegment
from cclm.retrieval.tuning import text_queries
from tests.retrieval.indexed import entry_of, model_in

ROWS, DIM = 6000, 32


def clustered(rows: int, seed: int = 0) -> np.ndarray:
    """(N, E) of unit norm, about 60 clusters."""
    centres = np.random.default_rng(99).standard_normal((60, DIM))
    generator = np.random.default_rng(seed)
    found = centres[generator.integers(60, size=rows)] + 0.6 * generator.standard_normal((rows, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def parts_of(vectors: np.ndarray, size: int = 2500) -> list[Rows]:
    return [
        Rows.of(
            [Entry(f"k{row}") for row in range(start, min(start + size, len(vectors)))], vectors[start : start + size]
        )
        for start in range(0, len(vectors), size)
    ]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(ROWS)


@pytest.fixture
def approximate(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a few thousand rows were many."""
    monkeypatch.setattr(plan, "EXACT_BELOW", 2000)
    monkeypatch.setattr(plan, "POINTS_PER_CENTROID", 20)


def found_in(folder: Path, segment: object, queries: np.ndarray, k: int = 10) -> np.ndarray:
    return OpenSegment(folder, segment).search(queries, k)[1]


def exact(queries: np.ndarray, vectors: np.ndarray, k: int = 10) -> np.ndarray:
    return np.argsort(-(queries @ vectors.T), axis=1)[:, :k]


def recall(expected: np.ndarray, rows: np.ndarray) -> float:
    return float((expected[:, :, None] == rows[:, None, :]).any(2).mean())


@pytest.mark.parametrize(
    "factory", ["Flat", "SQ8", "IVF16,PQ8x4fs,Refine(SQ8)", "IVF16,PQ8x4fs,RFlat", "PQ8x4fs,RFlat"]
)
def test_a_file_written_in_pieces_is_what_faiss_writes(tmp_path: Path, vectors: np.ndarray, factory: str) -> None:
    index = check_factory(factory, DIM)
    index.train(vectors)
    empty = faiss.clone_index(index)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "whole"))
    blocks = (vectors[start : start + 700] for start in range(0, ROWS, 700))
    builder._write_index(empty, blocks, ROWS, tmp_path)
    assert (tmp_path / "image.index").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.index", "whole"]


def test_few_rows_are_searched_exactly(tmp_path: Path, vectors: np.ndarray) -> None:
    segment = write_segment(parts_of(3.0 * vectors), tmp_path / "s", first_id=70)
    assert (segment.factory, segment.search, set(segment.files)) == ("Flat", "", {"image.index", "metadata.parquet"})
    assert segment.measured is not None and segment.measured.recall == 1
    queries = clustered(40, seed=1)
    assert (found_in(tmp_path / "s", segment, queries) == exact(queries, vectors)).all()
    assert OpenSegment(tmp_path / "s", segment).metadata.ids.tolist() == list(range(70, 70 + ROWS))


@pytest.mark.usefixtures("approximate")
def test_many_rows_reach_the_recall_that_is_asked_for(tmp_path: Path, vectors: np.ndarray) -> None:
    narrow = write_segment(parts_of(vectors), tmp_path / "narrow", budget=Budget(min_recall=0.8))
    wide = write_segment(parts_of(vectors), tmp_path / "wide", budget=Budget(min_recall=0.97))
    assert "x4fs,Refine(SQfp16)" in wide.factory and "nprobe=" in wide.search and "k_factor_rf=" in wide.search
    assert set(wide.files) == {"image.index", "metadata.parquet", "vectors.npy"}
    queries = clustered(300, seed=1)
    for segment, goal in ((narrow, 0.8), (wide, 0.97)):
        reached = recall(exact(queries, vectors), found_in(tmp_path / segment.name, segment, queries))
        assert segment.measured is not None and segment.measured.queries == 500
        assert segment.measured.recall >= goal and reached >= goal - 0.04
        assert reached == pytest.approx(segment.measured.recall, abs=0.05)
    stored = OpenSegment(tmp_path / "wide", wide).vectors(np.array([5, 0, ROWS - 1]))
    assert stored == pytest.approx(vectors[[5, 0, ROWS - 1]], abs=1e-3)


@pytest.mark.usefixtures("approximate")
def test_texts_are_what_is_measured_with_where_there_are_some(tmp_path: Path, vectors: np.ndarray) -> None:
    segment = write_segment(parts_of(vectors), tmp_path / "s", texts=clustered(50, seed=3))
    assert segment.measured is not None and (segment.measured.queries, segment.measured.origin) == (50, "texts")
    other = write_segment(parts_of(vectors), tmp_path / "t")
    assert other.measured is not None and other.measured.origin == "pictures, each without itself"


@pytest.mark.usefixtures("approximate")
def test_it_falls_down_the_ladder_when_memory_ends(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build = builder._build

    def starved(chosen: plan.Plan, path: Path) -> None:
        if "SQfp16" in chosen.factory:
            raise MemoryError
        build(chosen, path)

    monkeypatch.setattr(builder, "_build", starved)
    with caplog.at_level(logging.WARNING):
        segment = write_segment(parts_of(vectors), tmp_path / "s", budget=Budget(min_recall=0.9))
    assert segment.factory.endswith("Refine(SQ8)") and "took more memory than there is" in caplog.text


@pytest.mark.usefixtures("approximate")
def test_what_no_index_reaches_is_told_in_one_line_and_nothing_is_left(tmp_path: Path, vectors: np.ndarray) -> None:
    with pytest.raises(
        ValueError, match=r"no index reaches recall 0.5 within 1e-06 ms .* nearest: \S+ reached recall [01]\.\d+"
    ) as caught:
        write_segment(parts_of(vectors), tmp_path / "s", budget=Budget(min_recall=0.5, max_latency=1e-6), strict=True)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("approximate")
def test_where_none_reaches_it_the_nearest_is_taken_and_tells(
    tmp_path: Path, vectors: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    segment = write_segment(parts_of(vectors), tmp_path / "s", budget=Budget(min_recall=0.8, max_latency=1e-6))
    assert "nearest" in caplog.text and "that one is taken" in caplog.text
    assert set(segment.files) <= {"image.index", "metadata.parquet", "vectors.npy"}
    reached = recall(exact(vectors[:100], vectors), found_in(tmp_path / "s", segment, vectors[:100]))
    assert (
        segment.measured is not None and reached == pytest.approx(segment.measured.recall, abs=0.15) and reached > 0.7
    )


@pytest.mark.usefixtures("approximate")
def test_vectors_without_any_order_are_searched_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_PROBES", (1, 2))  # as if there were many lists
    scattered = np.random.default_rng(0).standard_normal((4000, DIM)).astype(np.float32)
    segment = write_segment(parts_of(scattered), tmp_path / "s", strict=True)
    assert segment.factory == "Flat" and set(segment.files) == {"image.index", "metadata.parquet"}
    assert segment.measured is not None and segment.measured.recall == 1
    unit_norm = scattered / np.linalg.norm(scattered, axis=1, keepdims=True)
    assert (found_in(tmp_path / "s", segment, unit_norm[:50])[:, 0] == np.arange(50)).all()


def test_what_was_chosen_by_hand_stands_and_is_measured(tmp_path: Path, vectors: np.ndarray) -> None:
    budget = Budget(factory="IVF128,SQ8", search="nprobe=1", min_recall=0.95)
    segment = write_segment(parts_of(vectors), tmp_path / "s", budget=budget)
    assert (segment.factory, segment.search) == ("IVF128,SQ8", "nprobe=1")
    assert segment.measured is not None and 0.1 < segment.measured.recall < 0.95
    tuned = write_segment(parts_of(vectors), tmp_path / "t", budget=Budget(factory="IVF128,SQ8"))
    assert tuned.measured is not None and tuned.measured.recall >= 0.95 and tuned.search != "nprobe=1"


@pytest.mark.parametrize(
    "factory", ["HNSW32,PQ8x4", "IDMap,Flat", "IVF16,ITQ16,SH1.5", "ZnLattice2x10_6", "Flat,Refine(Flat)"]
)
def test_factories_that_cannot_work_are_refused_before_the_work(factory: str) -> None:
    with pytest.raises(ValueError, match="cannot be built, stored and searched|has no codes of a known size") as caught:
        builder.planned(ROWS, 64, Budget(factory=factory))
    assert "\n" not in str(caught.value) and "/" not in str(caught.value).replace("Index", "").partition(" (")[0]


@pytest.mark.parametrize(
    "factory", ["IVF5000,PQ16x4fs,Refine(SQ8)", "HNSW8,SQ8", "PQ8", "PQ4x9", "RQ2x4", "IVF9,RaBitQfs4"]
)
def test_factories_that_work(factory: str) -> None:
    assert [plan.factory for plan in builder.planned(ROWS, DIM, Budget(factory=factory))] == [factory]


def test_exact_parts_of_an_index_are_not_stored_twice(tmp_path: Path, vectors: np.ndarray) -> None:
    segment = write_segment(parts_of(vectors), tmp_path / "s", budget=Budget(factory="IVF16,PQ8x4fs,RFlat"))
    assert set(segment.files) == {"image.index", "metadata.parquet"}
    found = OpenSegment(tmp_path / "s", segment).vectors(np.array([9, 1]))
    assert found == pytest.approx(vectors[[9, 1]], abs=1e-3)


@pytest.mark.parametrize("broken", [np.nan, np.inf, 0])
@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQ8"])
def test_vectors_that_cannot_be_searched(tmp_path: Path, vectors: np.ndarray, broken: float, factory: str) -> None:
    changed = vectors.copy()
    changed[3100] = broken
    with pytest.raises(ValueError, match=r"embeddings from row 2500 on: 1 hold NaN, infinity or only zeros"):
        write_segment(parts_of(changed), tmp_path / "s", budget=Budget(factory=factory))
    assert not list(tmp_path.iterdir())


def embeddings_in(folder: Path, vectors: np.ndarray, texts: np.ndarray | None = None) -> Path:
    """As clip-retrieval leaves them."""
    for place, start in enumerate(range(0, len(vectors), 2500)):
        rows = vectors[start : start + 2500]
        for kind in ("img_emb", "text_emb", "metadata"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        np.save(folder / "img_emb" / f"img_emb_{place}.npy", rows.astype("f2"))
        if texts is not None:
            np.save(folder / "text_emb" / f"text_emb_{place}.npy", texts[start : start + 2500].astype("f2"))
        paths = [f"{start + row}.jpg" for row in range(len(rows))]
        pq.write_table(pa.table({"image_path": paths}), folder / "metadata" / f"metadata_{place}.parquet")
    return folder


def test_the_verb_tells_the_plan_then_what_is_reached(
    tmp_path: Path, vectors: np.ndarray, capsys: pytest.CaptureFixture
) -> None:
    folder = embeddings_in(tmp_path / "embeddings", vectors, clustered(ROWS, seed=5))
    model = model_in(tmp_path / "model")
    command = [
        "index",
        "build",
        "--embeddings",
        str(folder),
        "--model",
        model.path,
        "--output",
        str(tmp_path / "index"),
    ]
    command += ["--factory", "IVF32,SQ8", "--min-recall", "0.9", "--max-memory", "2GB"]
    main([*command, "--dry-run"])
    planned = capsys.readouterr().out
    assert "6000 pictures of width 32; asked for: recall 0.9, 2.0 GB" in planned and "IVF32,SQ8" in planned
    assert not (tmp_path / "index").exists()
    main(command)
    told = capsys.readouterr().out
    assert told.startswith(planned) and "(asked for 0.9)" in told and told.rstrip().endswith("of 500 texts")
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert manifest["budget"]["max_memory"] == 2 * 10**9 and manifest["budget"]["factory"] == "IVF32,SQ8"
    assert manifest["segments"][0]["measured"]["recall"] >= 0.9
    assert len(ImageIndex.open(tmp_path / "index")) == ROWS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--factory", "IVF8,Nonsense"], "is no index of width 32"),
        (["--factory", "IVF8,SQ8", "--search", "efSearch=9"], "do not fit an index"),
        (["--max_memory", "lots"], "is no size"),
        (["--min-recall", "most"], "is no number"),
        (["--max-latency", "soon"], "is no duration"),
        (["--max-memory", "1MB"], "give that as --max-memory"),
        (["--source", "photos"], "takes either"),
    ],
)
def test_bad_options_are_refused_before_the_work(
    tmp_path: Path, vectors: np.ndarray, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    folder = embeddings_in(tmp_path / "embeddings", vectors[:100])
    with pytest.raises(SystemExit):
        main(["index", "build", "--embeddings", str(folder), "--output", str(tmp_path / "index"), *options])
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and not (tmp_path / "index").exists()


def test_a_build_that_fails_leaves_the_former_version(tmp_path: Path, vectors: np.ndarray) -> None:
    model = model_in(tmp_path / "model")
    command = ["index", "build", "--model", model.path, "--output", str(tmp_path / "index"), "--embeddings"]
    main([*command, str(embeddings_in(tmp_path / "some", vectors[:100]))])
    before = (tmp_path / "index" / "manifest.json").read_bytes()
    broken = vectors[:100].copy()
    broken[7] = 0
    with pytest.raises(SystemExit):
        main([*command, str(embeddings_in(tmp_path / "broken", broken))])
    assert (tmp_path / "index" / "manifest.json").read_bytes() == before
    assert len(ImageIndex.open(tmp_path / "index")) == 100


def test_embeddings_are_indexed_without_torch_or_pandas(tmp_path: Path, vectors: np.ndarray) -> None:
    """They would take most of a memory that is to be held."""
    rows = Rows.of([entry_of(f"k{number}") for number in range(200)], vectors[:200])
    columns = {name: [None] * 200 for name in ("image_path", "caption", "language")}
    columns |= {name: rows.entries[name] for name in rows.entries.column_names}
    embedded = EmbeddedRows(pa.table(columns, METADATA_SCHEMA), rows.vectors)
    write_part(tmp_path / "embeddings", PartTask("0", "made up", ""), embedded, {"dtype": "float32"}, Counter())
    manifest = EmbeddingsManifest("model", "0" * 64, DIM, "float32", 200, 200, 1, ".", ["made up"], "sample")
    manifest.write(tmp_path / "embeddings")
    command = ["index", "build", "--embeddings", str(tmp_path / "embeddings"), "--output", str(tmp_path / "index")]
    loaded = "print(sorted({'torch', 'pandas'} & set(sys.modules)))"
    program = f"import sys; from cclm.cli import main; main({command!r}); {loaded}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_build_holds_the_memory_that_it_is_given(tmp_path: Path) -> None:
    """Of 120,000 vectors, where tuning would hold as much as all of them."""
    generator = np.random.default_rng(0)
    many = generator.standard_normal((200, 64))[generator.integers(200, size=120_000)]
    many = (many + 0.6 * generator.standard_normal(many.shape)).astype(np.float32)
    folder, model = embeddings_in(tmp_path / "embeddings", many), model_in(tmp_path / "model")
    command = ["index", "build", "--embeddings", str(folder), "--model", model.path, "--output", str(tmp_path / "out")]
    command += ["--max-memory", "240MB"]
    # its own peak: getrusage would count what the process that starts it holds
    program = f"from cclm.cli import main; main({command!r}); print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    held = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("VmHWM:")]
    assert len(held) == 1 and 50_000 < held[0] <= 240 * 10**6 / 1024


def test_text_queries_come_from_all_parts(tmp_path: Path, vectors: np.ndarray) -> None:
    texts = clustered(ROWS, seed=5)
    folder = embeddings_in(tmp_path / "embeddings", vectors, texts)
    found = text_queries(folder, DIM)
    assert found is not None and found.shape == (500, DIM)
    rows = (found @ texts.T).argmax(1)
    assert len(set(rows // 2500)) == 3 and (np.diff(rows) > 0).all()
    assert text_queries(embeddings_in(tmp_path / "none", vectors[:10]), DIM) is None
    with pytest.raises(ValueError, match="not all of width 7"):
        text_queries(folder, 7)
