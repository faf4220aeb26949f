"""A contact sheet: one row of generated pictures a language, each over its prompt, in a font that can write it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cclm.images import opaque

CELL = 144  # pixels of a picture's longer side, at least
MARGIN = 10  # around cells
TEXT, CODE, LEADING, LINES = 14, 17, 18, 3  # sizes of prompts and codes, from line to line, lines of a prompt
INK, PAPER = (29, 36, 48), (255, 255, 255)
# Families that cover much stand first; then whatever the machine has.
_PREFERRED = ("DejaVuSans.ttf", "NotoSans-Regular", "NotoSansCJK-Regular", "NotoNaskhArabic", "NotoSans")
_UNDRAWN = ("Zs", "Cf")  # blanks, and what joins or turns letters


@cache
def _fonts() -> tuple[str, ...]:
    """Paths of the regular fonts here, those that cover most first; matplotlib brings DejaVu along."""
    from matplotlib import font_manager

    found = {*font_manager.findSystemFonts(), font_manager.findfont("DejaVu Sans")}
    upright = [path for path in found if not any(word in path for word in ("Bold", "Italic", "Oblique", "Mono"))]

    def order(path: str) -> tuple[int, str]:
        names = [number for number, name in enumerate(_PREFERRED) if Path(path).name.startswith(name)]
        return min(names, default=len(_PREFERRED)), path

    return tuple(sorted(upright, key=order))


@cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, ValueError):  # broken, or of a kind that it does not read
        return frozenset()


def font_for(texts: Sequence[str], size: int = TEXT) -> ImageFont.FreeTypeFont | None:
    """A font of this machine that has every character of the texts; None where no font has."""
    told = {character for text in texts for character in text if unicodedata.category(character) not in _UNDRAWN}
    wanted = set(map(ord, told))
    path = next((path for path in _fonts() if wanted <= _characters(path)), None)
    return ImageFont.truetype(path, size) if path else None


def contact_sheet(
    pictures: Mapping[str, Sequence[Image.Image]], prompts: Mapping[str, Sequence[str]], samples: int = 8
) -> Image.Image:
    """One row a language, or whatever else the mapping names, with its first `samples` pictures over their prompts.

    A prompt that is too long ends in "..", and one that no font here can write is left out: its row still has its code.
    Errors: ValueError for no pictures, and for a row without as many prompts.
    """
    if not pictures or not all(pictures.values()):
        raise ValueError("a contact sheet needs a row of pictures or more, each of one picture or more")
    for name, row in pictures.items():
        if len(prompts[name]) != len(row):
            raise ValueError(f"contact sheet: {len(row)} pictures, {len(prompts[name])} prompts in row {name!r}")
    codes = font_for(list(pictures), CODE) or font_for(["?"], CODE)
    assert codes is not None  # matplotlib's own
    gutter = 2 * MARGIN + round(max(map(codes.getlength, pictures)))
    columns = min(samples, max(map(len, pictures.values())))
    labels = {name: _labels(prompts[name][:columns]) for name in pictures}
    below = LEADING * max(len(lines) for row in labels.values() for lines in row.lines)
    step_x, step_y = CELL + MARGIN, CELL + below + 2 * MARGIN
    sheet = Image.new("RGB", (gutter + columns * step_x, len(pictures) * step_y + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (name, row) in enumerate(pictures.items()):
        top = MARGIN + number * step_y
        pen.text((MARGIN, top), name, font=codes, fill=INK)
        for column, picture in enumerate(row[:columns]):
            left = gutter + column * step_x
            sheet.paste(_fitted(picture), (left, top))
            for line, text in enumerate(labels[name].lines[column]):
                pen.text((left, top + CELL + 4 + line * LEADING), text, font=labels[name].font, fill=INK)
    return sheet


@dataclass(frozen=True)
class _Labels:
    """The prompts of a row in lines, all in one font."""

    font: ImageFont.FreeTypeFont | None
    lines: list[list[str]]


def _labels(prompts: Sequence[str]) -> _Labels:
    font = font_for(prompts)
    return _Labels(font, [wrapped(prompt, font, CELL) if font else [] for prompt in prompts])


def _fitted(picture: Image.Image) -> Image.Image:
    """In a square cell: small pictures enlarged by whole numbers so that their pixels show, others reduced."""
    picture = opaque(picture)
    longer = max(picture.size)
    scale = CELL // longer if longer <= CELL else CELL / longer
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    kind = Image.Resampling.NEAREST if longer <= CELL else Image.Resampling.LANCZOS
    cell = Image.new("RGB", (CELL, CELL), PAPER)
    cell.paste(picture.resize(size, kind), ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = LINES) -> list[str]:
    """Lines of at most `width` pixels, broken at blanks where there are any, the last one ending in ".." if cut."""
    lines, rest = [], " ".join(text.split())
    while rest and len(lines) < most:
        fits = next(count for count in range(len(rest), 0, -1) if count == 1 or font.getlength(rest[:count]) <= width)
        if fits < len(rest) and (blank := rest.rfind(" ", 0, fits + 1)) > 0:
            fits = blank
        lines.append(rest[:fits].strip())
        rest = rest[fits:].strip()
    if rest:
        last = lines[-1]
        while last and font.getlength(f"{last}..") > width:
            last = last[:-1]
        lines[-1] = f"{last}.."
    return lines
