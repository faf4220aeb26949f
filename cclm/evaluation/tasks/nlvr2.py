"""NLVR2: is what an English sentence says of two pictures true? MaRVL's English, too (reference/iglue.md 1.4)."""

from __future__ import annotations

from typing import Any

from cclm.data.annotations import text
from cclm.errors import SampleError
from cclm.evaluation.items import Question, Wording
from cclm.evaluation.protocol import ClassificationProtocol
from cclm.evaluation.sources import Rows
from cclm.evaluation.task import ClassificationTask

LABELS = ("False", "True")  # in the order of configs/finetune/marvl.yaml
FORMS = {"true": "True", "1": "True", "false": "False", "0": "False"}
TRANSLATED = ("id", "sw", "ta", "tr", "zh")  # MaRVL's, of its dev by machine


def label(row: dict[str, Any]) -> str:
    """Files give it as text, as a truth value or as 0 and 1. Errors: SampleError."""
    found = FORMS.get(str(row.get("label")).strip().lower())
    if found is None:
        raise SampleError("label is neither true nor false")
    return found


def question(place: str, row: dict[str, Any]) -> Question:
    identifier = text(row, "identifier")
    pair = identifier.rpartition("-")[0]  # what follows numbers the sentences about one pair
    return Question(identifier, (f"{pair}-img0.png", f"{pair}-img1.png"), text(row, "sentence"), label(row))


def rows(name: str, *languages: str) -> Rows:
    return Rows(f"nlvr2/annotations/{name}.jsonl", question, languages)


WORDING = Wording(
    "<image><image>\nIs this true of the two pictures: {text} Answer yes or no.", {"True": "yes", "False": "no"}
)
TASK = ClassificationTask(
    name="nlvr2",
    about="a sentence about two pictures: true or false",
    languages=("en",),
    labels=LABELS,
    wording=WORDING,
    pictures="NLVR2",
    origin="datasets/nlvr2 of e-bug/iglue, or nlvr2/data of lil-lab/nlvr as .jsonl",
    splits={
        "test": rows("test", "en"),
        "dev": rows("dev", "en"),
        "dev_translated": rows("dev-{language}_gmt", *TRANSLATED),
        "train": rows("train", "en"),
    },
    sizes={"dev": 6982, "dev_translated": 6982, "train": 86373},
    protocols=(
        ClassificationProtocol(name="official", about="Test-P: all 6,967 sentences", average_english=True),
        ClassificationProtocol(name="dev", about="the dev split", split="dev", average_english=True),
    ),
    counts={"official": {"en": 6967}, "dev": {"en": 6982}},
    images={"official": {"en": 8082}, "dev": {"en": 8102}},
)
