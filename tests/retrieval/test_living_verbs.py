"""`cclm index add | delete | compact | duplicates | show`, as a user types them, with a model that embeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.evaluation.embedding import EmbedOptions
from cclm.evaluation.extraction import Extraction
from cclm.retrieval.embeddings import Embeddings
from cclm.retrieval.engines import EngineOptions
from cclm.retrieval.index import ImageIndex, build_index
from cclm.retrieval.manifest import ModelSource
from cclm.verbs.inputs import load
from tests.data.conftest import image_records, picture
from tests.retrieval.extracting import embed, everything, write_tiny_model

Run = Callable[..., str]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def pictures_in(folder: Path, first: int, last: int) -> Path:
    folder.mkdir()
    for number in range(first, last):
        (folder / f"p{number:02}.jpg").write_bytes(picture(number))
    return folder


@pytest.fixture
def folder(tmp_path: Path, tiny: Path) -> Path:
    found = embed(pictures_in(tmp_path / "first", 0, 12), tmp_path / "embedded", tiny)
    assert found.root is not None
    build_index(found, tmp_path / "index", ModelSource.of(tiny), [found.root], "twelve pictures")
    return tmp_path / "index"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """What `cclm index ..` tells; of an error, its one line."""

    def call(*arguments: object, fails: bool = False) -> str:
        try:
            main(["index", *map(str, arguments)])
            assert not fails
        except SystemExit as end:
            assert fails and end.code == 2, capsys.readouterr().err
            told = capsys.readouterr().err.strip().splitlines()
            assert told and told[-1].startswith("cclm: ")
            return told[-1]
        return capsys.readouterr().out

    return call


def keys(folder: Path) -> list[str]:
    index = ImageIndex.open(folder)
    return sorted(entry.key for rows, segment in zip(index.select("key > ''"), index.segments, strict=True)
                  for entry in segment.metadata.entries(rows.nonzero()[0]))  # fmt: skip


def test_pictures_are_added_and_replaced(folder: Path, tmp_path: Path, run: Run) -> None:
    more = pictures_in(tmp_path / "more", 12, 17)
    told = run("add", folder, "--source", more)
    assert "5 pictures added, version 2: 17 pictures of width 8 in 2 segments" in told
    assert keys(folder) == [f"p{number:02}.jpg" for number in range(17)] and not (folder / "embeddings").exists()
    index = ImageIndex.open(folder)
    entry = index.entries(index.ids_of(["p13.jpg"]))[0]
    assert index.manifest.root_folders(folder)[entry.root] / str(entry.path) == more / "p13.jpg"
    assert entry.width and entry.sha256
    refused = run("add", folder, "--source", more, fails=True)
    assert "5 of 5 pictures are in index" in refused and "--new-only adds" in refused and "--replace drops" in refused
    assert not (folder / "unfinished").exists()  # nothing was embedded for that
    assert "5 pictures put in, version 3: 17 pictures" in run("add", folder, "--source", more, "--replace")
    assert not (folder / "unfinished").exists() and len(ImageIndex.open(folder)) == 17


def test_what_a_folder_has_grown_by(folder: Path, tmp_path: Path, run: Run) -> None:
    photos = tmp_path / "first"
    for number in (3, 20, 21):
        (photos / f"p{number:02}.jpg").write_bytes(picture(50 + number))
    before = ImageIndex.open(folder).entries([3])[0].sha256
    assert "12 of 14 pictures are in index" in run("add", folder, "--source", photos, fails=True)
    assert "2 pictures added, version 2: 14 pictures" in run("add", folder, "--source", photos, "--new-only")
    index = ImageIndex.open(folder)
    assert index.entries(index.ids_of(["p03.jpg"]))[0].sha256 == before and index.manifest.segments[1].rows == 2
    assert "nothing new, version 2" in run("add", folder, "--source", photos, "--new_only")
    assert "one of --replace and --new-only" in run(
        "add", folder, "--source", photos, "--replace", "--new-only", fails=True
    )


def test_new_samples_of_shards_and_of_embeddings(folder: Path, tmp_path: Path, tiny: Path, run: Run) -> None:
    shards = tmp_path / "shards"
    write_shards(image_records(6), shards, samples_per_shard=3)
    run("add", folder, "--source", f"{shards}/000000.tar")
    run("delete", folder, "--keys", "p00001")
    assert "4 pictures added" in run("add", folder, "--source", shards, "--new-only")
    run("delete", folder, "--keys", "p00002,p00005")
    embed(shards, tmp_path / "made", tiny)
    assert "2 pictures added" in run("add", folder, "--embeddings", tmp_path / "made", "--new-only")
    index = ImageIndex.open(folder)
    vectors = {key: vector for rows in Embeddings.open(tmp_path / "made")
               for key, vector in zip(rows.entries["key"].to_pylist(), rows.vectors, strict=True)}  # fmt: skip
    assert len(vectors) == 6
    for key, vector in vectors.items():
        assert np.allclose(index.vectors(index.ids_of([key]))[0], vector, atol=2e-3)
    told = run("add", folder, "--embeddings", tmp_path / "made", fails=True)
    assert "6 of 6 pictures are in index" in told and "--key-prefix" in told
    assert "6 pictures added" in run("add", folder, "--embeddings", tmp_path / "made", "--key-prefix", "b/")
    assert "6 pictures added" in run("add", folder, "--source", shards, "--key_prefix", "c/")
    assert {"p00004", "b/p00004", "c/p00004"} <= set(keys(folder))


def test_keys_that_shards_share_stay_as_they_are_when_more_shards_come(tmp_path: Path, tiny: Path, run: Run) -> None:
    shards, output = tmp_path / "shards", tmp_path / "index"
    for name in "ab":
        write_shards(image_records(2), tmp_path / name)
        shards.mkdir(exist_ok=True)
        (tmp_path / name / "000000.tar").rename(shards / f"{name}.tar")
    run("build", "--model", tiny, "--source", shards, "--output", output)
    write_shards(image_records(1), tmp_path / "c")
    (tmp_path / "c" / "000000.tar").rename(shards / "c.tar")
    assert "1 pictures added" in run("add", output, "--source", shards, "--new-only")
    assert keys(output) == ["a/p00000", "a/p00001", "b/p00000", "b/p00001", "c/p00000"]
    assert "nothing new" in run("add", output, "--source", shards, "--new-only")


def test_additions_do_not_meet_and_a_stopped_one_is_in_nobodys_way(
    folder: Path, tmp_path: Path, tiny: Path, run: Run
) -> None:
    own = tmp_path / "index" / "embeddings"  # somebody's, who chose that folder
    embed(pictures_in(tmp_path / "kept", 40, 42), own, tiny)
    one, other = pictures_in(tmp_path / "one", 20, 23), pictures_in(tmp_path / "other", 30, 35)
    options = EmbedOptions()
    extraction = Extraction(folder / "unfinished", tiny, str(one), options, load, private="add")
    with pytest.raises(KeyboardInterrupt), extraction.running(EngineOptions(), print, everything) as found:
        assert "another `cclm embed` writes to" in run("add", folder, "--source", one, fails=True)
        assert "5 pictures added, version 2: 17 pictures" in run("add", folder, "--source", other)
        assert "2 segments became 1" in run("compact", folder)  # what a process is at stays
        assert "command(s) have" in run("show", folder) and len(found[0]) == 3
        raise KeyboardInterrupt
    assert keys(folder)[-5:] == [f"p{number}.jpg" for number in range(30, 35)]
    told = run("add", folder, "--source", one)
    assert "1 of 1 parts are there already" in told and "3 pictures added" in told
    assert not (folder / "unfinished").exists() and "command(s)" not in run("show", folder)
    again = pictures_in(tmp_path / "again", 50, 52)
    extraction = replace(extraction, source=str(again))
    with pytest.raises(KeyboardInterrupt), extraction.running(EngineOptions(), print, everything):
        raise KeyboardInterrupt
    assert (folder / "unfinished").exists() and "embeddings of 1 stopped command(s) removed" in run("compact", folder)
    assert not (folder / "unfinished").exists() and Embeddings.open(own).rows == 2


def test_embeddings_that_are_kept_stay(tmp_path: Path, tiny: Path, run: Run) -> None:
    output, photos = tmp_path / "index", pictures_in(tmp_path / "first", 0, 4)
    run("build", "--model", tiny, "--source", photos, "--output", output, "--keep-embeddings", "--key-prefix", "a/")
    assert keys(output)[0] == "a/p00.jpg"
    run("add", output, "--source", pictures_in(tmp_path / "more", 4, 6))
    assert Embeddings.open(output / "embeddings").rows == 4
    run("build", "--model", tiny, "--source", photos, "--output", output)
    assert Embeddings.open(output / "embeddings").rows == 4 and not (output / "unfinished").exists()


def test_folders_behind_links_are_told(folder: Path, tmp_path: Path, run: Run) -> None:
    more = pictures_in(tmp_path / "more", 12, 14)
    (more / "linked").symlink_to(pictures_in(tmp_path / "elsewhere", 14, 17))
    assert "left out: 1 x folder behind a symbolic link" in run("add", folder, "--source", more)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "linked").symlink_to(tmp_path / "elsewhere")
    told = run("add", folder, "--source", tmp_path / "links", fails=True)
    assert "no jpg, png or webp" in told and "(1 folders behind symbolic links were not searched)" in told


def test_embeddings_that_are_there_already(folder: Path, tmp_path: Path, tiny: Path, run: Run) -> None:
    embed(pictures_in(tmp_path / "more", 20, 23), tmp_path / "more_embedded", tiny)
    assert "3 pictures added" in run("add", folder, "--embeddings", tmp_path / "more_embedded")
    other = write_tiny_model(tmp_path / "other", seed=1)
    embed(pictures_in(tmp_path / "others", 30, 33), tmp_path / "others_embedded", other)
    assert "embed with that one" in run("add", folder, "--embeddings", tmp_path / "others_embedded", fails=True)
    assert "either --source PICTURES" in run("add", folder, fails=True)
    told = run("add", folder, "--embeddings", tmp_path / "more_embedded", "--languages", "de", "--dtype", "float32",
               fails=True)  # fmt: skip
    assert "--languages, --dtype: of no effect on embeddings that are there" in told
    assert "--root is of embeddings" in run("add", folder, "--source", "a", "--root", "b", fails=True)
    assert "either --source" in run("add", folder, "--source", "a", "--embeddings", "b", fails=True)
    shutil.rmtree(tmp_path / "more_embedded" / "parts")
    (tmp_path / "more_embedded" / "manifest.json").unlink()  # as clip-retrieval leaves it
    assert "do not tell their model" in run("add", folder, "--embeddings", tmp_path / "more_embedded", fails=True)


def test_deleting_and_compacting(folder: Path, tmp_path: Path, run: Run) -> None:
    told = run("delete", folder, "--where", "key < 'p03'", "--dry-run")
    assert told.splitlines() == [f"{folder}: 3 of 12 pictures would be deleted", *(f"  p0{n}.jpg" for n in range(3))]
    assert len(ImageIndex.open(folder)) == 12
    told = run("delete", folder, "--where", "key < 'p03'")
    assert "3 pictures deleted, version 2: 9 pictures of width 8 in 1 segment, 3 deleted rows" in told
    assert "2 pictures deleted" in run("delete", folder, "--keys", "p03.jpg,p04.jpg")
    (tmp_path / "keys").write_text("p05.jpg\np06.jpg\n")
    assert "2 of 7 pictures would be deleted" in run("delete", folder, "--keys-from", tmp_path / "keys", "--dry-run")
    assert "2 pictures deleted" in run("delete", folder, "--keys-from", tmp_path / "keys")
    assert "1 of 1 keys are not in index" in run("delete", folder, "--keys", "p05.jpg", fails=True)
    assert "no column 'colour'" in run("delete", folder, "--where", "colour = 'red'", fails=True)
    assert "takes one of --keys" in run("delete", folder, fails=True)
    assert "takes one of --keys" in run("delete", folder, "--keys", "a", "--where", "key = 'b'", fails=True)
    assert "condition: there is none" in run("delete", folder, "--where", " ", fails=True)
    assert "1 segments became 1, version 5: 5 pictures" in run("compact", folder)
    assert "nothing to do" in run("compact", folder)
    assert keys(folder) == [f"p{number:02}.jpg" for number in range(7, 12)]


def test_keys_of_any_characters(folder: Path, tmp_path: Path, run: Run) -> None:
    odd = ["p00.jpg\np01.jpg", "p00.jpg\u2028p01.jpg", "p02.jpg,p03.jpg", '"p04.jpg".jpg', "\x1b[31mred.jpg"]
    photos = tmp_path / "odd"
    photos.mkdir()
    for name in odd:
        (photos / f"{name}.jpg").write_bytes(picture(5))
    run("add", folder, "--source", photos)
    told = run("duplicates", folder, "--threshold", 1, "--output", tmp_path / "again")
    assert "p00.jpg\\np01.jpg" in told and "\\x1b[31m" in told and "\x1b" not in told
    assert "5 pictures deleted" in run("delete", folder, "--keys-from", tmp_path / "again")
    assert keys(folder) == [f"p{number:02}.jpg" for number in range(12)]
    run("add", folder, "--source", photos)
    listed = json.dumps([f"{name}.jpg" for name in odd[:3]])
    assert "3 pictures deleted" in run("delete", folder, "--keys", listed)
    by_hand = tmp_path / "by_hand"
    by_hand.write_bytes('\ufeffp01.jpg\r\n\r\n"p04.jpg".jpg.jpg\n"p02.jpg"\n'.encode())
    assert "3 pictures deleted" in run("delete", folder, "--keys-from", by_hand)
    for name, data in (("binary", b"\xff\x00"), ("empty", b"\n")):
        (tmp_path / name).write_bytes(data)
    for name, message in (("binary", "is no readable file"), ("empty", "names no key"), ("odd", "is no readable file"),
                          ("nowhere", "is no readable file")):  # fmt: skip
        assert message in run("delete", folder, "--keys-from", tmp_path / name, fails=True)


def test_compacting_within_another_budget(folder: Path, run: Run) -> None:
    assert "1 segments became 1" in run("compact", folder, "--factory", "IVF4,Flat", "--search", "nprobe=4")
    manifest = ImageIndex.open(folder).manifest
    assert (manifest.segments[0].factory, manifest.budget["factory"]) == ("IVF4,Flat", "IVF4,Flat")
    run("delete", folder, "--where", "key >= 'p03'")
    run("compact", folder)  # three rows
    manifest = ImageIndex.open(folder).manifest
    assert (manifest.segments[0].factory, manifest.budget["factory"], manifest.rows) == ("Flat", "", 3)
    assert "give at most one for each" in run("compact", folder, "--factory", "IVF4,Flat", fails=True)
    run("compact", folder, "--min-recall", "0.8", "--max-memory", "1GB")
    assert ImageIndex.open(folder).manifest.budget["min_recall"] == 0.8


def test_duplicates_and_the_command_against_them(folder: Path, tmp_path: Path, run: Run) -> None:
    assert ", 0 of them again what another shows" in run("duplicates", folder, "--threshold", 1)
    copies = tmp_path / "copies"
    copies.mkdir()
    for number in (3, 4):
        (copies / f"again, {number}.jpg").write_bytes(picture(number))
    run("add", folder, "--source", copies)
    told = run("duplicates", folder, "--threshold", 1)
    assert "14 pictures, 2 of them again what another shows, in 2 groups" in told
    assert f'cclm index delete {folder} --where "id in (12, 13)"' in told
    groups = json.loads(run("duplicates", folder, "--threshold", 1, "--json", "--output", tmp_path / "more"))
    assert [[one["key"] for one in group] for group in groups] == [
        ["p03.jpg", "again, 3.jpg"],
        ["p04.jpg", "again, 4.jpg"],
    ]
    assert "2 pictures deleted" in run("delete", folder, "--keys-from", tmp_path / "more")
    assert len(keys(folder)) == 12
    assert "threshold is 2.0" in run("duplicates", folder, "--threshold", 2, fails=True)


def test_what_an_index_consists_of(folder: Path, tmp_path: Path, tiny: Path, run: Run) -> None:
    run("delete", folder, "--where", "key < 'p03'")
    told = run("show", folder)
    segment = ImageIndex.open(folder).manifest.segments[0]
    for part in (
        "version 2: 9 pictures",
        "12 rows, 25% deleted, Flat",
        str(tiny),
        str(tmp_path / "first"),
        "twelve pic",
    ):
        assert part in told
    assert "is not there" not in told and ", verified" in run("show", folder, "--verify")
    shown = json.loads(run("show", folder, "--json"))
    assert shown["rows"] == 9 and shown["segments"][0]["name"] == segment.name and shown["disk_bytes"] > 1000
    shutil.move(tmp_path / "first", tmp_path / "moved")
    assert f"{tmp_path / 'first'} is not there" in run("show", folder)
    path = folder / "segments" / segment.name / segment.deletions
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert "version 2" in run("show", folder)
    assert segment.deletions in run("show", folder, "--verify", fails=True)
