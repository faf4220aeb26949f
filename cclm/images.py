"""Opening images from untrusted bytes: header first, three formats, a pixel cap; jpegs decoded near the used size."""

from __future__ import annotations

import io
from datetime import datetime

from PIL import Image

from cclm.errors import SampleError

PIXELS = 64_000_000  # decoded cap; a PNG of a few kB can claim far more
FORMATS = ("JPEG", "PNG", "WEBP")
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
    """(width, height) by the header alone. Errors: SampleError."""
    return open_header(data).size


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
    """Decoded, in RGB; the colour of transparent pixels is laid on white. Errors: SampleError."""
    if not image.width or not image.height:
        raise SampleError("image without pixels")
    try:
        image.load()
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:
        raise SampleError("image not readable") from error


def taken_at(image: Image.Image) -> datetime | None:
    """When a picture was taken, as its camera noted (EXIF DateTimeOriginal, no time zone); None where it did not."""
    try:
        return datetime.strptime(image.getexif().get_ifd(_EXIF)[_TAKEN].strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except Exception:  # none, or one that is no date, in any of the ways in which such data can be broken
        return None
