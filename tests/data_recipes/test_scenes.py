"""The scenes recipe: sentences say what is drawn and read back, held-out scenes stay out, pictures follow the seed."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cclm.data.build import build
from cclm.data.shards import read_records
from cclm.types import Record
from data_recipes.scenes import LANGUAGES, SCENES, VALUES, Scene, describe, read_scene, records, scene_of


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for split, record in records(Path(), size=32, draws=2, test_draws=1):
        found.setdefault(split, []).append(record)
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sentence_reads_back(language: str) -> None:
    told = [(scene, text) for scene in SCENES for text in describe(scene, language)]
    assert len({text for _, text in told}) == len(told) == 1600
    for scene, text in told:
        assert read_scene(text, language) == scene
        assert read_scene(f" {text.upper() if language == 'en' else text.replace(' ', '  ')} ", language) == scene
        assert all(read_scene(text, other) is None for other in LANGUAGES if other != language)
    assert read_scene(told[0][1] + " x", language) is None and read_scene("", language) is None


def test_german_agrees_in_case_and_gender() -> None:
    assert describe(Scene("red", "crescent", "small", "left"), "de") == (
        "eine kleine rote Mondsichel links",
        "links sieht man eine kleine rote Mondsichel",
        "die Mondsichel links ist klein und rot",
        "ein Bild mit einer kleinen roten Mondsichel links",
    )
    star, square = Scene("white", "star", "large", "centre"), Scene("white", "square", "large", "top")
    assert describe(star, "de")[:2] == (
        "ein großer weißer Stern in der Mitte",
        "in der Mitte sieht man einen großen weißen Stern",
    )
    assert describe(square, "de")[2:] == (
        "das Quadrat oben ist groß und weiß",
        "ein Bild mit einem großen weißen Quadrat oben",
    )
    assert read_scene("ein große weiße Stern in der Mitte", "de") is None


def test_turkish_and_chinese_forms() -> None:
    star = Scene("blue", "star", "small", "right")
    assert describe(star, "tr")[2:] == ("sağdaki yıldız küçük ve mavi", "sağında küçük mavi bir yıldız olan bir resim")
    assert [describe(Scene("blue", shape, "large", "top"), "zh")[0] for shape in ("circle", "star", "crescent")] == [
        "上边一个蓝色的大圆",
        "上边一颗蓝色的大星星",
        "上边一弯蓝色的大月牙",
    ]


def test_held_out_scenes_are_never_trained_on_and_every_three_values_are(splits: dict[str, list[Record]]) -> None:
    trained = {scene_of(record.key) for record in splits["train"]}
    tested = {scene_of(record.key) for record in splits["test"]}
    assert (len(trained), len(tested)) == (320, 80) and not trained & tested
    assert {scene_of(record.key) for record in splits["seen"]} == trained
    assert not {record.key for record in splits["train"]} & {record.key for record in splits["seen"]}
    for three in itertools.combinations(VALUES, 3):
        met = {tuple(getattr(scene, name) for name in three) for scene in trained}
        assert len(met) == np.prod([len(VALUES[name]) for name in three])


def test_only_english_meets_pictures_of_training(splits: dict[str, list[Record]]) -> None:
    assert [len(splits[split]) for split in ("train", "test", "seen", "sentences")] == [640, 80, 320, 1600]
    for split, found in splits.items():
        for record in found:
            scene, texts = scene_of(record.key), [*record.captions.items()]
            assert set(record.captions) == {"train": {"en"}, "sentences": set()}.get(split, set(LANGUAGES))
            assert set(record.parallel) == (set() if split == "train" else set(LANGUAGES))
            texts += [(language, [text]) for language, text in record.parallel.items()]
            assert all(read_scene(text, language) == scene for language, told in texts for text in told)
    parallel = {tuple(record.parallel.values()) for record in splits["sentences"]}
    assert all(tuple(record.parallel.values()) in parallel for record in splits["test"])


def test_pictures_follow_the_seed_and_show_the_place(splits: dict[str, list[Record]]) -> None:
    again = {record.key: record.image for split, record in records(Path(), size=32, draws=2, test_draws=1)}
    other = {record.key: record.image for split, record in records(Path(), size=32, draws=2, test_draws=1, seed=1)}
    pictures = [record for split in ("train", "test", "seen") for record in splits[split]]
    assert len({record.image for record in pictures}) == len(pictures)
    for record in pictures:
        assert record.image == again[record.key] != other[record.key]
        pixels = np.asarray(Image.open(io.BytesIO(record.image or b""))).astype(int)
        assert pixels.shape == (32, 32, 3)
        y, x = np.nonzero(np.abs(pixels - pixels[0, 0]).sum(-1) > 60)
        where = {"left": (x, -1), "right": (x, 1), "top": (y, -1), "bottom": (y, 1)}
        axis, sign = where.get(scene_of(record.key).position, (x, 0))
        assert abs(axis.mean() - 15.5 - sign * 7.5) < 3


def test_builds_as_a_dataset_and_names_what_is_wrong(tmp_path: Path) -> None:
    built = build("scenes", Path(), tmp_path / "scenes", {"size": 16, "draws": 1, "test_draws": 1})
    assert built.splits["train"].languages == {"en": 320} and built.splits["sentences"].samples == 1600
    read = list(read_records(str(tmp_path / "scenes" / "test")))
    assert {scene_of(record.key) for record in read} == {scene for scene in SCENES if scene.held_out}
    with pytest.raises(ValueError, match="option draws=0; give 1 or more"):
        next(records(Path(), draws=0))
    with pytest.raises(ValueError, match="key 'red-star-huge-left-0' names no scene"):
        scene_of("red-star-huge-left-0")
