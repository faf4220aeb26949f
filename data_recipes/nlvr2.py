"""NLVR2 and MaRVL: is what a sentence says of two pictures true? In English, and in id sw ta tr zh.

Source: https://github.com/lil-lab/nlvr (nlvr2/data) or datasets/nlvr2 of https://github.com/e-bug/iglue for NLVR2,
https://github.com/marvl-challenge/marvl-code or IGLUE's datasets/marvl for MaRVL; either or both in one folder:
  {train,dev,test,test1,test2}.{json,jsonl}     NLVR2, a JSON object a line; split `train`, ..; `test1` becomes `test`
  marvl-<language>.jsonl                        MaRVL's test; split `marvl-<language>`
  marvl-<language>_train<N>.jsonl               IGLUE's few shots of it; split `marvl-<language>_train<N>`
  dev-850-0-img0.png, dev-850-0-img1.png        NLVR2's pictures, anywhere below the folder, or in .zip files there
  <language>/images/<concept>/<name>.jpg        MaRVL's; concepts are found with accents composed or decomposed
Licences: sentences CC-BY-4.0; MaRVL's pictures for research only, NLVR2's as their owners say. Size: 86,373 sentences
to train on, 6,982 and 6,967 for dev and test; 1,012 to 1,242 a language of MaRVL. Machine translations are not read.

Labels are "True" and "False"; a record holds a left picture, in `others` the right one, and all that is said of both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from cclm.data.annotations import Row, annotation_files, gather, json_lines, parsed, text
from cclm.data.raw import record_key
from cclm.errors import SampleError
from cclm.types import Record

NLVR2 = re.compile(r"(train|dev|test)1?|test2")
MARVL = re.compile(r"marvl-([a-z]{2})(_train\d+(x\d+)?)?")
LABELS = {"true": "True", "1": "True", "false": "False", "0": "False"}


def labels(row: dict[str, Any]) -> dict[str, float]:
    """The label, which files give as a string, a truth value or a number. Errors: SampleError."""
    label = LABELS.get(str(row.get("label")).strip().lower())
    if label is None:
        raise SampleError("label is neither true nor false")
    return {label: 1.0}


def nlvr2_row(split: str) -> Callable[[str, dict[str, Any]], Row]:
    def parse(place: str, row: dict[str, Any]) -> Row:
        identifier = text(row, "identifier")
        pair = identifier.rpartition("-")[0]  # what follows numbers the sentences about one pair
        return Row(
            split,
            key=record_key(pair),
            images=(f"{pair}-img0.png", f"{pair}-img1.png"),
            language="en",
            texts=(text(row, "sentence"),),
            statement=identifier,
            labels=labels(row),
        )

    return parse


def marvl_row(split: str, language: str) -> Callable[[str, dict[str, Any]], Row]:
    def parse(place: str, row: dict[str, Any]) -> Row:
        names = (text(row, "left_img"), text(row, "right_img"))
        # Names alone are unique within a language only; those of the few shots hold the concept already.
        return Row(
            split,
            key=record_key("-".join([language, *(PurePosixPath(name).stem for name in names)])),
            images=tuple(name if "/" in name else f"{text(row, 'concept')}/{name}" for name in names),
            language=language,
            texts=(text(row, "caption"),),
            statement=text(row, "id"),
            labels=labels(row),
        )

    return parse


def read_rows(source: Path) -> Iterator[Row]:
    files = 0
    for path in annotation_files(source, "*.json", "*.jsonl"):
        if (marvl := MARVL.fullmatch(path.stem)) is not None:
            parse = marvl_row(path.stem, marvl[1])
        elif (nlvr2 := NLVR2.fullmatch(path.stem)) is not None:
            parse = nlvr2_row(nlvr2[1] or path.stem)
        else:
            continue
        files += 1
        yield from parsed(path, json_lines(path), parse)
    if not files:
        raise ValueError(f"nlvr2: {source} has no file like dev.json, test.jsonl or marvl-id.jsonl")


def records(source: Path, *, images: str = "") -> Iterator[tuple[str, Record]]:
    """Yield (split, record), a record per pair of pictures. Rows without label, text or pictures are left out.

    `images`: the folder of the pictures, where it is another than `source`.
    """
    yield from gather(source, read_rows(source), images)
