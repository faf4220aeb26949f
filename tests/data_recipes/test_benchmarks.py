"""The recipes of XVNLI, xGQA, NLVR2, MaRVL and retrieval on the benchmark's own files, with pictures made up."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cclm.data.build import build
from cclm.data.shards import read_records
from cclm.types import Record
from data_recipes import captions, nlvr2, xgqa, xvnli
from tests.data_recipes.conftest import PICTURE, named_picture

FEW_SHOTS = (1, 5, 10, 20, 25, 48)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(folder: Path, name: str, *lines: object) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def by_split(found: Iterator[tuple[str, Record]]) -> dict[str, list[Record]]:
    splits: dict[str, list[Record]] = {}
    for split, record in found:
        splits.setdefault(split, []).append(record)
    for split, records in splits.items():
        assert len({record.key for record in records}) == len(records), f"a key twice in {split}"
    return splits


def check_build(
    recipe: str, source: Path, output: Path, expected: dict[str, list[Record]], options: dict[str, Any] | None = None
) -> None:
    """What the recipe yields comes back from the shards that are built of it."""
    build(recipe, source, output, options)
    assert {path.name for path in output.iterdir()} == set(expected)
    for split, records in expected.items():
        assert list(read_records(output / split)) == records


def labels(records: list[Record]) -> Counter[str]:
    return Counter(label for record in records for statement in record.statements for label in statement.labels)


def fill_zip(path: Path, names: set[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(names):
            archive.writestr(f"pictures/{name}", named_picture(name))


def test_xvnli(iglue: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = iglue / "XVNLI"
    names = {f"{row['Flikr30kID']}.jpg" for path in source.rglob("*.jsonl") for row in rows(path)}
    missing = rows(source / "annotations/en/test.jsonl")[-1]["Flikr30kID"]
    fill_zip(source / "flickr.zip", names - {"759822302.jpg", f"{missing}.jpg"})
    (source / "759822302.jpg").write_bytes(PICTURE)
    splits = by_split(xvnli.records(source))
    assert set(splits) == {"test", *(f"train_{shots}" for shots in FEW_SHOTS)}
    test = {record.key: record for record in splits["test"]}
    gone = [row for row in rows(source / "annotations/en/test.jsonl") if row["Flikr30kID"] == missing]
    labelled = Counter(row["gold_label"] for row in gone if row["gold_label"] != "-")
    assert labels(splits["test"]) + labelled == {"contradiction": 375, "neutral": 381, "entailment": 394}
    assert labelled and missing not in test and len(test) == 356
    assert all(
        set(statement.texts) == {"en", "ar", "es", "fr", "ru"}
        for record in splits["test"]
        for statement in record.statements
    )
    assert {shots: sum(labels(splits[f"train_{shots}"]).values()) for shots in FEW_SHOTS} == {
        1: 3, 5: 17, 10: 38, 20: 72, 25: 87, 48: 163
    }  # fmt: skip
    assert test["759822302"].image == PICTURE
    first = test["759822302"].statements[0]
    assert first.labels == {"contradiction": 1.0}
    assert first.texts["ar"] == "يرتدي الجريدة على رأسه."
    check_build("xvnli", source, tmp_path / "built", splits)
    for language in "en ar es fr ru".split():
        assert f"{language}/test.jsonl: 14 left out, first line 30: gold label is none of" in caplog.text


def test_xgqa(iglue: Path, tmp_path: Path) -> None:
    source = iglue / "xGQA"
    names = {
        f"{row['imageId']}.jpg"
        for path in source.glob("annotations/few_shot/en/*.json")
        for row in json.loads(path.read_text()).values()
    }
    fill_zip(source / "gqa.zip", names)
    splits = by_split(xgqa.records(source))
    assert {split: (len(found), sum(labels(found).values())) for split, found in splits.items()} == {
        **{f"train_{shots}": (shots, n) for shots, n in zip(FEW_SHOTS, (27, 155, 317, 594, 704, 1490), strict=True)},
        "dev": (50, 1422),
    }
    said = [statement for record in splits["train_48"] for statement in record.statements]
    assert all(set(statement.texts) == {"en", "bn", "de", "id", "ko", "pt", "ru", "zh"} for statement in said)
    (bus,) = (found for found in said if found.texts["de"].startswith("Ist der Bus in der Nähe der Menschen schwarz"))
    assert bus.labels == {"no": 1.0}
    check_build("xgqa", source, tmp_path / "built", splits)


def test_questions_of_gqa_and_lxmert_are_one(iglue: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = iglue / "gqa"
    listed = json.loads((source / "annotations/testdev.json").read_text())
    fill_zip(source / "gqa.zip", {f"{row['img_id']}.jpg" for row in listed})
    splits = by_split(xgqa.records(source))
    assert {split: (len(found), sum(labels(found).values())) for split, found in splits.items()} == {
        "testdev": (398, 12578)
    }
    assert "1944 left out, first n161313 201307270: the statement stands there twice in language en" in caplog.text


def test_question_files_of_every_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "n1.jpg").write_bytes(PICTURE)
    asked = {"imageId": "n1", "question": "Is it red?", "answer": "yes"}
    write(tmp_path, "zero_shot/testdev_balanced_questions_de.json", {"7": asked | {"question": "Ist es rot?"}})
    write(tmp_path, "testdev_balanced_questions.json", {"7": asked, "8": asked | {"answer": None}, "9": [asked]})
    write(tmp_path, "annotations_machine-translate/few_shot/de/dev.json", {"7": asked})
    write(tmp_path, "trainval_ans2label.json", {"yes": 0})
    lxmert = {"img_id": "n1", "question_id": 7, "sent": "Red?"}
    write(
        *(tmp_path, "valid.json"),
        [
            lxmert | {"label": given}
            for given in ({"yes": 0}, {"yes": 0.3, "no": 0.6}, {}, {"yes": "very"}, {"yes": -1})
        ],
    )
    write(tmp_path, "train_balanced_questions.json", {"1": asked | {"imageId": "gone"}, "2": asked, "3": asked})
    write(tmp_path, "few_shot/de/dev.json", {"5": asked | {"question": "half a letter: \ud800"}, "6": asked})
    splits = by_split(xgqa.records(tmp_path))
    found = {
        split: [(said.texts, said.labels) for record in records for said in record.statements]
        for split, records in splits.items()
    }
    assert found == {
        "testdev": [({"de": "Ist es rot?", "en": "Is it red?"}, {"yes": 1.0})],
        "val": [({"en": "Red?"}, {"yes": 1.0}), ({"en": "Red?"}, {"yes": 0.3, "no": 0.6})],
        "train": [({"en": "Is it red?"}, {"yes": 1.0})] * 2,
        "dev": [({"de": "Is it red?"}, {"yes": 1.0})],
    }
    for reason in (
        "testdev_balanced_questions.json: 1 left out, first 8: no answer",
        "testdev_balanced_questions.json: 1 left out, first 9: no JSON object",
        "valid.json: 1 left out, first row 3: no answer",
        "valid.json: 2 left out, first row 4: weight of an answer is no number from 0",
        "dev.json: 1 left out, first 5: text is no Unicode",
        "1 left out, first gone.jpg: image missing",
    ):
        assert reason in caplog.text


def test_nlvr2(iglue: Path) -> None:
    source = iglue / "nlvr2"
    pairs = {
        row["identifier"].rpartition("-")[0]
        for split in ("dev", "test")
        for row in rows(source / f"annotations/{split}.jsonl")
    }
    fill_zip(source / "pictures.zip", {f"{pair}-img{side}.png" for pair in pairs for side in (0, 1)})
    splits = by_split(nlvr2.records(source))
    assert {split: len(found) for split, found in splits.items()} == {"dev": 4051, "test": 4041}
    assert labels(splits["dev"]) == {"True": 3551, "False": 3431}
    assert labels(splits["test"]) == {"True": 3558, "False": 3409}
    first = splits["dev"][0]
    assert first.key == "dev-850-0"
    assert first.image == named_picture("dev-850-0-img0.png")
    assert first.others == (named_picture("dev-850-0-img1.png"),)
    assert first.statements[0].texts["en"].startswith("The right image shows a curving walkway of dark glass")


def test_marvl(iglue: Path, tmp_path: Path) -> None:
    source = iglue / "marvl"
    places = set()
    for path in source.glob("*/annotations/*.jsonl"):
        for row in rows(path):
            for name in (row["left_img"], row["right_img"]):
                place = f"{row['language']}/images/{name if '/' in name else row['concept'] + '/' + name}"
                # Some unpack with accents composed, some decomposed, and the annotations mix both.
                places.add(unicodedata.normalize("NFD" if len(row["concept"]) % 2 else "NFC", place))
    fill_zip(source / "pictures.zip", places)
    splits = by_split(nlvr2.records(source))
    tests = {"id": 1128, "sw": 1108, "ta": 1242, "tr": 1180, "zh": 1012}
    shots = {"1": 4, "2": 8, "4": 16, "10": 40, "10x2": 80}
    assert {split: sum(labels(found).values()) for split, found in splits.items()} == {
        **{f"marvl-{language}": count for language, count in tests.items()},
        **{f"marvl-{lang}_train{shot}": count for lang in ("id", "tr", "zh") for shot, count in shots.items()},
    }
    assert labels(splits["marvl-ta"]) == {"True": 616, "False": 626}
    for language, count in {"id": 1089, "sw": 808, "ta": 1181, "tr": 1123, "zh": 947}.items():
        assert len(splits[f"marvl-{language}"]) == count  # pairs of pictures
    asked = rows(source / "few_shot/annotations/marvl-tr_train1.jsonl")[0]
    pen = splits["marvl-tr_train1"][0]
    assert pen.key == "tr-80-n-3-" + Path(asked["right_img"]).stem
    assert asked["left_img"] != unicodedata.normalize("NFC", asked["left_img"])  # its ü is two characters
    stored = unicodedata.normalize("NFD" if len(asked["concept"]) % 2 else "NFC", asked["left_img"])
    assert pen.image == named_picture(f"tr/images/{stored}")
    assert pen.statements[0].texts == {"tr": asked["caption"].strip()}
    check_build("nlvr2", source, tmp_path / "built", splits)


def test_labels_of_every_kind_and_bad_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for side in (0, 1):
        (tmp_path / f"dev-1-0-img{side}.png").write_bytes(PICTURE)
    kinds = (True, "True", "true", 1, "1", False, "False", 0)
    good = [{"identifier": f"dev-1-0-{n}", "sentence": f"s{n}", "label": label} for n, label in enumerate(kinds)]
    bad = [
        "{cut",
        "[]",
        good[0] | {"label": "maybe"},
        good[0] | {"label": None},
        good[0] | {"sentence": " "},
        {"label": True, "sentence": "x"},
        good[0] | {"identifier": "dev-2-0-0"},
    ]
    write(tmp_path, "dev.json", *good, *bad)
    write(tmp_path, "test1.jsonl", good[0])
    write(tmp_path, "dev-id_gmt.jsonl", good[0])
    write(tmp_path, "other.jsonl", "not ours")
    splits = by_split(nlvr2.records(tmp_path))
    assert {split: labels(found) for split, found in splits.items()} == {
        "dev": {"True": 5, "False": 3},
        "test": {"True": 1},
    }
    for reason in (
        "1 left out, first line 9: json not readable",
        "1 left out, first line 10: no JSON object",
        "2 left out, first line 11: label is neither true nor false",
        "1 left out, first line 13: no sentence",
        "1 left out, first line 14: no identifier",
        "1 left out, first dev-2-0-img0.png and dev-2-0-img1.png: image missing",
    ):
        assert reason in caplog.text


def test_pictures_are_those_of_the_concept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MaRVL's languages use the same names for different pictures: a name alone does not find one."""
    row = {"concept": "1-Tükenmez", "left_img": "1-0.jpg", "right_img": "1-1.jpg", "caption": "x", "label": True}
    others = [row | {"concept": "1-Ayam", "id": "tr-1"}, row | {"left_img": "1-2.jpg", "id": "tr-2"}]
    write(tmp_path, "marvl-tr.jsonl", row | {"id": "tr-0"}, *others)
    folder = unicodedata.normalize("NFD", "tr/images/1-Tükenmez")
    for place in (f"{folder}/1-0.jpg", f"{folder}/1-1.jpg", "sw/images/1-A/1-0.jpg", "1-2.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(named_picture(place))
    ((_, found),) = nlvr2.records(tmp_path)
    assert (found.image, *found.others) == tuple(named_picture(f"{folder}/1-{n}.jpg") for n in (0, 1))
    assert [said.texts for said in found.statements] == [{"tr": "x"}]
    assert "1 left out, first tr-1-0-1-1 tr-1: the record of this key is about other images" in caplog.text
    assert "1 left out, first 1-Tükenmez/1-2.jpg and 1-Tükenmez/1-1.jpg: image missing" in caplog.text


def test_xflickrco(iglue: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = iglue / "xFlickrCO"
    names = {row["img_path"] for path in source.glob("annotations/*/*.jsonl") for row in rows(path)}
    fill_zip(source / "pictures.zip", names)
    splits = by_split(captions.records(source))
    counts = Counter({split: len(found) for split, found in splits.items()})
    assert counts["test"] == 2000
    assert [counts[f"train_{n}"] for n in (1, 5, 10, 25, 50, 100, 200, 500)] == [1, 5, 10, 25, 50, 100, 200, 500]
    texts = Counter(language for record in splits["test"] for language, said in record.captions.items() for _ in said)
    assert texts == {"en": 2000, "es": 2000, "ja": 2000, "ru": 2000, "tr": 2000, "zh": 2000, "de": 1999, "id": 1999}
    assert "de/test.jsonl: 1 left out, first line 1960: no caption" in caplog.text
    assert "id/test.jsonl: 1 left out, first line 901: no caption" in caplog.text
    assert all(len(record.captions["de"]) == 5 for record in splits["train_100x5"])
    last = splits["test"][-1]
    assert (last.key.startswith("COCO_val2014_"), last.image) == (True, named_picture(f"{last.key}.jpg"))
    assert all(said == said.strip() for record in splits["test"] for said in record.captions["en"])


def test_flickr30k(iglue: Path, tmp_path: Path) -> None:
    source = iglue / "flickr30k"
    names = {row["img_path"] for path in source.glob("annotations/*.jsonl") for row in rows(path)}
    fill_zip(source / "pictures.zip", names)
    splits = by_split(captions.records(source))
    assert {split: len(found) for split, found in splits.items()} == {"dev": 1014, "test": 1000}
    assert all(len(record.captions["en"]) == 5 for found in splits.values() for record in found)
    check_build("captions", source, tmp_path / "built", splits)


def test_caption_files_of_every_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in ("val2014/1.jpg", "flat/2.jpg"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(named_picture(place))
    several = [
        {"image": "val2014/1.jpg", "caption": "ein", "image_id": "1_0"},
        {"image": "val2014/1.jpg", "caption": ["zwei", " "], "image_id": "1_0"},
        {"image": "elsewhere/2.jpg", "caption": "drei"},
        {"image": "gone.jpg", "caption": "x"},
        {"image": "val2014/1.jpg", "caption": [""]},
        {"caption": "x"},
        3,
    ]
    write(tmp_path, "de.1k_test.json", several)
    write(tmp_path, "fr/val.json", [{"image": "val2014/1.jpg", "caption": "un"}])
    write(tmp_path, "en/valid_ann.jsonl", {"img_path": "val2014/1.jpg", "sentences": ["one"], "id": 1}, "{cut")
    kept = [{"filename": "2.jpg", "split": split, "sentences": [{"raw": f" {split} "}]} for split in ("restval", "val")]
    write(tmp_path, "dataset_coco.json", {"images": kept, "dataset": "coco"})
    found = {
        split: {record.key: (record.captions, record.image) for record in records}
        for split, records in by_split(captions.records(tmp_path)).items()
    }
    one, two = named_picture("val2014/1.jpg"), named_picture("flat/2.jpg")
    assert found == {
        "1k_test": {"val2014_1": ({"de": ["ein", "zwei"]}, one), "elsewhere_2": ({"de": ["drei"]}, two)},
        "train": {"2": ({"en": ["restval"]}, two)},
        "dev": {"2": ({"en": ["val"]}, two), "val2014_1": ({"en": ["one"], "fr": ["un"]}, one)},
    }
    for reason in (
        "de.1k_test.json: 1 left out, first row 5: no caption",
        "de.1k_test.json: 1 left out, first row 6: no image",
        "de.1k_test.json: 1 left out, first row 7: no JSON object",
        "valid_ann.jsonl: 1 left out, first line 2: json not readable",
        "1 left out, first gone.jpg: image missing",
    ):
        assert reason in caplog.text


def test_misspelt_keys_and_other_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"gold_label": "neutral", "sentence1": "premise", "sentence2": "he sits", "pairID": "1.jpg#0r1n"}
    numbers = ({"Flikr30kID": "1"}, {"Flickr30kID": 1}, {"Flickr30KID": "1"})
    spelt = [row | number | {"pairID": f"1.jpg#0r{n}n"} for n, number in enumerate(numbers)]
    write(tmp_path, "en/train.jsonl", *spelt, row, spelt[0] | {"gold_label": "-"}, spelt[0] | {"sentence2": ""})
    write(tmp_path, "fr/train.jsonl", spelt[0] | {"sentence2": "assis"}, spelt[1] | {"gold_label": "entailment"})
    write(tmp_path, "en/dev.jsonl", spelt[0], spelt[0] | {"sentence2": "she sits"}, spelt[1] | {"Flikr30kID": "2"})
    (tmp_path / "1.jpg").write_bytes(PICTURE)
    (tmp_path / "2.jpg").write_bytes(b"GIF89a")
    splits = by_split(xvnli.records(tmp_path))
    (record,) = splits["train"]
    assert [(said.texts, said.labels) for said in record.statements] == [
        ({"en": "he sits", "fr": "assis"}, {"neutral": 1.0}),
        ({"en": "he sits"}, {"neutral": 1.0}),
        ({"en": "he sits"}, {"neutral": 1.0}),
        ({"fr": "he sits"}, {"entailment": 1.0}),  # another label: another statement
    ]
    assert [said.texts for said in splits["dev"][0].statements] == [{"en": "he sits"}]
    for reason in (
        "1 left out, first line 4: no Flikr30kID",
        "1 left out, first line 5: gold label is none of contradiction, neutral, entailment",
        "1 left out, first line 6: no sentence2",
        "1 left out, first 1 1.jpg#0r0n: the statement stands there twice in language en",
        "1 left out, first 2.jpg: image neither jpeg, png nor webp",
    ):
        assert reason in caplog.text


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    for recipe in (xvnli, xgqa, nlvr2, captions):
        with pytest.raises(ValueError, match=rf"^{recipe.__name__.rpartition('.')[2]}: .* (has no|has none|holds no)"):
            list(recipe.records(tmp_path))
    (tmp_path / "few_shot" / "de").mkdir(parents=True)
    (tmp_path / "few_shot" / "de" / "dev.json").write_text('{"1": {"imageId": "n1", ')
    with pytest.raises(ValueError, match=r"dev\.json is cut or no JSON"):
        list(xgqa.records(tmp_path))
    (tmp_path / "dataset_flickr30k.json").write_text("[]")
    with pytest.raises(ValueError, match=r"dataset_flickr30k\.json has no list `images`"):
        list(captions.records(tmp_path))
