"""Explanations to look at: heat drawn over its picture, and a sheet with a tile for every word."""

from __future__ import annotations

import logging
import math
import unicodedata
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, features

from cclm.images import opaque

if TYPE_CHECKING:
    from cclm.types import Explanation

logger = logging.getLogger(__name__)

COLOURS = "inferno"  # perceptually uniform: equal steps of heat look equal
STRENGTH = 0.55  # of the colours over the picture
TILE, LINE, GAP, COLUMNS = 224, 22, 8, 6  # pixels; tiles in a row at most
_FONT_SIZE = 16


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The picture in grey under the colours of its heat (h, w) from 0 to 1: cold parts dark, hot ones bright.

    Errors: ValueError for heat of another shape or range, or a picture that cannot be read.
    """
    import matplotlib

    if heat.ndim != 2 or not heat.size or not (np.isfinite(heat) & (heat >= 0) & (heat <= 1)).all():
        raise ValueError(f"heat of shape {heat.shape} cannot be drawn; give (h, w) numbers from 0 to 1")
    spread = Image.fromarray(heat.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    coloured = matplotlib.colormaps[COLOURS](np.asarray(spread), bytes=True)[..., :3]  # (H, W, 3)
    return Image.blend(opaque(image).convert("L").convert("RGB"), Image.fromarray(coloured), STRENGTH)


def sheet(image: Image.Image, explanation: Explanation) -> Image.Image:
    """The picture, the heat of all words, and that of each word with the word under it and its share of all heat.

    A word that no font here has all characters of is numbered instead, and the log tells which it is.
    """
    picture = ImageOps.contain(opaque(image), (TILE, TILE), Image.Resampling.BICUBIC)
    tiles = [(picture, "", ""), (overlay(picture, explanation.overall), "", f"match {explanation.match:.0%}")]
    unwritten = []
    words = zip(explanation.tokens, explanation.heat, explanation.shares, strict=True)
    for number, (word, heat, share) in enumerate(words, start=1):
        written = font_of(word) is not None
        if not written:
            unwritten.append(f"{number} {word}")
        tiles.append((overlay(picture, heat), word if written else str(number), f"{share:.0%}"))
    if unwritten:
        logger.warning("no font of this machine has these words, which are numbered: %s", ", ".join(unwritten))
    return _grid(tiles)


def _grid(tiles: list[tuple[Image.Image, str, str]]) -> Image.Image:
    """Pictures with two lines under each: a word, and what is said of it."""
    columns = min(COLUMNS, len(tiles))
    width, height = TILE + GAP, TILE + 2 * LINE + GAP
    canvas = Image.new("RGB", (columns * width + GAP, math.ceil(len(tiles) / columns) * height + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (tile, *lines) in enumerate(tiles):
        left, top = GAP + place % columns * width, GAP + place // columns * height
        canvas.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        for number, line in enumerate(lines):
            font, middle = font_of(line), (left + TILE / 2, top + TILE + LINE * (number + 0.5))
            assert font is not None, "a line that is written has a font"
            draw.text(middle, _fitting(line, font, TILE), font=font, fill="black", anchor="mm")
    return canvas


def _fitting(label: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The label, or as much of its beginning as fits."""
    if font.getlength(label) <= width:
        return label
    kept = next(size for size in range(len(label), -1, -1) if font.getlength(label[:size] + "..") <= width)
    return label[:kept] + ".."


def font_of(text: str) -> ImageFont.FreeTypeFont | None:
    """A font that has all characters of the text, DejaVu if it does; None where none has, or nothing to join them."""
    if not features.check("raqm") and any(_joined(character) for character in text):
        return None
    wanted = frozenset(text)
    if wanted <= _characters(_own_font()):
        return ImageFont.truetype(str(_own_font()), _FONT_SIZE)
    path = next((path for path in _fonts() if wanted <= _characters(path)), None)
    return path and ImageFont.truetype(str(path), _FONT_SIZE)


def _joined(character: str) -> bool:
    """Whether it takes a layout engine to set it: right to left, or placed on another character."""
    return unicodedata.bidirectional(character) in ("R", "AL") or unicodedata.category(character).startswith("M")


def _own_font() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


@cache
def _fonts() -> list[Path]:
    """All of this machine, upright and regular ones first, those of many scripts before others."""
    from matplotlib import font_manager

    found = map(Path, font_manager.findSystemFonts())
    return sorted(
        found, key=lambda path: ("Regular" not in path.stem, "Sans" not in path.stem, "CJK" not in path.stem, path.stem)
    )


@cache
def _characters(path: Path) -> frozenset[str]:
    """Those that a font has glyphs for; none where it cannot be drawn at our size."""
    from matplotlib import ft2font

    try:
        ImageFont.truetype(str(path), _FONT_SIZE)
        return frozenset(map(chr, ft2font.FT2Font(str(path)).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
