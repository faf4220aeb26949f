"""The emoji recipe on small packages of the real layout: who meets a picture, what is left out, what goes wrong."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_recipes import emoji

SQUARE = '<path fill="#ff0000" d="M0 0h{0}v{0}H0z"/>'
CAT, DOG, FLAG, WAVE, HEART = "1f408", "1f415", "1f1eb-1f1f7", "1f44b", "2764-fe0f"
NAMES = {"🐈": "cat", "🐕": "dog", "🇫🇷": "flag: France", "👋": "waving hand", "👋🏽": "waving hand: tone", "❤": "heart"}


def pack(source: Path, package: str, members: dict[str, Any]) -> None:
    path = source / f"{package.lstrip('@').replace('/', '-')}-{emoji.PACKAGES[package]}.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pack_style(source: Path, style: str, icons: dict[str, str], side: int) -> None:
    """`icons`: emoji -> SVG body. Flags are of a category of their own."""
    flags = [f"icon-{code}" for code in icons if code == FLAG]
    categories = {"Animals & Nature": [f"icon-{code}" for code in icons if code in (CAT, DOG)], "Flags": flags}
    members: dict[str, Any] = {
        "metadata.json": {"categories": categories},
        "chars.json": {code: f"icon-{code}" for code in icons},
        "icons.json": {"width": side, "icons": {f"icon-{code}": {"body": body} for code, body in icons.items()}},
    }
    pack(source, f"@iconify-json/{style}", members)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    for package, part in (
        ("cldr-annotations-full", "annotations"),
        ("cldr-annotations-derived-full", "annotationsDerived"),
    ):
        members = {}
        for language in emoji.LANGUAGES:
            names = {
                text: {"tts": [f"{name} in {language}"]}
                for text, name in NAMES.items()
                if ("flag" in name or "tone" in name) == (part == "annotationsDerived")
            }
            if language == "th":
                names.pop("👋", None)
            members[f"{part}/{language}/annotations.json"] = {part: {"annotations": names}}
        pack(tmp_path, package, members)
    square = SQUARE.format(8)
    pack_style(tmp_path, "noto", {CAT: square, DOG: square, WAVE: square, f"{WAVE}-1f3fd": square, HEART: square}, 16)
    pack_style(tmp_path, "twemoji", {CAT: square, DOG: "<path d='M0", FLAG: square}, 16)
    pack_style(tmp_path, "openmoji", {CAT: square, DOG: '<image href="/etc/hostname"/>'}, 16)
    pack_style(tmp_path, "fluent-emoji-flat", {CAT: square, HEART: square}, 16)
    return tmp_path


def test_only_english_meets_pictures_of_training(packages: Path) -> None:
    found = list(emoji.records(packages, size=32))
    keys = {split: [record.key for s, record in found if s == split] for split in ("names", "train", "test")}
    # The hand has no Thai name, its darker twin is a variant, the flag lacks three styles.
    assert keys["names"] == ["name-1f1eb-1f1f7", "name-1f408", "name-1f415", "name-2764"]
    assert keys["test"] == ["fluent-emoji-flat-1f408", "fluent-emoji-flat-2764"]
    assert keys["train"] == [
        *("noto-1f408", "noto-1f415", "noto-2764"),
        *("twemoji-1f1eb-1f1f7", "twemoji-1f408", "openmoji-1f408"),
    ]
    for split, record in found:
        if split == "train":
            assert set(record.captions) == {"en"} and not record.parallel
        elif split == "test":
            assert set(record.captions) == set(emoji.LANGUAGES)
        else:
            assert record.image is None and set(record.parallel) == set(emoji.LANGUAGES)


def test_pictures_are_drawn_on_white_and_the_same_each_time(packages: Path) -> None:
    first, second = (dict((r.key, r.image) for _, r in emoji.records(packages, size=32)) for _ in range(2))
    assert first == second
    with Image.open(io.BytesIO(first["noto-1f408"])) as picture:
        assert picture.size == (32, 32)
        assert picture.convert("RGB").getpixel((4, 4)) == (255, 0, 0)
        assert picture.convert("RGB").getpixel((28, 28)) == (255, 255, 255)


def test_a_picture_that_is_not_square_is_centred() -> None:
    flag = {"flag": {"body": SQUARE.format(10), "width": 20, "height": 10, "left": 2}}
    style = emoji.ArtStyle("some", flag, {FLAG: "flag"}, side=16)
    assert 'viewBox="2 -5 20 20"' in style.svg(FLAG)


def test_broken_drawings_are_counted(packages: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    list(emoji.records(packages))
    assert "twemoji: 2 pictures for train, 1 broken drawings skipped" in caplog.text
    assert "openmoji: 1 pictures for train, 1 broken drawings skipped" in caplog.text


def test_another_style_can_be_held_out(packages: Path) -> None:
    test = [record.key for split, record in emoji.records(packages, test_style="twemoji") if split == "test"]
    assert test == ["twemoji-1f1eb-1f1f7", "twemoji-1f408"]
    with pytest.raises(ValueError, match=r"no art style test_style='nato': choose one of noto, "):
        list(emoji.records(packages, test_style="nato"))


def test_one_style_alone_can_be_trained_on(packages: Path) -> None:
    found = list(emoji.records(packages, train_style="twemoji"))
    every = [(split, record.key) for split, record in emoji.records(packages) if "noto" not in record.key]
    assert [(split, record.key) for split, record in found] == [one for one in every if "openmoji" not in one[1]]
    assert [record.key for split, record in found if split == "train"] == ["twemoji-1f1eb-1f1f7", "twemoji-1f408"]
    with pytest.raises(ValueError, match="train_style and test_style are both 'fluent-emoji-flat': choose two"):
        list(emoji.records(packages, train_style="fluent-emoji-flat"))
    with pytest.raises(ValueError, match=r"no art style train_style='nato': choose one of noto, "):
        list(emoji.records(packages, train_style="nato"))


def test_pictures_of_some_categories_alone(packages: Path) -> None:
    found = list(emoji.records(packages, categories="Flags"))
    assert [record.key for split, record in found if split != "names"] == ["twemoji-1f1eb-1f1f7"]
    assert len([split for split, _ in found if split == "names"]) == 4  # texts of all
    both = list(emoji.records(packages, categories="Animals & Nature, Flags"))
    assert {record.key.split("-", 1)[1] for split, record in both if split == "train"} == {CAT, FLAG, DOG}
    with pytest.raises(ValueError, match=r"no category 'Animals': choose among Animals & Nature, Flags"):
        list(emoji.records(packages, categories="Animals,Flags"))


def test_missing_npm_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"missing and so is the command npm.*install Node\.js") as caught:
        list(emoji.records(tmp_path / "source"))
    assert "\n" not in str(caught.value)


def test_failing_npm_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\necho 'npm error more' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"`npm pack cldr-annotations-full@\S+` failed \(npm error code E404\)"
    ) as caught:
        list(emoji.records(tmp_path / "source"))
    assert "\n" not in str(caught.value)


def test_a_cut_package_is_named(packages: Path) -> None:
    path = next(packages.glob("*openmoji*"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"openmoji.*delete it and run again"):
        list(emoji.records(packages))
