"""The recipes of text alone: parallel_text and wikimatrix."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path

import pytest

from data_recipes import parallel_text, wikimatrix


def test_parallel_text_reads_tables_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.tsv").write_text("en\tja\n two \t二\r\n", encoding="utf-8")
    with gzip.open(tmp_path / "a.x.tsv.gz", "wt", encoding="utf-8") as handle:
        handle.write('en\tde\tpt-br\none\teins\tum\n"q"\t\tdois\n')
    found = list(parallel_text.records(tmp_path))
    assert {split for split, _ in found} == {"train"}
    assert [(record.key, record.parallel) for _, record in found] == [
        ("a_x-2", {"en": "one", "de": "eins", "pt-br": "um"}),
        ("a_x-3", {"en": '"q"', "pt-br": "dois"}),
        ("b-2", {"en": "two", "ja": "二"}),
    ]


def test_parallel_text_counts_bad_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("en\tde\na\tb\tc\nalone\t\ngood\tgut\n\n")
    assert [record.parallel["de"] for _, record in parallel_text.records(path, split="dev")] == ["gut"]
    assert "2 left out, first line 2: not 2 cells" in caplog.text
    assert "1 left out, first line 3: fewer than two languages" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A dog.\tEin Hund.\n", r"must name at least two languages, such as en<TAB>de, and reads 'A dog"),
        (b"en\n", r"must name at least two languages"),
        (b"", r"must name at least two languages"),
        (b"en\ten\n", r"names a language twice"),
        (b"en\tde\nx\t\xff\n", r"t\.tsv is cut, damaged or no UTF-8 text"),
    ],
)
def test_parallel_text_names_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(parallel_text.records(tmp_path))


def test_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.tsv\[\.gz\] file and no folder that holds one"):
        list(parallel_text.records(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no WikiMatrix\.xx-yy\.tsv\[\.gz\] and no folder that holds one"):
        list(wikimatrix.records(tmp_path))


def test_real_captions(shared: Path) -> None:
    path = shared / "parallel" / "captions_en-de-fr-cs-pt.tsv.gz"
    first = [record for _, record in islice(parallel_text.records(path), 100)]
    assert all(set(record.parallel) == {"en", "de", "fr", "cs", "pt"} for record in first)


def test_wikimatrix_keeps_what_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with gzip.open(tmp_path / "WikiMatrix.de-en.tsv.gz", "wt", encoding="utf-8") as handle:
        handle.write("1.2\tEin Hund.\tA dog.\n1.03\tNein.\tNo.\nx\ta\tb\n1.1\tleer\t\nnan\ta\tb\n1.04\tJa.\tYes.\n")
    found = [record for _, record in wikimatrix.records(tmp_path)]
    assert [(record.key, record.parallel) for record in found] == [
        ("de-en-1", {"de": "Ein Hund.", "en": "A dog."}),
        ("de-en-6", {"de": "Ja.", "en": "Yes."}),
    ]
    assert "2 left out, first line 2: score below threshold=1.04" in caplog.text
    assert "1 left out, first line 3: no score" in caplog.text
    assert "1 left out, first line 4: not a score and two sentences" in caplog.text
    assert len(list(wikimatrix.records(tmp_path, threshold=1.0))) == 3


def test_wikimatrix_needs_languages_in_the_name(tmp_path: Path) -> None:
    (tmp_path / "WikiMatrix.tsv").write_text("")
    with pytest.raises(ValueError, match=r"not named like WikiMatrix\.de-en\.tsv\.gz"):
        list(wikimatrix.records(tmp_path / "WikiMatrix.tsv"))
