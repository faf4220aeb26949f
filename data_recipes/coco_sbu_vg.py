"""COCO captions, SBU captions and Visual Genome regions, from their own json files; any of the three may be missing.

Source: one folder with the annotation files below, and the pictures as .jpg in any subfolders or in .zip files.
  captions_train2017.json, captions_val2014.json ..   COCO; val becomes split `dev`
  dataset_coco.json                                   COCO as Karpathy split it (train and restval, val, test); used
                                                      instead of the files above where it is there
  sbu-captions-all.json                               SBU; a picture is named like the last part of its url
  region_descriptions.json                            Visual Genome; the largest regions' phrases are the captions
Licences: annotations CC-BY-4.0 (COCO, Visual Genome), SBU's for research; pictures as their owners on Flickr say.
Size: 123,287 COCO pictures (25 GB), 1 million SBU urls of which about 860,000 remain (80 GB), 108,077 VG pictures
(15 GB). About half of VG's pictures are COCO's too, its test pictures included: leave VG out for COCO retrieval.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

from cclm.data.raw import Images, Skipped, open_images, read_json, read_json_items, record_key
from cclm.errors import SampleError
from cclm.types import Record

KARPATHY = "dataset_coco.json"
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
SBU = "sbu-captions-all.json"
VG = "region_descriptions.json"

# split, dataset and picture name, captions
Row = tuple[str, str, str, list[str]]


def read_karpathy(path: Path) -> Iterator[Row]:
    for image in read_json(path)["images"]:
        captions = [sentence["raw"].strip() for sentence in image["sentences"]]
        yield KARPATHY_SPLITS[image["split"]], "coco", image["filename"], captions


def read_coco(path: Path) -> Iterator[Row]:
    annotated = read_json(path)
    captions: dict[int, list[str]] = {}
    for annotation in annotated["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
    split = "dev" if "_val" in path.name else "train"
    for image in annotated["images"]:
        yield split, "coco", image["file_name"], captions.get(image["id"], [])


def read_sbu(path: Path) -> Iterator[Row]:
    listed = read_json(path)
    for url, caption in zip(listed["image_urls"], listed["captions"], strict=True):
        yield "train", "sbu", PurePosixPath(url).name, [caption.strip()]


def read_vg(path: Path, regions: int) -> Iterator[Row]:
    for entry in read_json_items(path):
        # Large regions speak of the picture, small ones of a detail that its other regions contradict.
        largest = sorted(entry["regions"], key=lambda region: -region["width"] * region["height"])[:regions]
        if largest:
            phrases = dict.fromkeys(region["phrase"].strip() for region in largest)
            yield "train", "vg", f"{largest[0]['image_id']}.jpg", list(phrases)


def read_rows(source: Path, regions: int) -> Iterator[tuple[Path, Iterator[Row]]]:
    """The annotation files that are there, with their rows."""
    if (source / KARPATHY).exists():
        yield source / KARPATHY, read_karpathy(source / KARPATHY)
    else:
        for path in sorted(source.glob("captions_*.json")):
            yield path, read_coco(path)
    if (source / SBU).exists():
        yield source / SBU, read_sbu(source / SBU)
    if (source / VG).exists():
        yield source / VG, read_vg(source / VG, regions)


def parse(row: Row, images: Images) -> tuple[str, Record]:
    """(split, record) of a row. Errors: SampleError."""
    split, dataset, name, given = row
    captions = [caption for caption in given if caption]
    if not captions:
        raise SampleError("no captions")
    key = record_key(f"{dataset}-{Path(name).stem}")
    return split, Record(key=key, image=images.read(name), captions={"en": captions})


def malformed(path: Path, error: Exception) -> ValueError:
    detail: Any = f"no {error}" if isinstance(error, KeyError) else error
    return ValueError(f"coco_sbu_vg: {path} is not of its dataset's published form ({detail}): fetch it again")


def records(source: Path, *, regions: int = 10) -> Iterator[tuple[str, Record]]:
    """Yield (split, record). `regions`: phrases taken per Visual Genome picture, those of the largest regions.

    What has no picture or no caption is left out, counted and logged.
    """
    files = list(read_rows(source, regions))
    if not files:
        raise ValueError(f"coco_sbu_vg: {source} has none of captions_*.json, {KARPATHY}, {SBU}, {VG}")
    with ExitStack() as stack:
        images = stack.enter_context(open_images(source))
        for path, rows in files:
            skipped = stack.enter_context(Skipped(path))
            while True:
                try:
                    row = next(rows, None)
                except (KeyError, TypeError, IndexError, AttributeError) as error:
                    raise malformed(path, error) from None
                if row is None:
                    break
                try:
                    yield parse(row, images)
                except SampleError as error:
                    skipped.add(error.reason, row[2])
