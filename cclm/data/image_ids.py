"""Which photograph a file name or a record's key speaks of, whatever prefix, suffix or ending a data set gave it."""

from __future__ import annotations

import re
import unicodedata

from cclm.data.records import IMAGE_SUFFIXES

# Flickr's number, as in Flickr30K and Multi30K, perhaps with the secret and size of the file that Flickr serves.
_FLICKR = re.compile(r"([1-9]\d{4,10})(_[0-9a-f]{8,12}(_[a-z])?)?")
# COCO's number of twelve digits: COCO_val2014_000000391895, 000000391895, and as recipes make keys of these.
_COCO = re.compile(r"(?:(?:.*[_-])?COCO_[a-z]+\d{4}_|coco-|[a-z]+\d{4}_)?(0\d{11})")


def stem(name: str) -> str:
    """The last part of a path, composed, without ending, and without the caption's number that may follow a `#`."""
    last = unicodedata.normalize("NFC", name).rpartition("/")[2].partition("#")[0]
    start, dot, end = last.rpartition(".")
    return start if dot and end.lower() in IMAGE_SUFFIXES else last


def photo_number(name: str) -> str:
    """The photograph's number on Flickr, or "coco-" and its number in COCO; "" for names that hold neither."""
    last = stem(name)
    if found := _FLICKR.fullmatch(last):
        return found[1]
    found = _COCO.fullmatch(last)
    return f"coco-{int(found[1])}" if found else ""
