"""Which image a file name or a record's key speaks of, whatever prefix, suffix or ending a data set gave it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from cclm.data.records import IMAGE_SUFFIXES

# Flickr's number, as in Flickr30K and Multi30K, perhaps with the secret and size of the file that Flickr serves, and
# after a folder that went into a key: flickr30k-images_1007129816.
_FLICKR = re.compile(r"(?:flickr[a-z0-9]*(?:[_-][a-z]+)?[_-])?([1-9]\d{4,10})(_[0-9a-f]{8,12}(_[a-z])?)?")
# COCO's number of twelve digits: COCO_val2014_000000391895, 000000391895, and as recipes make keys of these.
_COCO = re.compile(r"(?:(?:.*[_-])?COCO_[a-z]+\d{4}_|coco-|[a-z]+\d{4}_)?(0\d{11})")
# Two images of one record: dev-850-0-img0.png and -img1.png of NLVR2, whose key is dev-850-0; of MaRVL, where names
# are unique within a language, id/images/39-Panci/39-0.jpg and 39-11.jpg, whose key is id-39-0-39-11.
_NLVR2 = re.compile(r"(.+-\d+)-img[01]")
_MARVL = re.compile(r"(?:.*/)?([a-z]{2})/images/[^/]+/(\d+-(?:n-)?\d+)")
_MARVL_KEY = re.compile(r"([a-z]{2})-(\d+-(?:n-)?\d+)-(\d+-(?:n-)?\d+)")


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


def image_id(name: str) -> str:
    """One name for all names of an image: its photograph's number, or else its stem in lower case."""
    if number := photo_number(name):
        return number
    if marvl := _MARVL.match(name):
        return f"{marvl[1]}/{marvl[2]}"
    last = re.sub(r"[.#\s]+", "_", stem(name).lower())  # as in a record's key
    pair = _NLVR2.fullmatch(last)
    return pair[1] if pair else last


def ids_of_key(key: str) -> tuple[str, ...]:
    """`image_id` of the image, or images, that a record of this key is about."""
    marvl = _MARVL_KEY.fullmatch(key)
    return tuple(f"{marvl[1]}/{name}" for name in marvl.groups()[1:]) if marvl else (image_id(key),)


def key_of(names: Sequence[str]) -> str:
    """A key for a record about these images, from which `ids_of_key` has their ids again."""
    ids = list(dict.fromkeys(map(image_id, names)))
    language, slash, _ = ids[0].partition("/")
    return "-".join([language, *(each.partition("/")[2] for each in ids)] if slash else ids)
