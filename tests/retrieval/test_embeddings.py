"""The layout of embedding folders: names, types, parts; rows stay together; whole or absent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cclm.retrieval.embeddings import EmbeddedRows, write_embeddings


def batches(count: int, size: int = 4, text: bool = True) -> Iterator[EmbeddedRows]:
    """Row n has n / 64 in its embedding: what float16 holds exactly."""
    for start in range(0, count, size):
        numbers = range(start, min(start + size, count))
        values = np.repeat(np.array(numbers, dtype=np.float32)[:, None] / 64, 3, axis=1)
        captions = [None if n % 5 == 4 else f"caption {n}" for n in numbers]
        languages = [caption and "en" for caption in captions]
        yield EmbeddedRows([f"p{n}.jpg" for n in numbers], captions, languages, values, -values if text else None)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("rows", "per_part", "parts"), [(23, 100, 1), (23, 10, 3), (23, 2, 12), (20, 10, 2)])
def test_rows_stay_together_over_any_number_of_parts(tmp_path: Path, rows: int, per_part: int, parts: int) -> None:
    written = write_embeddings(batches(rows), tmp_path / "out", rows_per_part=per_part)
    assert (written.rows, written.parts, written.width) == (rows, parts, 3)
    numbers = [f"{part:0{len(str(parts))}d}" for part in range(parts)]
    kinds = (("img_emb", "npy"), ("metadata", "parquet"), ("text_emb", "npy"))
    assert names(tmp_path / "out") == [f"{kind}/{kind}_{n}.{end}" for kind, end in kinds for n in numbers]
    row = 0
    for number in numbers:  # in the order of the names, as readers of the layout take them
        images = np.load(tmp_path / "out" / "img_emb" / f"img_emb_{number}.npy")
        texts = np.load(tmp_path / "out" / "text_emb" / f"text_emb_{number}.npy")
        known = pq.read_table(tmp_path / "out" / "metadata" / f"metadata_{number}.parquet").to_pylist()
        assert images.dtype == texts.dtype == np.float16 and len(images) == len(texts) == len(known) <= per_part
        for image, text, about in zip(images, texts, known, strict=True):
            assert image.tolist() == [row / 64] * 3 and text.tolist() == [-row / 64] * 3
            caption = None if row % 5 == 4 else f"caption {row}"
            assert about == {"image_path": f"p{row}.jpg", "caption": caption, "language": caption and "en"}
            row += 1
    assert row == rows


def test_without_texts_in_single_precision(tmp_path: Path) -> None:
    write_embeddings(batches(5, text=False), tmp_path / "out", dtype="float32")
    assert names(tmp_path / "out") == ["img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"]
    assert np.load(tmp_path / "out" / "img_emb" / "img_emb_0.npy").dtype == np.float32


def test_a_failure_leaves_the_former_folder(tmp_path: Path) -> None:
    def failing() -> Iterator[EmbeddedRows]:
        yield from batches(8)
        raise ValueError("the last shard is damaged")

    def broken() -> Iterator[EmbeddedRows]:
        yield from batches(8)
        yield EmbeddedRows(["x"], [None], [None], np.full((1, 3), np.nan, dtype=np.float32), np.zeros((1, 3)))

    write_embeddings(batches(3), tmp_path / "out")
    before = names(tmp_path / "out")
    for rows, message in (
        (failing(), "the last shard"),
        (broken(), "img_emb from row 8 on: there is NaN"),
        ((), "no image to embed"),
    ):
        with pytest.raises(ValueError, match=message):
            write_embeddings(rows, tmp_path / "out", rows_per_part=4)
    assert names(tmp_path / "out") == before and [path.name for path in tmp_path.iterdir()] == ["out"]
    write_embeddings(batches(3), tmp_path / "out", rows_per_part=1)  # its own it does replace
    assert len(names(tmp_path / "out")) == 9


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match="thesis holds chapter.tex, which is not replaced"):
        write_embeddings(batches(3), tmp_path / "thesis")
    with pytest.raises(ValueError, match="dtype is 'int8'; choose float16 or float32"):
        write_embeddings(batches(3), tmp_path / "out", dtype="int8")
    with pytest.raises(ValueError, match="rows_per_part is 0; give 1 or more"):
        write_embeddings(batches(3), tmp_path / "out", rows_per_part=0)
    assert not (tmp_path / "out").exists()
