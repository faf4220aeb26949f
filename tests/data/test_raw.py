"""Large JSON files read in pieces, and images found by the end of their path."""

from __future__ import annotations

import io
import json
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from cclm.data.image_ids import photo_number
from cclm.data.raw import open_images, read_json_items, read_json_members
from cclm.errors import SampleError

VALUES = [{"a": [1, 2]}, 12345, "text, with: ]}", '\\"', None, [], {}, -1.5e3, "ü火", True]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
@pytest.mark.parametrize("indent", [None, 2])
def test_pieces_give_what_the_whole_gives(tmp_path: Path, chunk: int, indent: int | None) -> None:
    path = tmp_path / "large.json"
    path.write_text(json.dumps(VALUES, indent=indent, ensure_ascii=False) + "\n")
    assert list(read_json_items(path, chunk)) == VALUES
    members = {f"key {number}": value for number, value in enumerate(VALUES)}
    path.write_text(json.dumps(members, indent=indent, ensure_ascii=False))
    assert list(read_json_members(path, chunk)) == list(members.items())


def test_a_byte_order_mark_is_no_part_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"id": "é"}]', encoding="utf-8-sig")
    assert list(read_json_items(path)) == [{"id": "é"}]
    path.write_text('{"é": 1}', encoding="utf-8-sig")
    assert list(read_json_members(path)) == [("é", 1)]


def test_what_is_no_list_or_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    for text, message in (
        ("{}", "is no JSON list"),
        ("", "is no JSON list"),
        ("[1, 2", "is cut or no JSON"),
        ("[1, 2,", "is cut or no JSON"),
        ('[1, {"a": ', "is cut or no JSON"),
        ("[1, wrong]", "is cut or no JSON"),
        ("[1.5", "is cut or no JSON"),
        ('["a""b"]', "is cut or no JSON"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"large\.json {message}"):
            list(read_json_items(path))
    with pytest.raises(ValueError, match=r"large\.json is no JSON object"):
        list(read_json_members(path))
    path.write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match=r"large\.json is damaged or no UTF-8 text"):
        list(read_json_items(path))


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(buffer, "png")
    return buffer.getvalue()


def test_images_are_found_by_the_end_of_their_path(tmp_path: Path) -> None:
    root, below, deep, accent, zipped = map(png, ("red", "green", "blue", "white", "black"))
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(root)
    (tmp_path / "b" / "a.png").write_bytes(below)
    (tmp_path / "b" / "c" / "a.png").write_bytes(deep)
    (tmp_path / "b" / unicodedata.normalize("NFD", "é.png")).write_bytes(accent)
    with zipfile.ZipFile(tmp_path / "b" / "more.zip", "w") as archive:
        archive.writestr("d/c/a.png", zipped)
        archive.writestr("d/notes.txt", b"text")
    with open_images(tmp_path) as images:
        found = {name: images.read(name) for name in ("a.png", "./a.png", "b/a.png", "c/a.png", "d/c/a.png")}
        assert list(found.values()) == [root, root, below, deep, zipped]
        for form in ("NFC", "NFD"):
            assert images.read(unicodedata.normalize(form, "b/é.png")) == accent
        for absent in ("x/a.png", "notes.txt", "../a.png", "aa.png", ""):
            assert absent not in images
            with pytest.raises(SampleError, match="image missing"):
                images.read(absent)


def test_an_image_is_found_in_another_format(tmp_path: Path) -> None:
    deep, flat = map(png, ("red", "green"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.v1.png").write_bytes(deep)
    (tmp_path / "a.v1.PNG").write_bytes(flat)
    with open_images(tmp_path) as images:
        for name, image in (("a.v1.jpg", flat), ("a.v1", flat), ("b/a.v1.webp", deep), ("b/a.v1", deep)):
            assert images.read(name) == image
        for absent in ("a.jpg", "a", "a.v1.txt", "c/a.v1.jpg"):
            assert absent not in images


def test_a_photograph_is_found_by_its_number(tmp_path: Path) -> None:
    flickr, coco, other = map(png, ("red", "green", "blue"))
    (tmp_path / "1007320043_627395c3d8.png").write_bytes(flickr)
    (tmp_path / "left_000000391895.png").write_bytes(other)
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("val2017/000000391895.png", coco)
    with open_images(tmp_path) as images:
        assert images.read("1007320043.jpg") == images.read("flickr30k/1007320043_627395c3d8_b.jpg") == flickr
        assert images.read("COCO_val2014_000000391895.jpg") == images.read("000000391895.jpg") == coco
        assert images.read("left_000000391895.png") == other
        for absent in ("1007320044.jpg", "right_000000391895.png", "COCO_val2014_000000391896.jpg", "n391895.jpg"):
            assert absent not in images


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("1007129816.jpg", "1007129816"),
        ("flickr30k/1007129816_e794419615.webp", "1007129816"),
        ("11832916064_229e7bd246_b.jpg", "11832916064"),
        ("36979", "36979"),
        ("COCO_train2014_000000117071.jpg#367178", "coco-117071"),
        ("val2014_COCO_val2014_000000391895", "coco-391895"),
        ("coco-COCO_val2014_000000391895", "coco-391895"),
        ("coco-000000391895", "coco-391895"),
        ("val2017/000000391895.jpg", "coco-391895"),
        ("n161313.jpg", ""),
        ("39-Panci/39-11.jpg", ""),
        ("wit-test_3", ""),
        ("dev-850-0-img0.png", ""),
        ("1007129816_front.jpg", ""),
    ],
)
def test_the_number_of_a_photograph(name: str, number: str) -> None:
    assert photo_number(name) == number
