"""`cclm index add | delete | compact | duplicates | show`, as a user types them, with a model that embeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cclm.cli import main
from cclm.retrieval.index import ImageIndex, build_index
from cclm.retrieval.manifest import ModelSource
from tests.data.conftest import picture
from tests.retrieval.extracting import embed, write_tiny_model

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
    assert "5 of 5 pictures are in index" in refused and "--replace" in refused
    assert (folder / "embeddings" / "manifest.json").exists()  # the work is kept for the next try
    told = run("add", folder, "--source", more, "--replace")
    assert "1 of 1 parts are there already" in told and "5 pictures put in, version 3: 17 pictures" in told
    assert not (folder / "embeddings").exists() and len(ImageIndex.open(folder)) == 17


def test_embeddings_that_are_there_already(folder: Path, tmp_path: Path, tiny: Path, run: Run) -> None:
    embed(pictures_in(tmp_path / "more", 20, 23), tmp_path / "more_embedded", tiny)
    assert "3 pictures added" in run("add", folder, "--embeddings", tmp_path / "more_embedded")
    other = write_tiny_model(tmp_path / "other", seed=1)
    embed(pictures_in(tmp_path / "others", 30, 33), tmp_path / "others_embedded", other)
    assert "embed with that one" in run("add", folder, "--embeddings", tmp_path / "others_embedded", fails=True)
    assert "either --source PICTURES" in run("add", folder, fails=True)
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
    assert "1 segments became 1, version 5: 5 pictures" in run("compact", folder)
    assert "nothing to do" in run("compact", folder)
    assert keys(folder) == [f"p{number:02}.jpg" for number in range(7, 12)]


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
