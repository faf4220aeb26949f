"""Parts of pictures with captions of their own: CCLM's region files, Visual Genome's phrases, COCO's objects.

Source: one folder with any of these files, and the pictures anywhere below it or in .zip files there.
  *.jsonl[.gz]               CCLM's: {"binary": base64 or path, "caption": .., "elems": [{"caption": .., "bb": [x, y, w,
                             h], "attributes": ..}]}; texts are "..", [..] (English) or {language: ".." or [..]}
  region_descriptions.json   Visual Genome; a picture is named by its number, as 2317468.jpg
  instances_train2017.json   COCO (or val2014 ..): objects named by their category; val becomes split `dev`
Licences: annotations CC-BY-4.0 (Visual Genome, COCO); CCLM states none; pictures as their owners on Flickr say.
Size: 5.4 million phrases on 108,077 pictures (VG, 15 GB), 860,000 objects on 118,287 (COCO train2017, 19 GB).

Boxes are cut at the picture's edges. Regions without caption, or of no size, and COCO's crowds are left out. VG holds
half of its pictures from COCO, its test pictures included: leave VG out for COCO retrieval.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cclm.data.annotations import annotation_files, json_lines, text, unicode_text
from cclm.data.raw import Images, Skipped, check_image, open_images, read_json, read_json_items, record_key
from cclm.data.records import parse_json
from cclm.errors import SampleError
from cclm.types import Record, Region

VG = "region_descriptions.json"

# An entry is what CCLM's files hold, {"binary", "caption", "elems"}: the other files' rows are brought into this form.
Entry = dict[str, Any]


def by_language(value: Any) -> dict[str, list[str]]:
    """`{language: [text, ..]}` of any form that CCLM's files have; texts that name no language are English."""
    found: dict[str, list[str]] = {}
    for item in value if isinstance(value, list) else [value]:
        for language, given in item.items() if isinstance(item, dict) else [("en", item)]:
            texts = [unicode_text(part) for part in (given if isinstance(given, list) else [given])]
            if any(texts):
                found.setdefault(language, []).extend(filter(None, texts))
    return found


def box_within(value: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box [left, top, width, height] cut at the edges of a picture of this size. Errors: SampleError."""
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(number, int | float) for number in value):
        raise SampleError("region whose box is not 4 numbers")
    if not all(map(math.isfinite, value)):
        raise SampleError("region whose box is not finite")
    left, top = max(0.0, value[0]), max(0.0, value[1])
    width, height = min(size[0], value[0] + value[2]) - left, min(size[1], value[1] + value[3]) - top
    if width <= 0 or height <= 0:
        raise SampleError("region of no size within its picture")
    return float(left), float(top), float(width), float(height)


def region(element: Any, size: tuple[int, int]) -> Region:
    """Errors: SampleError."""
    if not isinstance(element, dict):
        raise SampleError("region that is no JSON object")
    captions = by_language(element.get("caption"))
    if not captions:
        raise SampleError("region without a caption")
    return Region(box_within(element.get("bb"), size), captions, by_language(element.get("attributes")))


def record(entry: Entry, key: str, images: Images, skipped: Skipped) -> Record:
    """One picture with those of its regions that can be used. Errors: SampleError."""
    given, elements = text(entry, "binary"), entry.get("elems")
    if not isinstance(elements, list):
        raise SampleError("no list elems")
    if "." in given:  # base64 has no dots, and the path of an image ends in one and its kind
        image = images.read(given)
    else:
        try:
            image = base64.b64decode(given, validate=True)
        except binascii.Error:
            raise SampleError("binary is neither base64 nor a path") from None
    size = check_image(image)
    regions = []
    for number, element in enumerate(elements, 1):
        try:
            regions.append(region(element, size))
        except SampleError as error:
            skipped.add(error.reason, f"{key}, region {number}")
    if not regions:
        raise SampleError("no region that can be used")
    captions = by_language(entry.get("caption"))
    return Record(key=key, image=image, captions=captions, regions=tuple(regions), size=size)


def read_vg(path: Path) -> Iterator[tuple[str, Entry]]:
    for row in read_json_items(path):
        number = row["id"]
        boxes = [{"caption": r["phrase"], "bb": [r["x"], r["y"], r["width"], r["height"]]} for r in row["regions"]]
        yield f"image {number}", {"binary": f"{number}.jpg", "elems": boxes}


def read_coco(path: Path) -> Iterator[tuple[str, Entry]]:
    listed = read_json(path)
    names = {category["id"]: category["name"] for category in listed["categories"]}
    objects: dict[int, list[Entry]] = {}
    for found in listed["annotations"]:
        if not found.get("iscrowd"):
            element = {"caption": names[found["category_id"]], "bb": found["bbox"]}
            objects.setdefault(found["image_id"], []).append(element)
    for image in listed["images"]:
        yield f"image {image['id']}", {"binary": image["file_name"], "elems": objects.get(image["id"], [])}


def entries(path: Path) -> Iterable[tuple[str, Any]]:
    """Place and entry, or its text. Errors: ValueError naming a file that is not of its published form."""
    if path.suffix != ".json":
        yield from json_lines(path)
        return
    try:
        yield from read_vg(path) if path.name == VG else read_coco(path)
    except (KeyError, TypeError, AttributeError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"regions: {path} is not of its data set's published form ({detail}): fetch it again"
        ) from None


def read_file(path: Path, name: str, images: Images) -> Iterator[Record]:
    """The records of a file, with keys that begin with its name: several files may speak of one picture."""
    with Skipped(path) as skipped:
        for place, given in entries(path):
            try:
                entry = parse_json(given) if isinstance(given, str) else given
                if not isinstance(entry, dict):
                    raise SampleError("no JSON object")
                yield record(entry, record_key(f"{name}-{place}"), images, skipped)
            except SampleError as error:
                skipped.add(error.reason, place)


def records(source: Path) -> Iterator[tuple[str, Record]]:
    """Yield (split, record), file by file. What has no picture or no usable region is left out, counted and logged."""
    files = annotation_files(source, "*.jsonl", "*.jsonl.gz", VG, "instances_*.json")
    if not files:
        raise ValueError(f"regions: {source} has none of *.jsonl[.gz], {VG}, instances_*.json")
    with open_images(source) as images:
        for path in files:
            split = "dev" if path.name.startswith("instances_val") else "train"
            name = path.relative_to(source).as_posix().removesuffix(".gz").rpartition(".")[0]
            for found in read_file(path, name, images):
                yield split, found
