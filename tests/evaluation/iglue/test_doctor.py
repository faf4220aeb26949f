"""The doctor: what is there, whole and readable, whatever state the files are in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cclm.cli import main
from cclm.evaluation.doctor import WIDTH, Finding, Health, examine
from cclm.evaluation.task import DataFolder, find, names


def health(root: Path, name: str, images: Path | None = None, **options: Any) -> Health:
    (found,) = examine([find(name)], DataFolder(root), images or root, **options)
    return found


def finding(found: Health, split: str, language: str) -> Finding:
    return next(each for each in found.findings if (each.split, each.language) == (split, language))


@pytest.fixture
def xvnli(bundle: Path, tmp_path: Path) -> Path:
    """XVNLI alone, whose files can be damaged."""
    shutil.copytree(bundle / "iglue" / "XVNLI", tmp_path / "XVNLI")
    return tmp_path


def test_the_bundle_as_it_is(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    main(["iglue", "check", "--data", str(bundle)])
    out = capsys.readouterr().out
    lines = [line.rstrip() for line in out.splitlines()]
    assert len(lines) < 100 and max(map(len, lines)) <= WIDTH
    assert [line for line in lines if line.split()[:1] in ([name] for name in names())]
    rows = [" ".join(line.split()) for line in lines]
    assert "xvnli test 5 of 5 1,164" in rows
    assert "translated test 7 of 7 9,666 no texts: bn de id ko pt ru zh" in rows
    assert "tatoeba test 112 of 112 104–1,000" in rows
    assert "translated dev 4 of 5 6,982 missing: ta" in rows
    assert "coco 0 of 9 nothing of it is here" in rows
    assert "multi30k: pictures; Flickr30K; COCO 2014 for test2017-mscoco" in rows


def test_json_tells_every_file(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    main(["iglue", "check", "--data", str(bundle), "--tasks", "xvnli,xgqa", "--languages", "de,ar", "--json"])
    xvnli, xgqa = json.loads(capsys.readouterr().out)
    assert {split["language"] for split in xvnli["splits"]} == {"ar"}
    found = {(split["split"], split["language"]): split for split in xgqa["splits"]}
    assert found["train_48", "de"] == {
        "split": "train_48",
        "language": "de",
        "state": "complete",
        "found": 1490,
        "expected": 1490,
        "files": [],
        "reason": "",
    }
    assert found["test", "de"]["state"] == "no texts" and len(found["test", "de"]["files"]) == 2
    assert {pictured["wanted"] for pictured in xgqa["pictures"]} == {300, 398}
    missing = next(split for split in xvnli["splits"] if split["split"] == "dev_translated")
    assert missing["files"] == ["XVNLI/annotations/en/dev-ar_gmt.jsonl"]


def test_tasks_and_languages_are_named_as_everywhere(xvnli: Path, capsys: pytest.CaptureFixture) -> None:
    for given, wanted in (("all", names()), (" xvnli, xgqa,,xvnli ", ["xvnli", "xgqa"])):
        main(["iglue", "check", "--data", str(xvnli), "--tasks", given, "--languages", " ar, en,", "--json"])
        found = {
            one["task"]: {split["language"] for split in one["splits"]} for one in json.loads(capsys.readouterr().out)
        }
        assert set(found) == {name for name in wanted if {"ar", "en"} & set(find(name).languages)}
        assert found["xvnli"] == {"ar", "en"}


@pytest.mark.parametrize(
    ("content", "state", "told"),
    [
        (b"", "unreadable", "holds no item"),
        (b"\xff\xfe\x00" * 9, "unreadable", "no UTF-8"),
        (b"{}\n", "unreadable", "line 1: no gold_label"),
        (b"[" * 100_000, "unreadable", "line 1"),
        (b"null\n", "unreadable", "line 1: no JSON object"),
        (b'{"gold_label": {"a": 1}, "sentence2": 3, "pairID": [], "Flikr30kID": null}', "unreadable", "line 1"),
        (None, "other count", ""),
    ],
)
def test_damage_is_a_finding(xvnli: Path, content: bytes | None, state: str, told: str) -> None:
    path = xvnli / "XVNLI/annotations/ar/test.jsonl"
    path.write_bytes(content if content is not None else b"".join(path.read_bytes().splitlines(keepends=True)[:7]))
    found = finding(health(xvnli, "xvnli"), "test", "ar")
    assert (found.state, found.expected, found.found) == (state, 1164, 0 if content is not None else 7)
    assert told in found.reason and "\n" not in found.reason
    assert finding(health(xvnli, "xvnli"), "test", "es").state == "complete"


def test_damage_is_told_with_its_reason(xvnli: Path, capsys: pytest.CaptureFixture) -> None:
    for language in ("ar", "es"):
        path = xvnli / f"XVNLI/annotations/{language}/test.jsonl"
        path.write_bytes(path.read_bytes()[:1000])
    (xvnli / "XVNLI/annotations/fr/test.jsonl").write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    main(["iglue", "check", "--data", str(xvnli), "--tasks", "xvnli"])
    out = " ".join(capsys.readouterr().out.split())
    assert "unreadable: ar es; 1 instead of 1,164: fr" in out.replace("1, 164", "1,164")
    assert "Not readable: xvnli, test in ar:" in out


def test_images_are_counted_too(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As many captions of an image fewer."""
    path = tmp_path / "wit/annotations/test_ar.jsonl"
    path.parent.mkdir(parents=True)
    rows = (bundle / "iglue/wit/annotations/test_ar.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([rows[0], rows[0], *rows[2:]]), encoding="utf-8")
    found = finding(health(tmp_path, "wit"), "test", "ar")
    assert (found.state, found.found, found.expected) == ("other count", 890, 890)
    assert found.reason == "791 images instead of 792"
    main(["iglue", "check", "--data", str(tmp_path), "--tasks", "wit"])
    assert "791 images instead of 792: ar" in " ".join(capsys.readouterr().out.split())


def test_a_cut_set_of_many_shots_is_not_complete(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "xFlickrCO/annotations/ja/train_1500.jsonl"
    path.parent.mkdir(parents=True)
    rows = (bundle / "iglue/xFlickrCO/annotations/ja/train_1500.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(rows[:700]), encoding="utf-8")
    found = finding(health(tmp_path, "xflickrco"), "train_1500", "ja")
    assert (found.state, found.found, found.expected) == ("other count", 700, 1500)


def test_both_sets_of_translate_train_are_looked_for(bundle: Path) -> None:
    listed = (bundle / "MISSING.txt").read_text().split()
    for language, file in (("de", "train_ann.jsonl"), ("ja", "train.jsonl")):
        found = finding(health(bundle, "xflickrco"), "train_translated", language)
        name = f"xFlickrCO/annotations/{language}/{file}"
        assert (found.state, found.files) == ("missing", (name,)) and f"e-bug/iglue:datasets/{name}" in listed


def test_a_folder_in_the_place_of_a_file_is_missing(xvnli: Path) -> None:
    path = xvnli / "XVNLI/annotations/ar/test.jsonl"
    path.unlink()
    path.mkdir()
    found = finding(health(xvnli, "xvnli"), "test", "ar")
    assert (found.state, found.files) == ("missing", ("XVNLI/annotations/ar/test.jsonl",))


class TestPictures:
    @pytest.fixture
    def images(self, bundle: Path, tmp_path: Path) -> Path:
        """Three of the test's pictures: whole, cut behind its header, and no picture at all."""
        task = find("xvnli")
        wanted = task.test_set(DataFolder(bundle), "ar", task.protocol()).images()[:3]
        folder = tmp_path / "pictures"
        folder.mkdir()
        for name in wanted:
            Image.effect_noise((64, 64), 50).save(folder / name, "JPEG")
        (folder / wanted[1]).write_bytes((folder / wanted[1]).read_bytes()[:900])
        (folder / wanted[2]).write_bytes(b"<html>404</html>")
        return folder

    def test_are_counted_by_name(self, bundle: Path, images: Path) -> None:
        found = health(bundle, "xvnli", images)
        assert found.every is not None
        assert (found.every.wanted, found.every.missing, found.every.unreadable) == (357, 354, 0)

    def test_are_opened_when_that_is_asked_for(self, bundle: Path, images: Path) -> None:
        found = health(bundle, "xvnli", images, opened=True)
        assert found.every is not None
        assert (found.every.missing, found.every.unreadable, sum(found.every.reasons.values())) == (354, 2, 2)
        by_language = {pictured.language: pictured.unreadable for pictured in found.pictures}
        assert by_language == dict.fromkeys(("en", "ar", "es", "fr", "ru"), 2)

    def test_a_damaged_zip_is_told(self, bundle: Path, images: Path, capsys: pytest.CaptureFixture) -> None:
        (images / "more.zip").write_bytes(b"PK\x03\x04 and then nothing")
        main(["iglue", "check", "--data", str(bundle), "--images", str(images), "--tasks", "xvnli", "--open"])
        out = capsys.readouterr().out
        assert "not looked for, see below" in out and "more.zip is no whole zip file" in " ".join(out.split())

    def test_marvls_lie_below_their_language(self, bundle: Path, tmp_path: Path) -> None:
        """Names repeat in every language: a picture of another one is not taken for it."""
        task = find("marvl")
        name = task.test_set(DataFolder(bundle), "tr", task.protocol()).images()[0]
        path = tmp_path / "marvl_images" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
        found = health(bundle, "marvl", tmp_path, languages=("tr", "zh"))
        assert {pictured.language: pictured.wanted - pictured.missing for pictured in found.pictures} == {
            "tr": 1,
            "zh": 0,
        }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data", "nowhere"], "--data nowhere is no folder"),
        (["--data", ".", "--images", "nowhere"], "--images nowhere is no folder"),
        (["--data", ".", "--tasks", "xvnlo"], "no task 'xvnlo'; did you mean 'xvnli'?"),
        (["--data", ".", "--tasks", " , "], "--tasks ' , ' names no task; there are "),
        (["--data", ".", "--languages", ","], "languages are ',', which names none"),
        (["--data", ".", "--languages", "dee"], "in language 'dee'; did you mean 'de'?"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, options: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["iglue", "check", *options])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and told in error and len(error) < 400
