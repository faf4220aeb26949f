"""Captions for retrieval in many languages: Multi30K and COCO as CCLM keeps them, xFlickr&CO, Flickr30K, Karpathy's.

Source: one data set's files in one folder, each a list of rows about an image, in any of these forms:
  [{"image": "..jpg", "caption": ".." or ["..", ..]}, ..]           .json, as CCLM's, ALBEF's and X-VLM's
  {"img_path": "..jpg", "sentences": ["..", ..]}                     .jsonl, as IGLUE's datasets/xFlickrCO, flickr30k
  {"images": [{"filename", "split", "sentences": [{"raw"}]}, ..]}    dataset_flickr30k.json, dataset_coco.json
  images                                                             anywhere below the folder, or in .zip files there
An image is found by its path or else by its bare name, which is unique in all of these.
Licences: pictures as their owners on Flickr say; captions of COCO CC-BY-4.0, of Multi30K and Flickr30K for research;
IGLUE states none for xFlickr&CO. Size: Flickr30K 31,014 images (4 GB), COCO 123,287 (25 GB); xFlickr&CO 2,000 of them.

The language is the file name's part of two letters (`en.1k_test.json`, `de_train.json`), or else the folder's name
(`de/test.jsonl`), or else English. The split is the file's name without it and without `_ann`: `1k_test`, `train`,
`train_100x5`; `val` and `valid` become `dev`. Karpathy's `restval` becomes `train`. Machine translations are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from cclm.data.annotations import Row, annotation_files, gather, json_lines, json_rows, parsed, text, unicode_text
from cclm.data.raw import read_json, record_key
from cclm.errors import SampleError
from cclm.types import Record

SPLITS = {"val": "dev", "valid": "dev", "restval": "train"}
LANGUAGE = re.compile(r"[a-z]{2}")


def split_and_language(path: Path) -> tuple[str, str]:
    """What the file's name says, and its folder's."""
    parts = re.split(r"[._-]", path.stem.removesuffix("_ann"))
    candidates = [part for part in (*parts, path.parent.name) if LANGUAGE.fullmatch(part)]
    language = candidates[0] if candidates else "en"
    split = "_".join(part for part in parts if part != language)
    return SPLITS.get(split, split), language


def captions(row: dict[str, Any]) -> tuple[str, ...]:
    """Errors: SampleError."""
    given = row.get("caption", row.get("sentences"))
    listed = given if isinstance(given, list) else [given]
    texts = (unicode_text(item.get("raw") if isinstance(item, dict) else item) for item in listed)
    found = tuple(filter(None, texts))
    if not found:
        raise SampleError("no caption")
    return found


def rows_of(path: Path) -> Iterable[tuple[str, Any]]:
    """Place and row. Errors: ValueError naming the file."""
    if path.suffix == ".jsonl":
        return json_lines(path)
    if not path.name.startswith("dataset_"):
        return json_rows(path)
    images = read_json(path)
    images = images.get("images") if isinstance(images, dict) else None
    if not isinstance(images, list):
        raise ValueError(f"captions: {path} has no list `images`, as Karpathy's files do: fetch it again")
    return ((f"image {number}", image) for number, image in enumerate(images, 1))


def read_file(path: Path) -> Iterator[Row]:
    split, language = split_and_language(path)

    def parse(place: str, row: dict[str, Any]) -> Row:
        image = text(row, "image", "img_path", "filename")
        own = unicode_text(row.get("split")) or split
        key = record_key(PurePosixPath(image).with_suffix("").as_posix())
        return Row(SPLITS.get(own, own), key=key, images=(image,), language=language, texts=captions(row))

    return parsed(path, rows_of(path), parse)


def records(source: Path, *, images: str = "") -> Iterator[tuple[str, Record]]:
    """Yield (split, record), a record per image. Rows without caption or image are left out, counted and logged.

    `images`: the folder of the pictures, where it is another than `source`.
    """
    files = annotation_files(source, "*.json", "*.jsonl")
    if not files:
        raise ValueError(f"captions: {source} holds no .json or .jsonl: see the recipe's docstring for what it reads")
    yield from gather(source, (row for path in files for row in read_file(path)), images, by_name=True)
