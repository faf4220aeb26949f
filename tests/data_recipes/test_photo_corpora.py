"""Multi30K and WIT as they ship, with pictures made up, and Multi30K on the real photographs that are at hand."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from cclm.data.build import build
from cclm.data.shards import read_records
from cclm.types import Record
from data_recipes import multi30k, wit
from tests.data_recipes.conftest import PICTURE, named_picture
from tests.data_recipes.test_benchmarks import by_split, check_build, rows


def zip_of(path: Path, names: set[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(names):
            archive.writestr(name, named_picture(name))


def captions(records: list[Record]) -> dict[str, int]:
    return dict(Counter(language for record in records for language, said in record.captions.items() for _ in said))


def test_multi30k(bundle: Path, tmp_path: Path) -> None:
    source = bundle / "multi30k"
    lists = [path.read_text().split() for path in source.glob("task1/image_splits/*.txt")]
    zip_of(tmp_path / "flickr30k.zip", {name.partition("#")[0] for names in lists for name in names})
    built = build("multi30k", source, tmp_path / "built", {"images": str(tmp_path)})
    assert {split: manifest.samples for split, manifest in built.splits.items()} == {
        "train": 29000, "dev": 1014, "test": 1000, "test_2017_flickr": 1000, "test_2017_mscoco": 461,
        "test_2018_flickr": 1071,
    }  # fmt: skip
    splits = {split: list(read_records(tmp_path / "built" / split)) for split in ("test", "test_2017_mscoco")}
    assert captions(splits["test"]) == {"en": 5000, "de": 5000, "fr": 1000, "cs": 1000}
    assert captions(splits["test_2017_mscoco"]) == {"en": 461, "de": 461, "fr": 461}
    first = next(read_records(tmp_path / "built" / "train"))
    assert (first.key, first.image) == ("1000092795", named_picture("1000092795.jpg"))
    assert first.parallel["en"] == first.captions["en"][1] == "Two young, White males are outside near many bushes."
    assert first.parallel["de"].startswith("Zwei junge weiße Männer sind im Freien")
    assert splits["test_2017_mscoco"][0].key == "COCO_train2014_000000117071"


@pytest.mark.parametrize(("task", "each"), [(1, {"en": 1, "de": 1, "fr": 1, "cs": 1}), (2, {"en": 5, "de": 5})])
def test_multi30k_of_one_task_on_real_photographs(bundle: Path, shared: Path, task: int, each: dict[str, int]) -> None:
    photos = shared / "photos"
    splits = by_split(multi30k.records(bundle / "multi30k", task=task, images=str(photos)))
    assert len(splits["dev"]) == 214
    assert captions(splits["dev"]) == {language: 214 * count for language, count in each.items()}
    assert all(bool(record.parallel) == (task == 1) for record in splits["dev"])


def test_multi30k_that_is_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no task1/raw/train\.en\.gz"):
        list(multi30k.records(tmp_path))
    (tmp_path / "data/task1/raw").mkdir(parents=True)
    (tmp_path / "data/task1/raw/val.en").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"image_splits has no val\.txt"):
        list(multi30k.records(tmp_path))
    (tmp_path / "data/task1/image_splits").mkdir()
    (tmp_path / "data/task1/image_splits/val.txt").write_text("1.jpg\n")
    with pytest.raises(ValueError, match=r"val\.en has 2 lines for 1 pictures"):
        list(multi30k.records(tmp_path))
    with pytest.raises(ValueError, match=r"option task=3; give 1"):
        list(multi30k.records(tmp_path, task=3))


def test_wit(bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = bundle / "iglue/wit"
    numbers = {row["wit_ix"] for path in source.glob("annotations/*.jsonl") for row in rows(path)}
    zip_of(tmp_path / "images.zip", {f"{number}.jpg" for number in numbers})
    splits = by_split(wit.records(source, images=str(tmp_path)))
    assert captions(splits["test"]) == {
        "ar": 890, "bg": 860, "da": 891, "el": 569, "en": 1000, "et": 874, "id": 900, "ja": 1000, "ko": 931, "tr": 721,
        "vi": 946,
    }  # fmt: skip
    assert len(splits["dev"]) == len({row["wit_ix"] for row in rows(source / "annotations/val_en.jsonl")})
    assert {record.key: record.image for record in splits["test"]}["wit-test_3"] == named_picture("wit-test_3.jpg")
    for language in ("el", "id"):  # one blank caption each
        assert f"test_{language}.jsonl: 1 left out" in caplog.text
    check_build("wit", source, tmp_path / "built", splits, {"images": str(tmp_path)})


def test_wit_pictures_are_found_by_their_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = [
        {"wit_ix": "wit_1", "image_url": "http://w.org/a/S%C3%A9.JPG", "caption_reference_description": "one"},
        {"wit_ix": "wit_1", "image_url": "http://w.org/a/S%C3%A9.JPG", "caption_reference_description": "two"},
        {"wit_ix": "wit_2", "image_url": "http://w.org/a/gone.jpg", "caption_reference_description": "three"},
        {"wit_ix": "wit_3", "image_url": "http://w.org/a/b.jpg", "caption_reference_description": "four"},
    ]
    (tmp_path / "train_en.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    (tmp_path / "Sé.JPG").write_bytes(PICTURE)
    (tmp_path / "wit_3.png").write_bytes(named_picture("three"))
    (tmp_path / "b.jpg").write_bytes(PICTURE)
    splits = by_split(wit.records(tmp_path))
    assert {record.key: (record.captions, record.image) for record in splits["train"]} == {
        "wit_1": ({"en": ["one", "two"]}, PICTURE),
        "wit_3": ({"en": ["four"]}, named_picture("three")),
    }
    assert "1 left out, first wit_2: image missing" in caplog.text
    (tmp_path / "train_en.jsonl").unlink()
    with pytest.raises(ValueError, match=r"^wit: .* has no test_ar\.jsonl"):
        list(wit.records(tmp_path))
