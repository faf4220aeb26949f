"""GQA and xGQA: questions about pictures with one short answer, in en bn de id ko pt ru zh; answers stay English.

Source: datasets/xGQA of https://github.com/e-bug/iglue, English questions of GQA (https://cs.stanford.edu/people/dorarad/gqa)
or as LXMERT and IGLUE's datasets/gqa keep them, and GQA's pictures:
  few_shot/<language>/{train_48,..,dev,test}.json          splits `train_48`, .., `dev`, `test` (IGLUE's 9,666)
  zero_shot/testdev_balanced_questions_<language>.json     split `testdev` (all 12,578: dev, train_48 and test together)
  {train,val,testdev}_balanced_questions.json              splits `train`, `val`, `testdev`, in English
  {train,valid,testdev}.json                               the same by LXMERT: [{"img_id", "sent", "label"}, ..]
  <image id>.jpg                                           anywhere below the same folder, or in .zip files there
Licence: xGQA CC-BY-4.0; GQA's and its pictures' as their site says. Size: 943,000 English questions about 72,140
pictures to train on, 132,062 to validate; 12,578 a language about 398 pictures. Machine translations are not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cclm.data.annotations import Row, annotation_files, gather, json_rows, parsed, text, unicode_text
from cclm.data.raw import record_key
from cclm.errors import SampleError
from cclm.types import Record

FEW_SHOT = re.compile(r".*\bfew_shot/(?P<language>[a-z]{2})/(?P<split>train_\d+|dev|test)\.json")
OTHERS = re.compile(
    r"(?:.*/)?(?P<split>train|valid|val|testdev)(?:_balanced_questions(?:_(?P<language>[a-z]{2}))?)?\.json"
)


def answers(row: dict[str, Any]) -> dict[str, float]:
    """Answer -> weight, of GQA's one answer or LXMERT's weighted ones. Errors: SampleError."""
    given = row["label"] if isinstance(row.get("label"), dict) else {text(row, "answer"): 1.0}
    if not all(type(weight) in (int, float) and 0 <= weight < math.inf for weight in given.values()):
        raise SampleError("weight of an answer is no number from 0")
    # Few-shot files exist in which the only answer weighs 0.
    found = {unicode_text(answer): float(weight or 1) for answer, weight in given.items()}
    if not found or "" in found:
        raise SampleError("no answer")
    return found


def read_file(path: Path, split: str, language: str) -> Iterator[Row]:
    def parse(place: str, row: dict[str, Any]) -> Row:
        image, question = text(row, "imageId", "img_id"), text(row, "question", "sent")
        return Row(
            split,
            key=record_key(image),
            images=(f"{image}.jpg",),
            language=language,
            texts=(question,),
            statement=text(row, "question_id") if "question_id" in row else place,
            labels=answers(row),
        )

    return parsed(path, json_rows(path), parse)


def records(source: Path, *, images: str = "") -> Iterator[tuple[str, Record]]:
    """Yield (split, record), a record per picture. Rows without answer, text or picture are left out and counted.

    `images`: the folder of the pictures, where it is another than `source`.
    """
    files = []
    for path in annotation_files(source, "*.json"):
        name = FEW_SHOT.fullmatch(path.as_posix()) or OTHERS.fullmatch(path.as_posix())
        if name is not None:
            files.append((path, name["split"].removesuffix("id"), name["language"] or "en"))
    if not files:
        raise ValueError(f"xgqa: {source} has none of the question files of GQA or xGQA: see the recipe's docstring")
    yield from gather(source, (row for path, *of in files for row in read_file(path, *of)), images)
