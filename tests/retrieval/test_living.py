"""An index that changes: what each change leaves, what is refused, and what readers see meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from cclm.retrieval.index import ImageIndex, build_index
from cclm.retrieval.living import IndexWriter
from cclm.retrieval.metadata import Entry, Rows
from cclm.retrieval.plan import Budget
from tests.retrieval.indexed import DIM, contents, index_in, model_in, names, rows_of, vector_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return index_in(tmp_path, names(0, 100))


def stored(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".lock"}


def named(folder: Path) -> set[str]:
    segments = json.loads((folder / "manifest.json").read_text())["segments"]
    return {"manifest.json"} | {f"segments/{s['name']}/{file}" for s in segments for file in s["files"]}


def test_every_change_is_a_version_that_holds_what_it_should(folder: Path) -> None:
    expected = dict.fromkeys(names(0, 100), 0)
    with IndexWriter(folder) as writer:
        writer.append([rows_of(names(100, 120)), rows_of(names(120, 150))])
        expected |= dict.fromkeys(names(100, 150), 0)
        assert contents(ImageIndex.open(folder)) == expected
        assert writer.delete(keys=names(90, 110)) == 20
        expected = {key: version for key, version in expected.items() if key not in names(90, 110)}
        assert contents(ImageIndex.open(folder)) == expected
        writer.replace([rows_of(names(80, 95) + names(200, 203), 1)])
        expected |= dict.fromkeys(names(80, 95) + names(200, 203), 1)
        assert contents(ImageIndex.open(folder)) == expected
        before = ImageIndex.open(folder)
        manifest = writer.compact()
        assert contents(ImageIndex.open(folder)) == expected
    assert manifest.version == 5 and manifest.rows == len(expected) == len(ImageIndex.open(folder))
    assert len(manifest.segments) == 1 and manifest.segments[0].rows == manifest.rows  # deleted rows are gone
    after, keys = ImageIndex.open(folder), list(expected)
    assert np.array_equal(after.ids_of(keys), before.ids_of(keys))  # ids stay
    assert manifest.next_id == 168 and after.ids_of(["k0095"]).tolist() == [-1]
    with IndexWriter(folder) as writer:
        assert writer.compact() == manifest  # nothing to do
        writer.append([rows_of(["k0095"])])
    assert ImageIndex.open(folder).ids_of(["k0095"]).tolist() == [168]  # no id is used twice


def test_search_finds_the_new_and_not_the_deleted(folder: Path) -> None:
    queries = np.stack([vector_of("k0005"), vector_of("k0120"), vector_of("k0005", 1)])
    with IndexWriter(folder) as writer:
        writer.append([rows_of(names(100, 150))])
        writer.replace([rows_of(["k0005"], 1)])
        writer.delete(keys=["k0120"])
    hits = ImageIndex.open(folder).search(queries, 3)
    assert hits[2][0].entry.key == "k0005" and hits[2][0].score > 0.999
    assert hits[0][0].score < 0.999 and "k0120" not in {hit.entry.key for found in hits for hit in found}


def test_keys_that_are_there_twice_are_refused(folder: Path, tmp_path: Path) -> None:
    before = stored(folder)
    with IndexWriter(folder) as writer:
        with pytest.raises(ValueError, match=r"2 of 4 pictures are in index .*first: 'k0098'.*--replace"):
            writer.append([rows_of(names(98, 102))])
        with pytest.raises(ValueError, match=r"1 keys are there more than once \(first: 'k0200'\); .*--replace"):
            writer.append([rows_of(["k0200", "k0201"]), rows_of(["k0200"])])
        with pytest.raises(ValueError, match="1 of 2 pictures have no key"):
            writer.append([Rows.of([Entry("a"), Entry("")], np.ones((2, DIM)))])
    with pytest.raises(ValueError, match=r"1 keys are there more than once \(first: 'k0001'\)"):
        build_index([rows_of(["k0001", "k0001"])], tmp_path / "new", model_in(tmp_path / "model"))
    assert stored(folder) == before and not (tmp_path / "new").exists()


def test_of_several_given_with_one_key_the_last_replaces(folder: Path) -> None:
    parts = [rows_of(["k0001", "k0300"], 1), rows_of(["k0001"], 2), rows_of(["k0001", "k0002"], 3)]
    with IndexWriter(folder) as writer:
        writer.replace(parts)
        expected = dict.fromkeys(names(0, 100), 0) | {"k0001": 3, "k0300": 1, "k0002": 3}
        assert contents(ImageIndex.open(folder)) == expected
        writer.replace([rows_of(["k0001"], 4)])
        writer.compact()
    assert contents(ImageIndex.open(folder)) == expected | {"k0001": 4}


def test_other_models_and_widths_are_refused(folder: Path, tmp_path: Path) -> None:
    other = model_in(tmp_path / "other", b"other weights")
    with IndexWriter(folder) as writer:
        with pytest.raises(ValueError, match=r"of model .*other .*, index .* is of .*model .*embed with that one"):
            writer.append([rows_of(["new"])], model=other)
        with pytest.raises(ValueError, match=f"width 3, index .* has {DIM}"):
            writer.replace([Rows.of([Entry("new")], np.ones((1, 3)))])
        with pytest.raises(ValueError, match="no pictures to index"):
            writer.append([])
    assert json.loads((folder / "manifest.json").read_text())["version"] == 1


def test_roots_are_counted_as_the_index_counts_them(folder: Path, tmp_path: Path) -> None:
    added = [Entry("a", root=0, path="a.jpg"), Entry("b", root=1, path="b.jpg"), Entry("c", root=2, path="c.jpg")]
    rows = Rows.of(added, np.stack([vector_of(entry.key) for entry in added]))
    (tmp_path / "else").mkdir()
    with IndexWriter(folder) as writer:
        manifest = writer.append([rows], [tmp_path / "else", tmp_path, tmp_path / "else"])
        with pytest.raises(ValueError, match="roots 0 to 2, 2 are given"):
            writer.replace([rows], [tmp_path, tmp_path / "else"])
    assert manifest.root_folders(folder) == [tmp_path, tmp_path / "else"]
    index = ImageIndex.open(folder)
    assert [entry.root for entry in index.entries(index.ids_of(["a", "b", "c"]))] == [1, 0, 1]


def test_deleting_by_condition_and_what_is_not_there(folder: Path) -> None:
    with IndexWriter(folder) as writer:
        with pytest.raises(ValueError, match=r"2 of 3 keys are not in index .* \(first: 'x'\)"):
            writer.delete(keys=["k0001", "x", "y"])
        with pytest.raises(ValueError, match="either the keys or a condition"):
            writer.delete()
        assert writer.delete(where="key = 'x'") == 0 and writer.index.manifest.version == 1
        assert writer.delete(where="key <= 'k0049'") == 50
        assert writer.delete(where="key <= 'k0059'") == 10
        assert sorted(contents(ImageIndex.open(folder))) == names(60, 100)
        assert writer.delete(where="key > ''") == 40
    index = ImageIndex.open(folder)
    assert len(index) == 0 and not index.segments and index.search(vector_of("a")[None], 5) == [[]]
    with IndexWriter(folder) as writer:
        writer.append([rows_of(["k0001"])])
        writer.delete(keys=["k0001"])
        writer.compact()
        writer.append([rows_of(["k0002"])])
    assert contents(ImageIndex.open(folder)) == {"k0002": 0}


def test_files_of_two_versions_are_kept_and_remains_of_killed_writers_go(folder: Path) -> None:
    first = named(folder)
    with IndexWriter(folder) as writer:
        writer.append([rows_of(names(100, 110))])
        second = named(folder)
        assert stored(folder) == first | second
        segment = next((folder / "segments").iterdir())
        remains = (
            folder / "segments" / ".000009-00000000.77.partial" / "image.index",
            folder / "segments" / "000009-00000000" / "metadata.parquet",
            segment / "deleted-9.npy",
            folder / ".manifest.json.77.partial",
        )
        for path in remains:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"half")
        writer.delete(keys=["k0000"])
        third = named(folder)
        assert stored(folder) == second | third and not any(path.exists() for path in remains)
        writer.compact()
        assert stored(folder) == third | named(folder)
        writer.delete(keys=["k0001"])
    assert not stored(folder) & first - {"manifest.json"}


def test_a_new_build_is_the_next_version(folder: Path, tmp_path: Path) -> None:
    reader = ImageIndex.open(folder)
    manifest = build_index([rows_of(names(0, 10), 1)], folder, model_in(tmp_path / "model"))
    assert manifest.version == 2 and reader.newer()
    assert contents(ImageIndex.open(folder)) == dict.fromkeys(names(0, 10), 1)
    assert contents(reader) == dict.fromkeys(names(0, 100), 0)  # as it was opened
    assert ImageIndex.open(folder).ids_of(["k0000"]).tolist() == [100]
    (folder / "manifest.json").write_text("{")
    assert build_index([rows_of(["a"])], folder, model_in(tmp_path / "model")).version == 1
    assert contents(ImageIndex.open(folder)) == {"a": 0} and len(list((folder / "segments").iterdir())) == 1


@pytest.mark.parametrize("budget", [Budget(), Budget(factory="IVF4,SQ8", search="nprobe=4")])
def test_a_reader_keeps_its_version(tmp_path: Path, budget: Budget) -> None:
    folder = index_in(tmp_path, names(0, 100), budget)
    reader = ImageIndex.open(folder)
    assert not reader.newer()
    with IndexWriter(folder) as writer:
        writer.replace([rows_of(names(0, 100), 1)])
        writer.compact()
        writer.append([rows_of(names(100, 101))])
    assert reader.newer() and not (folder / "segments" / reader.manifest.segments[0].name).exists()
    assert contents(reader) == dict.fromkeys(names(0, 100), 0)
    assert reader.search(vector_of("k0042")[None], 1)[0][0].entry.key == "k0042"


def test_segments_that_are_open_are_used_again(folder: Path) -> None:
    former = ImageIndex.open(folder)
    with IndexWriter(folder) as writer:
        writer.append([rows_of(names(100, 110))])
        writer.delete(keys=["k0001", "k0101"])
    index = ImageIndex.open(folder, former)
    assert index.segments[0].metadata is former.segments[0].metadata
    assert contents(index) == dict.fromkeys(set(names(0, 110)) - {"k0001", "k0101"}, 0)
    assert contents(former) == dict.fromkeys(names(0, 100), 0)
    assert contents(ImageIndex.open(folder, index)) == contents(index)


def test_a_file_that_vanishes_while_a_reader_opens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cclm.retrieval.index as module

    real, calls = module.OpenSegment, []

    def overtaken(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:  # between reading the manifest and opening the first file
            monkeypatch.setattr(module, "OpenSegment", real)
            with IndexWriter(folder) as writer:
                writer.replace([rows_of(names(0, 100), 1)])
                writer.append([rows_of(["new"])])
        return real(*arguments)

    monkeypatch.setattr(module, "OpenSegment", overtaken)
    index = ImageIndex.open(folder)
    assert len(calls) == 1 and contents(index) == dict.fromkeys(names(0, 100), 1) | {"new": 0}
    shutil.rmtree(folder / "segments" / index.manifest.segments[0].name)
    with pytest.raises(FileNotFoundError, match="is missing"):
        ImageIndex.open(folder)


def test_one_writer_at_a_time(folder: Path, tmp_path: Path) -> None:
    for writing in (FileLock(folder / ".lock"), IndexWriter(folder)):
        with writing, pytest.raises(ValueError, match="is being changed by another process"), IndexWriter(folder, 0.2):
            pass
    with IndexWriter(folder) as writer:
        writer.append([rows_of(["new"])])
    with pytest.raises(FileNotFoundError, match="no index folder"), IndexWriter(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_change_that_fails_leaves_the_former_version(
    folder: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, text = contents(ImageIndex.open(folder)), (folder / "manifest.json").read_text()
    real = os.replace

    def fails(source: Path, target: Path) -> None:
        if Path(target).name == "manifest.json":
            raise error
        real(source, target)

    with IndexWriter(folder) as writer:
        monkeypatch.setattr(os, "replace", fails)
        with pytest.raises(type(error)):
            writer.replace([rows_of(names(50, 150), 1)])
        monkeypatch.undo()
        assert (folder / "manifest.json").read_text() == text
        assert contents(ImageIndex.open(folder)) == before
        writer.append([rows_of(names(100, 101))])
    assert contents(ImageIndex.open(folder)) == before | {"k0100": 0}


def test_compaction_goes_block_by_block(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cclm.retrieval.living as module

    monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    with IndexWriter(folder) as writer:
        writer.append([rows_of(names(100, 130))])
        writer.delete(where="key like '%3' or (key >= 'k0020' and key < 'k0050')")
        before = writer.index
        writer.compact()
        after = writer.index
    assert contents(after) == contents(before)
    queries = np.random.default_rng(0).standard_normal((20, DIM))
    assert np.array_equal(after.nearest(queries, 10).ids, before.nearest(queries, 10).ids)
    assert (np.diff(after.segments[0].metadata.ids) > 0).all()


def test_a_budget_lasts_until_another_one_is_given(tmp_path: Path) -> None:
    folder = index_in(tmp_path, names(0, 300), Budget(factory="IVF4,Flat", search="nprobe=4"))
    with IndexWriter(folder) as writer:
        writer.append([rows_of(names(300, 310))])
        assert [segment.factory for segment in writer.index.manifest.segments] == ["IVF4,Flat", "Flat"]
        before = contents(writer.index)
        assert [segment.factory for segment in writer.compact().segments] == ["IVF4,Flat"]
        assert [segment.factory for segment in writer.compact(Budget(min_recall=0.9)).segments] == ["Flat"]
        assert writer.index.manifest.budget["min_recall"] == 0.9 and contents(writer.index) == before
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"min_recall"', '"recall"'))
    with IndexWriter(folder) as writer, pytest.raises(ValueError, match="budget is not as it was written"):
        writer.append([rows_of(["new"])])


def test_nothing_acknowledged_is_lost_by_kills(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "killed_writers.py"
    command = [sys.executable, str(script), "--kills", "15", "--folder", str(tmp_path / "work"), "--no_record"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[1], check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == 15 and result["acknowledged"] > 0 and result["reader_errors"] == 0
    assert result["lost"] == result["unopened"] == 0 and result["searches"] > 0
