"""Entries in their Parquet file: what is read, how little of it, and files that are none of ours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cclm.retrieval.metadata import SCHEMA, Entry, Metadata, MetadataWriter, Outline, table_of
from tests.retrieval.indexed import DIM, entry_of, names, rows_of

KEYS = names(0, 2000)


def written(path: Path, keys: list[str], first_id: int = 0) -> Path:
    writer = MetadataWriter(path, first_id)
    for start in range(0, len(keys), 700):
        writer.write(table_of([entry_of(key) for key in keys[start : start + 700]]))
    writer.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("metadata") / "metadata.parquet", KEYS, 1000)


def test_entries_come_back_in_the_order_asked_for(path: Path) -> None:
    metadata = Metadata(path)
    rows = np.random.default_rng(0).integers(0, 2000, 300)
    assert metadata.entries(rows) == [entry_of(KEYS[row]) for row in rows]
    assert metadata.entries([]) == [] and metadata.entries([1999, 0, 1999]) == [
        entry_of(KEYS[r]) for r in (1999, 0, 1999)
    ]
    assert metadata.ids.tolist() == list(range(1000, 3000)) and len(metadata) == 2000


def test_few_groups_of_rows_are_read_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cclm.retrieval.metadata as module

    monkeypatch.setattr(module, "_CACHED_GROUPS", 2)
    monkeypatch.setattr(module, "_GROUP_ROWS", 600)
    real, read = pq.ParquetFile.read_row_group, []

    def noted(file: pq.ParquetFile, group: int, **options: object) -> pa.Table:
        read.append(group)
        return real(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    metadata = Metadata(written(tmp_path / "m", KEYS))
    assert metadata._file.num_row_groups == 4  # though rows come 700 at a time
    metadata.entries([0, 1, 2, 599])
    metadata.entries([3])
    assert read == [0]
    metadata.entries([750, 1500, 4])
    assert read == [0, 1, 2]
    metadata.entries([1201, 601])
    assert read == [0, 1, 2]
    metadata.entries([5])
    assert read == [0, 1, 2, 0]


def test_tables_cover_all_rows_in_order(path: Path) -> None:
    metadata = Metadata(path)
    for size in (1, 300, 512, 1999, 10_000):
        if size == 1:
            assert metadata.table(700, 701, ("key",))["key"].to_pylist() == [KEYS[700]]
            continue
        tables = list(metadata.tables(("key", "captions", "date"), size))
        assert [key for table in tables for key in table["key"].to_pylist()] == KEYS
        assert all(table.schema.field("date").type == pa.timestamp("s") for table in tables)
    assert metadata.table(5, 5).num_rows == 0 and metadata.table(0, 2000).schema == SCHEMA


def test_rows_of_keys(path: Path, tmp_path: Path) -> None:
    metadata = Metadata(path)
    assert metadata.rows_of(["k1999", "nothing", "k0000", "k1999"]).tolist() == [1999, -1, 0, 1999]
    assert metadata.rows_of([]).tolist() == []
    assert metadata.rows_of(pa.chunked_array([["k0003"], ["k0001", "x"]])).tolist() == [3, 1, -1]
    assert Metadata(written(tmp_path / "m", ["a", "b", "a"])).rows_of(["a"]).tolist() == [2]


def test_threads_share_one_file(path: Path) -> None:
    metadata = Metadata(path)

    def look_up(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, 2000, 40)
        return metadata.entries(rows) == [entry_of(KEYS[row]) for row in rows] and metadata.rows_of(["k0007"])[0] == 7

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look_up, range(64)))


def test_keys_are_checked_over_all_parts() -> None:
    outline = Outline.of([rows_of(["a", "b"]), rows_of(["c"])])
    outline.check_unique()
    assert outline.keys.to_pylist() == ["a", "b", "c"] and outline.widths == {DIM}
    with pytest.raises(ValueError, match=r"2 keys are there more than once \(first: 'b'\)"):
        Outline.of([rows_of(["a", "b", "c"]), rows_of(["c", "b", "d"])]).check_unique()
    assert len(Outline.of([]).keys) == 0


def changed(path: Path, target: Path, change: str) -> Path:
    table = pq.read_table(path)
    ids = table["id"].to_numpy().copy()
    match change:
        case "descending":
            ids = ids[::-1]
        case "repeated":
            ids[7] = ids[6]
        case "negative":
            ids -= 1003
        case "no id":
            pq.write_table(table.drop_columns(["id"]), target)
            return target
        case "another type":
            column = table.schema.get_field_index("width")
            pq.write_table(table.set_column(column, "width", table["width"].cast(pa.string())), target)
            return target
        case "one more":
            pq.write_table(table.append_column("pickle", pa.array([b"x"] * 2000)), target)
            return target
        case "nulls":
            pq.write_table(table.set_column(0, "id", pa.array([None, *ids[1:].tolist()], pa.int64())), target)
            return target
        case "no parquet":
            target.write_bytes(b"PAR1 nothing PAR1")
            return target
        case "cut":
            target.write_bytes(path.read_bytes()[:-100])
            return target
    pq.write_table(table.set_column(0, "id", pa.array(ids)), target)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("descending", "ids are negative, repeated or do not ascend"),
        ("repeated", "ids are negative, repeated or do not ascend"),
        ("negative", "ids are negative, repeated or do not ascend"),
        ("nulls", "not as many ids"),
        ("no id", "columns missing, unknown or of another type: id$"),
        ("another type", "columns missing, unknown or of another type: width$"),
        ("one more", "columns missing, unknown or of another type: pickle$"),
        ("no parquet", "is no readable Parquet file"),
        ("cut", "is no readable Parquet file"),
    ],
)
def test_files_of_others_are_refused(path: Path, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Metadata(changed(path, tmp_path / "changed.parquet", change))
    assert "\n" not in str(caught.value)


def test_captions_and_dates_that_are_missing(tmp_path: Path) -> None:
    writer = MetadataWriter(tmp_path / "m", 0)
    writer.write(table_of([Entry("a")]))
    writer.close()
    assert Metadata(tmp_path / "m").entries([0]) == [Entry("a")]
