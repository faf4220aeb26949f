"""Conditions on pictures: what they find, against the same said in Python; and all else is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from cclm.retrieval import index as index_module
from cclm.retrieval.filters import COLUMNS, MAX_DEPTH, MAX_PARTS, Condition
from cclm.retrieval.index import ImageIndex
from cclm.retrieval.living import IndexWriter
from cclm.retrieval.metadata import Entry, Metadata, MetadataWriter, table_of
from cclm.retrieval.plan import Budget
from tests.retrieval.indexed import DIM, index_in, names, rows_of, vector_of

ENTRIES = [
    Entry("a", {"de": ["ein Hund\nund ein Ball"], "en": ["a dog", "100% dog_s"]}, 0, "holiday/a.jpg", None, 10,
          640, 480, datetime(2024, 5, 1, 12, 30), "aa"),
    Entry("b", {}, 1, "work/b.jpg", 512, None, None, 100, None, None),
    Entry("C", {"fr": ["un chat l'été"], "de": []}, 0, "c's.jpg", None, 5, 500, 500, datetime(2023, 12, 31), "cc"),
]  # fmt: skip
CASES = [
    ("lang = 'de' and width > 500", "a"),
    ("path like 'holiday/%'", "a"),
    ("path not like 'holiday/%'", "b C"),
    ("path = 'c''s.jpg'", "C"),
    ("path like '%.JPG'", ""),
    ("path ilike '%.JPG'", "a b C"),
    ("path like '_oliday%'", "a"),
    ("date >= '2024-05-01'", "a"),
    ("date = '2024-05-01'", "a"),
    ("date > '2024-05-01'", ""),
    ("date <= '2024-05-01'", "a C"),
    ("date < '2024-05-01'", "C"),
    ("date = '2024-05-01 12:30'", "a"),
    ("date = '2024-05-01T12:30:01'", ""),
    ("date = '2023'", "C"),
    ("date != '2023'", "a"),
    ("date in ('2023-12', '2024-04')", "C"),
    ("date between '2023-12-31' and '2024-05-01'", "a C"),
    ("not date between '2024' and '2025'", "C"),
    ("date is null", "b"),
    ("width in (640, 500.0)", "a C"),
    ("width not in (640)", "C"),
    ("width is null or size is null", "b"),
    ("width is not null", "a C"),
    ("width > height", "a"),
    ("height = width", "C"),
    ("499.5 < width", "a C"),
    ("500 >= width", "C"),
    ("width = -500", ""),
    ("width > 99999999999999999999999999", ""),
    ("Width <> 640", "C"),
    ("width between 500 and 600", "C"),
    ("width not between 500 and 600", "a"),
    ("caption like '%dog%'", "a"),
    ("caption like 'ein%Ball'", "a"),
    (r"caption like '100\%%'", "a"),
    ("caption in ('a dog', 'x')", "a"),
    ("caption is null", "b"),
    ("caption ilike '%DOG%' or lang = 'fr'", "a C"),
    ("lang != 'de'", "b"),
    ("lang not in ('fr', 'en')", "b"),
    ("not (lang = 'fr' or lang is null)", "a"),
    ("key = 'a' or (key = 'b' or key = 'C')", "a b C"),
    ("key >= 'a'", "a b"),
    ("id = 1", "b"),
    ("root = 0 and sha256 in ('cc', 'aa')", "a C"),
    ("key in ('a') -- a remark", "a"),
]


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Metadata:
    path = tmp_path_factory.mktemp("filters") / "metadata.parquet"
    writer = MetadataWriter(path, 0)
    writer.write(table_of(ENTRIES))
    writer.close()
    return Metadata(path)


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_what_a_condition_finds(metadata: Metadata, text: str, expected: str) -> None:
    rows = Condition.parse(text).rows(metadata)
    assert rows.dtype == bool and rows.shape == (3,)
    assert " ".join(ENTRIES[row].key for row in np.flatnonzero(rows)) == expected


def test_a_language_without_a_text_is_no_caption(tmp_path: Path) -> None:
    writer = MetadataWriter(tmp_path / "metadata.parquet", 0)
    writer.write(table_of([Entry("a", {"en": []}), Entry("b", {"en": ["x"], "de": []}), Entry("c")]))
    writer.close()
    metadata = Metadata(tmp_path / "metadata.parquet")
    expected = {"caption is null": [1, 0, 1], "caption is not null": [0, 1, 0], "lang is null": [0, 0, 1]}
    for text, rows in expected.items():
        assert Condition.parse(text).rows(metadata).tolist() == list(map(bool, rows)), text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is none"),
        (" \n", "there is none"),
        ("width >", "is not understood"),
        ("key = 'a", "is not understood"),
        ("colour = 'red'", "no column 'colour'"),
        ('lang = "de"', r"no column 'de' \(texts take single quotes\)"),
        ("width > 'a'", "width is compared with .*, it takes a number"),
        ("key = 5", "it takes a text in single quotes"),
        ("date > 5", "it takes a date such as '2024-05-01'"),
        ("date = 'yesterday'", "it takes a date"),
        ("date = '0000'", "it takes a date"),
        ("date = '9999-12-31'", "it takes a date"),
        ("key = null", "it takes a text"),
        ("width like '5%'", "width is no text"),
        ("lang = path", "lang and path cannot be compared"),
        ("size = key", "size and key cannot be compared"),
        ("key is 'a'", "`is` goes with null alone"),
        ("key in ()", "lists no values"),
        ("key in ('a', width)", "key is compared with 'width'"),
        ("1 = 1", "compares no column"),
        ("width", "is no condition"),
        ("'a'", "is not allowed|is no condition"),
        ("lower(path) = 'a'", "compares no column"),
        ("path(1)", "is no condition"),
        ("cast(width as int) = 1", "'as' is not allowed"),
        ("width::int = 1", "is not allowed"),
        ("key in (select key from x)", "'select' is not allowed"),
        ("exists (select 1)", "is not allowed"),
        ("key = 'a'; drop table x", "is not allowed"),
        ("case when width then 1 end", "is not allowed"),
        ("a.width = 1", "is not allowed"),
        ("width + 1 = 2", "is not allowed"),
        ("width = $1", "no column|is not allowed"),
        ("key like any ('a')", "is not allowed"),
        ("key like 'a' escape '!'", "is not allowed"),
        ("width between symmetric 1 and 2", "is not allowed"),
        ("date > date '2024-01-01'", "it takes a date"),
        ("(" * (MAX_DEPTH + 1) + "width = 1" + ")" * (MAX_DEPTH + 1), "brackets or nots in one another"),
        ("not " * 4000 + "width = 1", "brackets or nots in one another"),
        ("(" * 9000, "brackets or nots in one another"),
        (" or ".join(["width = 1"] * (MAX_PARTS + 2)), "parts joined by and, or"),
        ("key = '" + "x" * 20_000 + "'", "characters; 20000 are allowed"),
    ],
)  # fmt: skip
def test_what_is_no_condition(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Condition.parse(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    if "characters" not in message:
        assert all(column in str(caught.value) for column in COLUMNS)


def test_what_is_just_allowed(metadata: Metadata) -> None:
    for text in (
        "(" * MAX_DEPTH + "width = 640" + ")" * MAX_DEPTH,
        "not " * MAX_DEPTH + "width = 640",
        " or ".join(["width = 640"] * MAX_PARTS),
        f"id in ({','.join(map(str, [0, *range(9, 3000)]))})",
    ):
        assert Condition.parse(text).rows(metadata).tolist() == [True, False, False]


FILTERS: list[tuple[str, Callable[[Entry], bool]]] = [
    ("lang = 'de' and width > 500", lambda e: "de" in e.captions and (e.width or 0) > 500),
    ("path like 'holiday/%' and not lang = 'fr'", lambda e: e.path.startswith("holiday/") and "fr" not in e.captions),
    ("date >= '2024-12' or caption like '%k00_1'", lambda e: e.date >= datetime(2024, 12, 1)
     or any(text[-5:-2] + text[-1] == "k001" for texts in e.captions.values() for text in texts)),
    ("width is null", lambda e: e.width is None),
    ("key = 'nothing'", lambda e: False),
]  # fmt: skip


@pytest.mark.parametrize("budget", [Budget(), Budget(factory="IVF8,Flat", search="nprobe=8")])
def test_filtered_search_is_brute_force_over_the_filtered_rows(tmp_path: Path, budget: Budget) -> None:
    folder = index_in(tmp_path, names(0, 400), budget)
    with IndexWriter(folder) as writer:
        writer.append([rows_of(names(400, 500))])
        writer.delete(keys=names(100, 150) + names(450, 460))
        writer.replace([rows_of(names(0, 20), 1)])
    known = [entry for segment in ImageIndex.open(folder).segments for entry in segment.metadata.entries(range(
        len(segment.metadata)))]  # fmt: skip
    index = ImageIndex.open(folder)
    assert [segment.segment.factory for segment in index.segments] == [budget.factory or "Flat", "Flat", "Flat"]
    live = np.concatenate([s.live if s.live is not None else np.ones(len(s.metadata), bool) for s in index.segments])
    ids = np.concatenate([segment.metadata.ids for segment in index.segments])
    vectors = np.stack([vector_of(entry.key, int(entry.size or 0) - 1000 - sum(entry.key.encode())) for entry in known])
    queries = np.random.default_rng(0).standard_normal((8, DIM)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for text, fulfils in FILTERS:
        among = index.select(text)
        expected = live & np.array([fulfils(entry) for entry in known])
        assert np.array_equal(np.concatenate(among), expected), text
        scores = np.where(expected, queries @ vectors.T, -np.inf)
        order = np.argsort(-scores, axis=1)[:, :10]
        best = np.where(np.take_along_axis(scores, order, 1) > -np.inf, ids[order], -1)
        assert np.array_equal(index.nearest(queries, 10, among).ids, best), text
        count = min(10, int(expected.sum()))
        assert [len(hits) for hits in index.search(queries, 10, among)] == [count] * 8


def test_a_selection_is_made_once_per_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = index_in(tmp_path, names(0, 50))
    index = ImageIndex.open(folder)
    first = index.select("width > 500")
    assert index.select("width > 500") is first
    for number in range(index_module._KEPT_SELECTIONS):
        index.select(f"width > {number}")
    again = index.select("width > 500")
    assert again is not first and np.array_equal(again[0], first[0])
    with IndexWriter(folder) as writer:
        writer.delete(where="width > 500")
    assert not ImageIndex.open(folder, index).select("width > 500")[0].any()
