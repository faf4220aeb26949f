"""Decoding single samples: every malformed json has its own counted reason."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from cclm.data.records import SampleError, decode_image_record, decode_text_records
from cclm.images import check_header, opaque, open_image
from tests.data.conftest import picture


def _reason(fields: object, texts: dict[str, bytes] | None = None) -> str:
    data = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    with pytest.raises(SampleError) as raised:
        decode_image_record("k", b"", {"json": data, **(texts or {})})
    return raised.value.reason


def test_json_without_captions_is_counted() -> None:
    assert _reason({}) == "json without captions"
    assert _reason({"captions": {}}) == "json without captions"
    assert _reason({"captions": {"en": [" "]}}) == "json without captions"
    assert _reason({"caption": 3, "url": "u"}) == "json without captions"
    assert _reason({}, {"txt": b"\n"}) == "json without captions"
    with pytest.raises(SampleError, match="image without captions"):
        decode_image_record("k", b"", {})


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[" * 200_000, b"", b'{"captions": {"en": ["\\ud800"]}}'])
def test_broken_json(data: bytes) -> None:
    assert _reason(data) == "json not readable"


@pytest.mark.parametrize("captions", [["x"], {"en": "x"}, {"en": [1]}, "x"])
def test_captions_of_another_shape(captions: object) -> None:
    assert _reason({"captions": captions}) == "captions are not {language: [text, ..]}"


def test_text_members_of_another_shape() -> None:
    for fields, reason in (
        ({}, "json without captions or sentences"),
        ({"sentences": {}}, "sentences are not a list"),
        ({"sentences": [{"en": 1}]}, "sentences are not {language: text}"),
        ({"sentences": ["x"]}, "sentences are not {language: text}"),
    ):
        with pytest.raises(SampleError) as raised:
            decode_text_records("k", json.dumps(fields).encode())
        assert raised.value.reason == reason


def png_bomb(side: int) -> bytes:
    """A PNG of a few kB whose header claims side x side pixels, and whose data really unfolds to that."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_100, 16_000])  # below and above where Pillow itself refuses
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def testpng_bomb_is_refused_by_its_header(side: int) -> None:
    bomb = png_bomb(side)
    assert len(bomb) < 200_000
    for call in (check_header, open_image):
        with pytest.raises(SampleError, match="image over 64 megapixels"):
            call(bomb)


@pytest.mark.parametrize(
    "data", [b"", b"x" * 100, picture(1)[:300], picture(1, kind="PNG")[:100], picture(1, kind="WEBP")[:60]]
)
def test_broken_images(data: bytes) -> None:
    with pytest.raises(SampleError, match="image not readable"):
        open_image(data)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO"])
def test_formats_off_the_list_are_not_opened(kind: str) -> None:
    with pytest.raises(SampleError, match="image not readable"):
        open_image(picture(1, kind=kind))


def test_jpegs_decode_near_the_wanted_size() -> None:
    assert open_image(picture(1, 640)).size == (640, 640)
    assert open_image(picture(1, 640), 100).size == (160, 160)
    assert open_image(picture(1, 640), 320).size == (320, 320)
    assert open_image(picture(1, 640), 321).size == (640, 640)
    assert open_image(picture(1, 640, "PNG"), 100).size == (640, 640)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_stand_upright(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (64, 32))
    upright.paste((255, 255, 255), (0, 0, 32, 16))  # only the upper left quarter is white
    undone = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)  # what a camera held that way stores
    stored = ImageOps.exif_transpose(_noted(upright, undone, kind))
    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(data, kind, exif=exif)
    assert check_header(data.getvalue()) == (64, 32)
    found = open_image(data.getvalue())
    assert opaque(found).size == found.size == (64, 32)  # turned once, whoever asks again
    corners = [opaque(found).getpixel(place)[0] > 128 for place in ((4, 4), (60, 4), (4, 28), (60, 28))]
    assert corners == [True, False, False, False]


def _noted(image: Image.Image, orientation: int, kind: str) -> Image.Image:
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(data, kind, exif=exif)
    return Image.open(data)


def test_transparency_is_laid_on_white() -> None:
    import io

    from PIL import Image

    for mode, colour in (("RGBA", (255, 0, 0, 0)), ("LA", (0, 0)), ("RGBA", (255, 0, 0, 255))):
        out = io.BytesIO()
        Image.new(mode, (4, 4), colour).save(out, "PNG")
        image = open_image(out.getvalue())
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == ((255, 0, 0) if colour[-1] else (255, 255, 255))


def test_grey_of_16_bits_is_that_of_8_bits() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)

    def png(values: np.ndarray, **more: object) -> bytes:
        out = io.BytesIO()
        Image.fromarray(values).save(out, "PNG", **more)
        return out.getvalue()

    deep, eight = grey.astype(np.uint16) * 257, np.asarray(open_image(png(grey)))
    assert np.array_equal(open_image(png(deep)), eight)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(open_image(png(deep, exif=exif)), np.rot90(eight, -1))
    clear = np.asarray(open_image(png(deep, transparency=514)))
    assert clear[0, 2].tolist() == [255] * 3 and clear[0, 3].tolist() == [3] * 3
