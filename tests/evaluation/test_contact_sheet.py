"""Contact sheets: size, places of pictures, prompts that wrap, and scripts that some font here, or none, can write."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from cclm.evaluation.contact_sheet import CELL, CODE, LEADING, MARGIN, contact_sheet, font_for, wrapped

COLOURS = ("red", "lime", "blue")
LONG = "a picture of a very long sentence about a small red circle on the left which nobody could ever draw at once"


def pictures(side: int) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), colour) for colour in COLOURS]


def gutter(*names: str) -> int:
    """Pixels left of the first column."""
    return 2 * MARGIN + round(max(map(font_for(names, CODE).getlength, names)))


def middle(sheet: Image.Image, row: int, column: int, step: int) -> tuple[int, ...]:
    return sheet.getpixel(
        (gutter("en", "de", "tr") + column * (CELL + MARGIN) + CELL // 2, MARGIN + row * step + CELL // 2)
    )


def test_a_row_a_language_and_a_column_a_sample() -> None:
    sheet = contact_sheet(
        {"en": pictures(32), "de": pictures(200), "tr": pictures(144)},
        {"en": ["red", "green", "blue"], "de": ["rot", "grün", LONG], "tr": ["kırmızı", "yeşil", "mavi"]},
        samples=2,
    )
    step = CELL + LEADING + 2 * MARGIN  # the long prompt stands in a column that is not shown
    assert sheet.size == (gutter("en", "de", "tr") + 2 * (CELL + MARGIN), 3 * step + MARGIN)
    assert [middle(sheet, row, column, step) for row in range(3) for column in range(2)] == 3 * [
        (255, 0, 0),
        (0, 255, 0),
    ]
    pixels = np.asarray(sheet).astype(int)
    for row in range(3):  # a code beside, a prompt below
        top = MARGIN + row * step
        assert (pixels[top : top + 24, MARGIN : 2 * MARGIN] < 128).any()
        assert (pixels[top + CELL + 4 : top + step - MARGIN, gutter("en") + MARGIN : gutter("en") + CELL] < 128).any()


def test_long_prompts_wrap_and_end_in_dots() -> None:
    font = font_for(["x"])
    assert isinstance(font, ImageFont.FreeTypeFont)
    lines = wrapped(LONG, font, CELL)
    assert len(lines) == 3 and lines[-1].endswith("..") and LONG.startswith(" ".join(lines)[:-2])
    assert all(font.getlength(line) <= CELL for line in lines)
    unbroken = wrapped("x" * 60, font, CELL)  # as Chinese, which sets no blanks
    assert len(unbroken) > 1 and all(font.getlength(line) <= CELL for line in unbroken)
    assert wrapped("", font, CELL) == [] and wrapped("a star", font, CELL) == ["a star"]
    sheet = contact_sheet({"en": pictures(8)[:1]}, {"en": [LONG]})
    assert sheet.size == (gutter("en") + CELL + MARGIN, CELL + 3 * LEADING + 3 * MARGIN)


def test_what_no_font_can_write_is_left_out_and_its_row_still_named() -> None:
    unknown = chr(0x10FFFD)  # for private use: nobody's
    assert font_for(["плюс", "çiğ"]) is not None and font_for([unknown]) is None
    sheet = contact_sheet({"xx": pictures(8)}, {"xx": [unknown, "b", "c"]})
    pixels = np.asarray(sheet)
    assert (pixels[:, MARGIN : 2 * MARGIN] < 128).any() and (pixels[MARGIN + CELL + 4 :, gutter("xx") :] == 255).all()


def test_no_pictures_and_missing_prompts_are_refused() -> None:
    for empty in ({}, {"en": []}):
        with pytest.raises(ValueError, match="one picture or more"):
            contact_sheet(empty, {"en": []})
    with pytest.raises(ValueError, match="3 pictures, 1 prompts in row 'en'"):
        contact_sheet({"en": pictures(8)}, {"en": ["red"]})
