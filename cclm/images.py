"""Opening images from untrusted bytes: header first, three formats, a pixel cap; jpegs decoded near the used size.

Pictures stand upright, as their camera noted: what a model sees, and what sizes and boxes count, is what people see.
"""

from __future__ import annotations

import io
from datetime import datetime

from PIL import Image

from cclm.errors import SampleError

PIXELS = 64_000_000  # decoded cap; a PNG of a few kB can claim far more
FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112  # EXIF: 1 as stored, 5 to 8 lying on a side
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split()  # from 2 on
_EXIF, _TAKEN = 0x8769, 0x9003  # EXIF's own directory, and DateTimeOriginal in it


def open_header(data: bytes) -> Image.Image:
    """A lazily opened image whose header has been checked. Errors: SampleError."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise SampleError(f"image over {PIXELS // 1_000_000} megapixels") from error
    except Exception as error:  # PIL raises a dozen types on broken bytes: OSError, SyntaxError, struct.error, ..
        raise SampleError("image not readable") from error
    if image.width * image.height > PIXELS:
        raise SampleError(f"image over {PIXELS // 1_000_000} megapixels")
    return image


def check_header(data: bytes) -> tuple[int, int]:
    """(width, height) by the header alone, of the upright picture. Errors: SampleError."""
    return upright_size(open_header(data))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) as the picture is seen."""
    return image.size if _orientation(image) < 5 else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info:  # asking a PNG without it would decode all of it
        return 1
    try:
        found = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken in any of the ways in which such data can be
        return 1
    return found if 1 <= found <= 8 else 1


def open_image(data: bytes, size: int | None = None) -> Image.Image:
    """The decoded RGB image; a jpeg larger than `size` is decoded at 1/2, 1/4 or 1/8 but never below `size` on a side.

    The colour of transparent pixels is laid on white. Errors: SampleError.
    """
    return decoded(open_header(data), size)


def decoded(image: Image.Image, size: int | None = None) -> Image.Image:
    """As `open_image`, of what `open_header` has opened."""
    if size is not None and image.format == "JPEG":
        image.draft("RGB", (size, size))
    return opaque(image)


def opaque(image: Image.Image) -> Image.Image:
    """Decoded, upright, in RGB; the colour of transparent pixels is laid on white. Errors: SampleError."""
    if not image.width or not image.height:
        raise SampleError("image without pixels")
    try:
        image.load()
        if image.mode.startswith("I"):
            image = _eight_bits(image)
        if (orientation := _orientation(image)) > 1:
            image = image.transpose(Image.Transpose[_TURNS[orientation - 2]])
            del image.info["exif"]  # whoever asks again finds it upright
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:
        raise SampleError("image not readable") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8: Pillow's own conversion takes all but the darkest 256th for white."""
    grey = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if isinstance(clear := image.info.get("transparency"), int):
        grey.info["transparency"] = clear // 257
    return grey


def taken_at(image: Image.Image) -> datetime | None:
    """When a picture was taken, as its camera noted (EXIF DateTimeOriginal, no time zone); None where it did not."""
    try:
        return datetime.strptime(image.getexif().get_ifd(_EXIF)[_TAKEN].strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except Exception:  # none, or one that is no date, in any of the ways in which such data can be broken
        return None
