"""XVNLI: does a picture entail, contradict or leave open what a sentence says? (reference/iglue.md 1.2)"""

from __future__ import annotations

from typing import Any

from cclm.data.annotations import text
from cclm.errors import SampleError
from cclm.evaluation.items import Question, Wording
from cclm.evaluation.protocol import ClassificationProtocol
from cclm.evaluation.sources import Rows
from cclm.evaluation.task import ClassificationTask, Shots

LABELS = ("contradiction", "neutral", "entailment")  # in the official order
DISAGREED = "-"
LANGUAGES = ("en", "ar", "es", "fr", "ru")
EXAMPLES = {"1": 3, "5": 18, "10": 39, "20": 75, "25": 90, "48": 168}


def question(place: str, row: dict[str, Any]) -> Question:
    """The hypothesis alone is what a model reads. Test rows whose annotators disagreed have the label `-`."""
    label = text(row, "gold_label")
    if label not in (*LABELS, DISAGREED):
        raise SampleError(f"gold_label is {label!r}, none of {', '.join(LABELS)} and {DISAGREED}")
    return Question(
        id=text(row, "pairID"),
        images=(f"{text(row, 'Flikr30kID', 'Flickr30kID')}.jpg",),  # the files misspell it
        text=text(row, "sentence2"),
        label=label if label != DISAGREED else None,
    )


def rows(path: str, *languages: str) -> Rows:
    return Rows(f"XVNLI/{path}", question, languages or LANGUAGES)


TASK = ClassificationTask(
    name="xvnli",
    about="a sentence about a picture: contradiction, neutral or entailment",
    languages=LANGUAGES,
    labels=LABELS,
    wording=Wording(
        "<image>\nIs this true of the picture: {text} Answer yes, no or maybe.",
        {"entailment": "yes", "contradiction": "no", "neutral": "maybe"},
    ),
    pictures="Flickr30K",
    origin="datasets/XVNLI of e-bug/iglue",
    splits={
        "test": rows("annotations/{language}/test.jsonl"),
        "test_translated": rows("annotations_machine-translate/{language}/test.jsonl", *LANGUAGES[1:]),
        "train": rows("annotations/en/train.jsonl", "en"),
        "dev": rows("annotations/en/dev.jsonl", "en"),
        "dev_translated": rows("annotations/en/dev-{language}_gmt.jsonl", *LANGUAGES[1:]),
    }
    | {f"train_{shots}": rows(f"annotations/{{language}}/train_{shots}.jsonl") for shots in EXAMPLES},
    shots=Shots(EXAMPLES, LANGUAGES),
    protocols=(
        ClassificationProtocol(name="official", about="IGLUE: all 1,164 rows, the 14 labelled `-` count as wrong"),
        ClassificationProtocol(
            name="labelled",
            about="CCLM, mBLIP: the 14 rows labelled `-` are left out; official x 1164 / 1150",
            unlabelled="left_out",
        ),
    ),
    counts={
        "official": dict.fromkeys(LANGUAGES, 1164),
        "labelled": dict.fromkeys(LANGUAGES, 1150),
    },
    images=dict.fromkeys(("official", "labelled"), dict.fromkeys(LANGUAGES, 357)),
)
