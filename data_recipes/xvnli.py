"""XVNLI: does a picture entail, contradict or leave open what a sentence says? In en ar es fr ru.

Source: datasets/XVNLI of https://github.com/e-bug/iglue, and the pictures of Flickr30K.
  annotations/<language>/{train,dev,test,train_48,..}.jsonl   a split per file name; unpack train.jsonl.zip
  <id>.jpg                                                    anywhere below the same folder, or in .zip files there
Licence: IGLUE states none for XVNLI; SNLI, whose sentences these are, is CC-BY-SA-4.0; pictures as their owners on
Flickr say. Size: 541,000 English sentences about 16,903 pictures to train on; 1,164 a language about 357 to test.

Every hypothesis is a statement about the picture, in all languages that have it. Rows without a gold label, of which
the test has 14, are left out: accuracy as IGLUE counts it, with these rows as errors, is ours times 1150 / 1164.
Machine translations are not read. Most test pictures are in the train split of Flickr30K's and Multi30K's captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cclm.data.annotations import Row, annotation_files, gather, json_lines, parsed, text
from cclm.data.raw import record_key
from cclm.data.records import is_language
from cclm.errors import SampleError
from cclm.types import Record

SPLIT = re.compile(r"train(_\d+)?|dev|test")
LABELS = ("contradiction", "neutral", "entailment")


def read_file(path: Path) -> Iterator[Row]:
    split, language = path.stem, path.parent.name

    def parse(place: str, row: dict[str, Any]) -> Row:
        label = text(row, "gold_label")
        if label not in LABELS:
            raise SampleError(f"gold label is none of {', '.join(LABELS)}")
        image = text(row, "Flikr30kID", "Flickr30kID", "Flickr30KID")  # the first is how the files spell it
        return Row(
            split,
            key=record_key(image),
            images=(f"{image}.jpg",),
            language=language,
            texts=(text(row, "sentence2"),),
            statement=text(row, "pairID"),
            labels={label: 1.0},
        )

    return parsed(path, json_lines(path), parse)


def records(source: Path, *, images: str = "") -> Iterator[tuple[str, Record]]:
    """Yield (split, record), a record per picture. Rows without label, text or picture are left out and counted.

    `images`: the folder of the pictures, where it is another than `source`.
    """
    files = [
        path
        for path in annotation_files(source, "*.jsonl")
        if SPLIT.fullmatch(path.stem) and is_language(path.parent.name)
    ]
    if not files:
        raise ValueError(f"xvnli: {source} has no <language>/test.jsonl or alike: give IGLUE's datasets/XVNLI")
    yield from gather(source, (row for path in files for row in read_file(path)), images)
