"""The regions recipe: CCLM's region files, Visual Genome's phrases and COCO's objects, and every kind of bad region."""

from __future__ import annotations

import base64
import gzip
import json
import zipfile
from pathlib import Path

import pytest

from cclm.data.build import build
from cclm.data.shards import read_records
from cclm.types import Region
from data_recipes import regions
from tests.data.test_records import png_bomb
from tests.data_recipes.conftest import PICTURE, picture

WIDE = picture("blue", "png", (40, 30))


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def test_files_of_cclm(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(WIDE)
    several = {"caption": [{"en": "a cat", "de": "eine Katze"}, {"en": "a pet"}], "bb": [1, 2, 3, 4]}
    described = {
        "caption": {"en": ["a dog"]},
        "bb": [0, 0, 40.5, 31],
        "attributes": {"en": ["big", "red"], "de": "rot"},
    }
    english = {"caption": "a bird", "bb": [-5, -5, 10, 10], "attributes": ["small"]}
    rows = [
        {"binary": "pictures/1.png", "caption": {"en": "a room"}, "elems": [several, described]},
        {"binary": base64.b64encode(WIDE).decode(), "elems": [english]},
    ]
    (tmp_path / "part-0.jsonl").write_text(lines(*rows))
    with gzip.open(tmp_path / "part-1.jsonl.gz", "wt") as handle:
        handle.write(lines(rows[0]))
    (train, one), (_, two), (_, three) = regions.records(tmp_path)
    assert (train, one.key, one.image, one.size) == ("train", "part-0-line_1", WIDE, (40, 30))
    assert one.captions == {"en": ["a room"]}
    assert one.regions == (
        Region((1.0, 2.0, 3.0, 4.0), {"en": ["a cat", "a pet"], "de": ["eine Katze"]}),
        Region((0.0, 0.0, 40.0, 30.0), {"en": ["a dog"]}, {"en": ["big", "red"], "de": ["rot"]}),
    )
    assert (two.key, two.image, two.captions) == ("part-0-line_2", WIDE, {})
    assert two.regions == (Region((0.0, 0.0, 5.0, 5.0), {"en": ["a bird"]}, {"en": ["small"]}),)
    assert (three.key, three.regions) == ("part-1-line_1", one.regions)
    build("regions", tmp_path, tmp_path / "built")
    assert list(read_records(tmp_path / "built" / "train")) == [one, two, three]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_lines_and_regions_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1.jpg").write_bytes(PICTURE)
    (tmp_path / "huge.png").write_bytes(png_bomb(8_100))
    good = {"caption": {"en": "a cat"}, "bb": [0, 0, 2, 2]}
    boxes = ([4, 0, 2, 2], [0, 0, 0, 2], [1, 1, -1, 1], [0, 0, 2], "0 0 2 2", [0, 0, "2", 2], [0, 0, float("nan"), 1])
    elements = [good, {"bb": [0, 0, 2, 2]}, good | {"caption": {"en": " "}}, 7, *(good | {"bb": box} for box in boxes)]
    row = {"binary": "1.jpg", "elems": [good]}
    rows = [
        row | {"elems": elements},
        "{cut",
        "[]",
        row | {"binary": "gone.jpg"},
        row | {"binary": "no base64!"},
        row | {"binary": base64.b64encode(b"GIF89a").decode()},
        row | {"binary": base64.b64encode(PICTURE[:40]).decode()},
        row | {"binary": "huge.png"},
        {"elems": [good]},
        {"binary": "1.jpg"},
        row | {"elems": []},
        row | {"elems": [good | {"caption": {"en": "half a letter: \ud800"}}]},
    ]
    (tmp_path / "some.jsonl").write_text(lines(*rows))
    ((_, record),) = regions.records(tmp_path)
    assert record.regions == (Region((0.0, 0.0, 2.0, 2.0), {"en": ["a cat"]}),)
    for reason in (
        "2 left out, first some-line_1, region 2: region without a caption",
        "1 left out, first some-line_1, region 4: region that is no JSON object",
        "3 left out, first some-line_1, region 5: region of no size within its picture",
        "3 left out, first some-line_1, region 8: region whose box is not 4 numbers",
        "1 left out, first some-line_1, region 11: region whose box is not finite",
        "2 left out, first line 2: json not readable",
        "1 left out, first line 3: no JSON object",
        "1 left out, first line 4: image missing",
        "1 left out, first line 5: binary is neither base64 nor a path",
        "1 left out, first line 6: image neither jpeg, png nor webp",
        "1 left out, first line 7: image not readable",
        "1 left out, first line 8: image over 64 megapixels",
        "1 left out, first line 9: no binary",
        "1 left out, first line 10: no list elems",
        "1 left out, first line 11: no region that can be used",
    ):
        assert reason in caplog.text


def test_visual_genome_and_coco(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("VG_100K/7.jpg", WIDE)
        archive.writestr("val2017/000000000001.jpg", WIDE)
    phrase = {"phrase": " the clock", "x": 4, "y": 5, "width": 6, "height": 7, "image_id": 7, "region_id": 1}
    described = [{"id": 7, "regions": [phrase, phrase | {"phrase": ""}]}, {"id": 8, "regions": [phrase]}]
    (tmp_path / "region_descriptions.json").write_text(json.dumps(described))
    found = {"image_id": 1, "category_id": 3, "bbox": [0.5, 1.5, 10.25, 5], "iscrowd": 0}
    coco = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (1, 2)],
        "annotations": [found, found | {"iscrowd": 1}],
        "categories": [{"id": 3, "name": "traffic light"}],
    }
    (tmp_path / "instances_val2017.json").write_text(json.dumps(coco))
    (dev, objects), (train, phrases) = regions.records(tmp_path)
    assert (dev, objects.key, objects.size) == ("dev", "instances_val2017-image_1", (40, 30))
    assert objects.regions == (Region((0.5, 1.5, 10.25, 5.0), {"en": ["traffic light"]}),)
    assert (train, phrases.key) == ("train", "region_descriptions-image_7")
    assert phrases.regions == (Region((4.0, 5.0, 6.0, 7.0), {"en": ["the clock"]}),)
    for reason in (
        "region_descriptions.json: 1 left out, first region_descriptions-image_7, region 2: region without a caption",
        "region_descriptions.json: 1 left out, first image 8: image missing",
        "instances_val2017.json: 1 left out, first image 2: image missing",
    ):
        assert reason in caplog.text


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^regions: .* has none of \*\.jsonl"):
        list(regions.records(tmp_path))
    path = tmp_path / "instances_train2017.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"instances_train2017\.json is not of its .*\(no 'categories'\)"):
        list(regions.records(tmp_path))
    path.unlink()
    (tmp_path / "region_descriptions.json").write_text("[3]")
    with pytest.raises(ValueError, match=r"region_descriptions\.json is not of its .*: fetch it again"):
        list(regions.records(tmp_path))
