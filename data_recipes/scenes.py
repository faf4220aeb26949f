"""Drawn scenes of one object, described in en de tr zh: whether what is learned in English holds in the others.

Source: none, `--source` is not read: pictures are drawn and sentences written here, the same ones for the same seed.
Licence: that of this repository. Size: 400 scenes = 8 colours x 5 shapes x 2 sizes x 5 positions; 2,560 pictures of
64 pixels to train on, 320 of other scenes to test, 320 of the trained scenes drawn anew, 1,600 sentences; 8 MB.

A scene has four sentences in each language, the n-th of every language meaning the same; `read_scene` reads them back.
Place, size, turn, hue and background of every picture vary a little. A key such as `red-star-small-left-3` is a scene
and the number of its picture. 80 scenes are held out, so that every three values of theirs are trained on together.

Splits: `train` holds pictures of the other 320 with English captions alone; `test` those held out, and `seen` further
pictures of the 320, with captions in all languages and one sentence of them as `parallel`; `sentences` those of all
400 scenes without pictures.
"""

from __future__ import annotations

import colorsys
import io
import itertools
import math
import random
import unicodedata
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw

from cclm.types import Record

LANGUAGES = ("en", "de", "tr", "zh")
# Stems of the words as en de tr zh have them, and hue, saturation and value as drawn.
COLOURS = {
    "red": (("red", "rot", "kırmızı", "红色"), (0.0, 0.9, 0.85)),
    "green": (("green", "grün", "yeşil", "绿色"), (0.36, 0.8, 0.55)),
    "blue": (("blue", "blau", "mavi", "蓝色"), (0.61, 0.85, 0.85)),
    "yellow": (("yellow", "gelb", "sarı", "黄色"), (0.15, 0.9, 0.95)),
    "purple": (("purple", "violett", "mor", "紫色"), (0.79, 0.75, 0.6)),
    "brown": (("brown", "braun", "kahverengi", "棕色"), (0.07, 0.75, 0.42)),
    "black": (("black", "schwarz", "siyah", "黑色"), (0.0, 0.0, 0.06)),
    "white": (("white", "weiß", "beyaz", "白色"), (0.0, 0.0, 0.97)),
}
SHAPES = {
    "circle": ("circle", "Kreis", "daire", "圆"),
    "square": ("square", "Quadrat", "kare", "正方形"),
    "triangle": ("triangle", "Dreieck", "üçgen", "三角形"),
    "star": ("star", "Stern", "yıldız", "星星"),
    "crescent": ("crescent", "Mondsichel", "hilal", "月牙"),
}
GENDERS = {"circle": "m", "square": "n", "triangle": "n", "star": "m", "crescent": "f"}  # German
COUNTERS = {"star": "颗", "crescent": "弯"}  # Chinese measure words other than 个
SIZES = {"small": (("small", "klein", "küçük", "小"), 0.14), "large": (("large", "groß", "büyük", "大"), 0.22)}
# Centres as shares of the side; Turkish has three forms: where it is, the one there, and in the picture's part.
POSITIONS = {
    "left": (("on the left", "links", "solda soldaki solunda", "左边"), (0.26, 0.5)),
    "right": (("on the right", "rechts", "sağda sağdaki sağında", "右边"), (0.74, 0.5)),
    "top": (("at the top", "oben", "üstte üstteki üstünde", "上边"), (0.5, 0.26)),
    "bottom": (("at the bottom", "unten", "altta alttaki altında", "下边"), (0.5, 0.74)),
    "centre": (("in the centre", "in der Mitte", "ortada ortadaki ortasında", "中间"), (0.5, 0.5)),
}
# Article and ending of an adjective by case and gender.
GERMAN = {
    "nominative": {"m": ("ein", "er"), "n": ("ein", "es"), "f": ("eine", "e")},
    "accusative": {"m": ("einen", "en"), "n": ("ein", "es"), "f": ("eine", "e")},
    "dative": {"m": ("einem", "en"), "n": ("einem", "en"), "f": ("einer", "en")},
}
SHARPNESS = 4  # drawn so many times larger, then reduced: soft edges


@dataclass(frozen=True)
class Scene:
    """One object: what it is, and where."""

    colour: str
    shape: str
    size: str
    position: str

    def __str__(self) -> str:
        return "-".join(astuple(self))

    @property
    def held_out(self) -> bool:
        """Never trained on as a picture; with any other size, colour, shape or position it is."""
        places = (COLOURS, SHAPES, SIZES, POSITIONS)
        return sum(list(names).index(value) for names, value in zip(places, astuple(self), strict=True)) % 5 == 0


VALUES = dict(
    zip((f.name for f in fields(Scene)), map(tuple, (COLOURS, SHAPES, SIZES, POSITIONS)), strict=True)
)  # attribute -> what it can be
SCENES = tuple(itertools.starmap(Scene, itertools.product(*VALUES.values())))


def scene_of(key: str) -> Scene:
    """The scene that a record's key names. Errors: ValueError."""
    scene = Scene(*(key.split("-") + [""] * 4)[:4])
    if any(value not in VALUES[name] for name, value in vars(scene).items()):
        raise ValueError(f"scenes: key {key!r} names no scene; it begins as red-star-small-left")
    return scene


def describe(scene: Scene, language: str) -> tuple[str, ...]:
    """The scene's four sentences; the n-th means the same in every language. Errors: KeyError for another language."""
    words = {"en": english, "de": german, "tr": turkish, "zh": chinese}[language]
    number = LANGUAGES.index(language)
    size, colour = SIZES[scene.size][0][number], COLOURS[scene.colour][0][number]
    return words(scene, size, colour, SHAPES[scene.shape][number], POSITIONS[scene.position][0][number])


def english(scene: Scene, size: str, colour: str, shape: str, position: str) -> tuple[str, ...]:
    thing = f"a {size} {colour} {shape}"
    return (
        f"{thing} {position}",
        f"{position} you see {thing}",
        f"the {shape} {position} is {size} and {colour}",
        f"a picture with {thing} {position}",
    )


def german(scene: Scene, size: str, colour: str, shape: str, position: str) -> tuple[str, ...]:
    gender = GENDERS[scene.shape]
    things = {}
    for case, forms in GERMAN.items():
        article, ending = forms[gender]
        things[case] = f"{article} {size}{ending} {colour}{ending} {shape}"
    the = {"m": "der", "n": "das", "f": "die"}[gender]
    return (
        f"{things['nominative']} {position}",
        f"{position} sieht man {things['accusative']}",
        f"{the} {shape} {position} ist {size} und {colour}",
        f"ein Bild mit {things['dative']} {position}",
    )


def turkish(scene: Scene, size: str, colour: str, shape: str, position: str) -> tuple[str, ...]:
    there, which, part = position.split()
    thing = f"{size} {colour} bir {shape}"
    return (
        f"{there} {thing}",
        f"{there} {thing} görülüyor",
        f"{which} {shape} {size} ve {colour}",
        f"{part} {thing} olan bir resim",
    )


def chinese(scene: Scene, size: str, colour: str, shape: str, position: str) -> tuple[str, ...]:
    thing = f"一{COUNTERS.get(scene.shape, '个')}{colour}的{size}{shape}"
    return (
        f"{position}{thing}",
        f"在{position}可以看到{thing}",
        f"{position}的{shape}很{size}而且是{colour}的",
        f"一张{position}有{thing}的图片",
    )


def plain(text: str) -> str:
    """What two spellings of a sentence share: tokenizers may lower-case, and set or drop blanks."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


@cache
def sentences(language: str) -> dict[str, Scene]:
    """Every sentence of the language, plain, and what it says."""
    return {plain(text): scene for scene in SCENES for text in describe(scene, language)}


def read_scene(text: str, language: str) -> Scene | None:
    """What a sentence says; None where it is none of ours in this language."""
    return sentences(language).get(plain(text))


def outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape about the origin, within a radius of 1."""
    if shape == "square":
        return [(math.cos(angle), math.sin(angle)) for angle in (math.tau * (n + 0.5) / 4 for n in range(4))]
    if shape == "triangle":
        return [(math.sin(angle), -math.cos(angle)) for angle in (math.tau * n / 3 for n in range(3))]
    if shape == "star":
        radii = ((0.42 if n % 2 else 1.0, math.tau * n / 10) for n in range(10))
        return [(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in radii]
    whole = [(math.cos(angle), math.sin(angle)) for angle in (math.tau * n / 60 for n in range(60))]
    if shape == "circle":
        return [(0.9 * x, 0.9 * y) for x, y in whole]
    # A crescent: the round of the left, and back along a flatter arc.
    outer = [(x, y) for x, y in whole if x <= 0.35]
    inner = [(0.35 - 0.75 * math.cos(t), 0.94 * math.sin(t)) for t in (math.pi * (0.5 - n / 30) for n in range(31))]
    return [(x + 0.33, y) for x, y in sorted_arc(outer) + inner]  # its middle at the origin


def sorted_arc(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of the left of a circle from its top round to its bottom."""
    return sorted(points, key=lambda point: math.atan2(point[1], -point[0]))


def draw(scene: Scene, generator: random.Random, size: int) -> bytes:
    """A picture of the scene, as PNG."""
    hue, saturation, value = COLOURS[scene.colour][1]
    value = min(1.0, max(0.0, value + generator.uniform(-0.05, 0.05)))
    hue = (hue + generator.uniform(-0.012, 0.012)) % 1
    fill = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    grey = generator.randint(135, 180)
    side = size * SHARPNESS
    x, y = (side * (place + generator.uniform(-0.03, 0.03)) for place in POSITIONS[scene.position][1])
    radius = side * SIZES[scene.size][1] * generator.uniform(0.92, 1.08)
    angle = math.radians(generator.uniform(-8, 8))
    cos, sin = radius * math.cos(angle), radius * math.sin(angle)
    picture = Image.new("RGB", (side, side), (grey, grey, grey))
    corners = [(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in outline(scene.shape)]
    ImageDraw.Draw(picture).polygon(corners, fill=fill)
    out = io.BytesIO()
    picture.resize((size, size), Image.Resampling.BOX).save(out, "PNG")
    return out.getvalue()


def records(
    source: Path, *, size: int = 64, draws: int = 8, test_draws: int = 4, seed: int = 0
) -> Iterator[tuple[str, Record]]:
    """Yield (split, record). `size`: a picture's side in pixels. `draws`: of a scene in `train`; `test_draws`: in
    `test`, and one in `seen`. `seed`: of what varies.
    """
    for option, value, least in (("size", size, 16), ("draws", draws, 1), ("test_draws", test_draws, 1)):
        if value < least:
            raise ValueError(f"scenes: option {option}={value}; give {least} or more")
    for scene in SCENES:
        captions = {language: list(describe(scene, language)) for language in LANGUAGES}
        same = [dict(zip(captions, texts, strict=True)) for texts in zip(*captions.values(), strict=True)]
        for number, texts in enumerate(same):
            yield "sentences", Record(f"{scene}-{number}", parallel=texts)
        last = test_draws if scene.held_out else draws + 1
        for number in range(last):
            key = f"{scene}-{number}"
            picture = draw(scene, random.Random(f"{seed}/{key}"), size)
            if scene.held_out or number == draws:
                told = same[(number + SCENES.index(scene)) % len(same)]
                yield "test" if scene.held_out else "seen", Record(key, picture, captions, told)
            else:
                yield "train", Record(key, picture, {"en": captions["en"]})
