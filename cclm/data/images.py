"""Where this package takes image opening from."""

from cclm.images import FORMATS, PIXELS, check_header, open_image

__all__ = ["FORMATS", "PIXELS", "check_header", "open_image"]
