"""`cclm embed` on folders and shards: every row is its picture's and its caption's; what is left out is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.types import Record
from tests.data.conftest import text_records
from tests.evaluation.conftest import picture

Rows = list[tuple[dict, np.ndarray, np.ndarray | None]]


@pytest.fixture(scope="module")
def pretrained(model: CCLMModel, processor: CCLMProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures, of which two cannot be read, in two folders; two of the others have captions."""
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    for name, colour in (("b.png", "red"), ("deep/a.PNG", "blue"), ("deep/er/c.png", "green")):
        (folder / name).write_bytes(picture(colour, "wide", 0))
    (folder / "b.txt").write_text("a wide red block\n", encoding="utf-8")
    (folder / "deep" / "a.txt").write_text("a wide blue block", encoding="utf-8")
    (folder / "cut.jpg").write_bytes(picture("red", "tall", 0)[:60])
    (folder / "deep" / "fake.webp").write_text("no picture")
    (folder / "notes.md").write_text("not for us")
    return folder


def embed(model: Path, source: Path, output: Path, *more: str) -> Rows:
    main(["embed", "--model", str(model), "--source", str(source), "--output", str(output), *more])
    rows: Rows = []
    for path in sorted(output.glob("metadata/*.parquet")):
        number = path.stem.rpartition("_")[2]
        images = np.load(output / "img_emb" / f"img_emb_{number}.npy")
        texts = output / "text_emb" / f"text_emb_{number}.npy"
        known = pq.read_table(path).to_pylist()
        rows += zip(known, images, np.load(texts) if texts.exists() else [None] * len(known), strict=True)
    return rows


def test_a_folder_of_pictures(pretrained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = CCLMModel.from_pretrained(pretrained)
    rows = embed(pretrained, photos, tmp_path / "out", "--encoding.image_batch", "2", "--dtype", "float32")
    assert [about["image_path"] for about, *_ in rows] == [
        str(photos / name) for name in ("b.png", "deep/a.PNG", "deep/er/c.png")
    ]
    assert [about["caption"] for about, *_ in rows] == ["a wide red block", "a wide blue block", None]
    assert [about["language"] for about, *_ in rows] == ["en", "en", None]
    for about, image, text in rows:
        assert text is None and np.allclose(image, model.embed_images(about["image_path"])[0], atol=1e-5)
    told = capsys.readouterr().out
    assert "3 rows of width 8, float32, in 1 part(s)" in told and "left out: 2 x image not readable" in told


def test_captions_are_embedded_row_by_row(
    pretrained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = CCLMModel.from_pretrained(pretrained)
    rows = embed(pretrained, photos, tmp_path / "out", "--text", "--caption_language", "de")
    assert [about["language"] for about, *_ in rows] == ["de", "de"]
    for about, image, text in rows:
        assert image.dtype == text.dtype == np.float16
        assert np.allclose(image, model.embed_images(about["image_path"])[0], atol=1e-3)
        assert np.allclose(text, model.embed_texts(about["caption"])[0], atol=1e-3)
    assert "left out: 3 x image without a text in any language" in capsys.readouterr().out


def test_shards_in_several_languages_and_parts(
    pretrained: Path, records: list[Record], processor: CCLMProcessor, tmp_path: Path
) -> None:
    model = CCLMModel.from_pretrained(pretrained)
    write_shards(records, tmp_path / "dev", samples_per_shard=9)
    options = ("--text", "--languages", "fr,de", "--encoding.image_batch", "5")
    rows = embed(pretrained, tmp_path / "dev", tmp_path / "out", *options)
    expected = [
        (record.key, language, caption)
        for record in records
        for language, captions in (("fr", [record.parallel["fr"]]), ("de", record.captions.get("de", [])))
        for caption in captions
    ]
    assert [(a["image_path"], a["language"], a["caption"]) for a, *_ in rows] == expected and len(rows) == 36
    assert len(list((tmp_path / "out" / "img_emb").iterdir())) == 3
    by_key = {record.key: record for record in records}
    for number, (about, image, text) in enumerate(rows):
        (tmp_path / "one.png").write_bytes(by_key[about["image_path"]].image)
        if number % 5 == 0:
            assert np.allclose(image, model.embed_images(tmp_path / "one.png")[0], atol=1e-3)
        assert np.allclose(text, model.embed_texts(about["caption"])[0], atol=1e-3)


def test_sources_and_options_that_are_refused(
    pretrained: Path, photos: Path, records: list[Record], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    write_shards(records[:3], tmp_path / "data" / "dev")
    write_shards(text_records(4), tmp_path / "texts")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"")
    for source, more, message in (
        ("empty", (), "no jpg, png or webp file and no .tar shard in"),
        ("nowhere", (), "no shard at"),
        ("data", (), "give one of its splits: dev"),
        ("texts", (), "nothing to embed; left out: 1 x sample without a picture"),
        ("broken", (), "nothing to embed; left out: 1 x image not readable"),
        ("data/dev", ("--languages", "sw"), "no texts in language sw"),
        (
            "photos",
            ("--text", "--languages", "fr"),
            "nothing to embed; left out: 5 x image without a text in fr",
        ),
        ("photos", ("--dtype", "int8"), "dtype is 'int8'"),
        ("photos", ("--encoding.image_batch", "0"), "image_batch is 0"),
        ("photos", ("--output", str(photos)), "holds b.png, which is not replaced"),
    ):
        with pytest.raises(SystemExit) as stop:
            embed(pretrained, tmp_path / source, tmp_path / "out", *more)
        last = capfd.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2 and last.startswith("cclm: ") and message in last, last
        if "nothing to embed" in last or "out/" in last:
            shutil.rmtree(tmp_path / "out")
        assert not (tmp_path / "out").exists()
