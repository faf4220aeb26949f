"""WIT as IGLUE splits it: pictures of Wikipedia with captions in en and ar bg da el et id ja ko tr vi.

Source: datasets/wit of https://github.com/e-bug/iglue, and the pictures, which its links still have for the most part:
  annotations/{train_en,val_en,test_<language>}.jsonl   splits `train`, `dev`, `test`; unpack train_en.jsonl.zip
  images                                                anywhere below the same folder, or in .zip files there, named
                                                        by `wit_ix` (wit-test_3.jpg) or like the link's last part
Licence: CC BY-SA 3.0, pictures as Wikimedia Commons says of each. Size: 500,000 English pairs to train on, 4,632 for
dev, 9,584 captions in eleven languages of 6,195 pictures to test.

A record is a picture with its captions in all languages. Machine translations are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cclm.data.annotations import Row, annotation_files, gather, json_lines, parsed, text
from cclm.data.raw import Images, open_images, record_key
from cclm.types import Record

NAME = re.compile(r"(?P<split>train|val|test)_(?P<language>[a-z]{2})")
SPLITS = {"val": "dev"}


def picture(row: dict[str, Any], images: Images) -> str:
    """The name that the picture lies there under: its number, or else the link's last part, quoted or not."""
    number, linked = text(row, "wit_ix"), text(row, "image_url").rpartition("/")[2]
    return next((name for name in (number, linked, unquote(linked)) if name in images), number)


def read_file(path: Path, name: re.Match[str], images: Images) -> Iterator[Row]:
    def parse(place: str, row: dict[str, Any]) -> Row:
        return Row(
            SPLITS.get(name["split"], name["split"]),
            key=record_key(text(row, "wit_ix")),
            images=(picture(row, images),),
            language=name["language"],
            texts=(text(row, "caption_reference_description"),),
        )

    return parsed(path, json_lines(path), parse)


def records(source: Path, *, images: str = "") -> Iterator[tuple[str, Record]]:
    """Yield (split, record), a record per picture. Rows without caption or picture are left out, counted and logged.

    `images`: the folder of the pictures, where it is another than `source`.
    """
    files = [(path, name) for path in annotation_files(source, "*.jsonl") if (name := NAME.fullmatch(path.stem))]
    if not files:
        raise ValueError(f"wit: {source} has no test_ar.jsonl, val_en.jsonl or alike: give IGLUE's datasets/wit")
    with open_images(Path(images) if images else source) as there:
        yield from gather(source, (row for path, name in files for row in read_file(path, name, there)), images)
