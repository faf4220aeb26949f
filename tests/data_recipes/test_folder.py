"""The folder recipe: images beside captions.jsonl, in folders and zips, and every kind of bad line."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from data_recipes import folder
from tests.data.test_records import png_bomb


def picture(colour: str = "red", kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, kind)
    return buffer.getvalue()


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


GOOD = {
    "key": "one",
    "image": "one.png",
    "split": "dev",
    "captions": {"en": ["a cat", " "], "de": "eine Katze"},
    "parallel": {"en": "a cat", "fr": "un chat"},
}


def test_images_are_found_in_folders_and_zips(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "one.png").write_bytes(picture())
    (tmp_path / "deep" / "er" / "two.jpg").write_bytes(picture("green", "jpeg"))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("sub/three.x.webp", picture("blue", "webp"))
    rows = lines(
        GOOD, {"image": "two.jpg", "captions": {"en": ["b"]}}, {"image": "three.x.webp", "captions": {"en": ["c"]}}
    )
    with gzip.open(tmp_path / "captions.jsonl.gz", "wt") as handle:
        handle.write(rows)
    (dev, one), (train, two), (_, three) = folder.records(tmp_path)
    assert (dev, one.key, one.image) == ("dev", "one", picture())
    assert one.captions == {"en": ["a cat"], "de": ["eine Katze"]}
    assert one.parallel == {"en": "a cat", "fr": "un chat"}
    assert (train, two.key, two.image) == ("train", "two", picture("green", "jpeg"))
    assert (three.key, three.image) == ("three_x", picture("blue", "webp"))


def test_source_may_be_one_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("pack/captions.jsonl", lines(GOOD))
        archive.writestr("pack/one.png", picture())
    ((split, record),) = folder.records(tmp_path / "all.zip")
    assert (split, record.image) == ("dev", picture())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_lines_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "one.png").write_bytes(picture())
    (tmp_path / "fake.png").write_bytes(b"GIF89a")
    (tmp_path / "wide.png").write_bytes(png_bomb(8_100))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(65 * 2**20))
    rows = lines(
        *("not json", "[]", {"image": 3}, {"image": "one.png"}, {"image": "one.png", "captions": {"en": []}}),
        *({"image": name, "captions": {"en": ["x"]}} for name in ("gone.png", "fake.png", "bomb.png")),
        {"image": "one.png", "captions": ["x"]},
        {"image": "wide.png", "captions": {"en": ["x"]}},
        {"image": "one.png", "captions": {"en": ["half a letter: \ud800"]}},
        GOOD,
    )
    (tmp_path / "captions.jsonl").write_text(rows)
    assert [record.key for _, record in folder.records(tmp_path)] == ["one"]
    for reason in (
        "2 left out, first line 1: json not readable",
        "2 left out, first line 2: names no image",
        "2 left out, first line 4: no captions",
        "1 left out, first line 6: image missing",
        "1 left out, first line 7: image neither jpeg, png nor webp",
        "1 left out, first line 8: image over",
        "1 left out, first line 9: captions are not {language: [text, ..]}",
        "1 left out, first line 10: image over 64 megapixels",
    ):
        assert reason in caplog.text


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*nowhere: give a folder or zip"):
        list(folder.records(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"has no captions\.jsonl or captions\.jsonl\.gz"):
        list(folder.records(tmp_path))
    (tmp_path / "some.zip").write_bytes(b"PK but not really")
    with pytest.raises(ValueError, match=r"some\.zip is no whole zip file"):
        list(folder.records(tmp_path / "some.zip"))


def test_cut_captions_are_named(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(picture())
    whole = gzip.compress(lines(*[GOOD] * 50).encode())
    (tmp_path / "captions.jsonl.gz").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"captions\.jsonl\.gz is cut, damaged or no UTF-8 text"):
        list(folder.records(tmp_path))


def test_real_photos(shared: Path) -> None:
    first = list(islice(folder.records(shared / "photos"), 50))
    assert len({record.key for _, record in first}) == 50
    assert all(len(record.captions["en"]) == 5 for _, record in first)
    with Image.open(io.BytesIO(first[0][1].image)) as image:
        assert min(image.size) == 128
