"""MaRVL: is what a sentence says of two pictures true? Five languages; English is NLVR2 (reference/iglue.md 1.4)."""

from __future__ import annotations

from typing import Any

from cclm.data.annotations import text
from cclm.evaluation.items import Question
from cclm.evaluation.protocol import ClassificationProtocol
from cclm.evaluation.sources import PerLanguage, Rows
from cclm.evaluation.task import ClassificationTask, Shots
from cclm.evaluation.tasks import nlvr2

LANGUAGES = ("id", "sw", "ta", "tr", "zh")
FEW = ("id", "tr", "zh")
EXAMPLES = {"1": 4, "2": 8, "4": 16, "10": 40, "10x2": 80}
COUNTS = {"en": 6967, "id": 1128, "sw": 1108, "ta": 1242, "tr": 1180, "zh": 1012}
IMAGES = {"en": 8082, "id": 1091, "sw": 875, "ta": 923, "tr": 917, "zh": 1107}


def question(place: str, row: dict[str, Any]) -> Question:
    """Names of images are unique within a concept of a language only; those of the few shots hold the concept."""
    folder, concept = f"{text(row, 'language')}/images", text(row, "concept")
    names = (text(row, "left_img"), text(row, "right_img"))
    return Question(
        id=text(row, "id"),
        images=tuple(f"{folder}/{name}" if "/" in name else f"{folder}/{concept}/{name}" for name in names),
        text=text(row, "caption"),
        label=nlvr2.label(row),
    )


def rows(path: str, *languages: str) -> Rows:
    return Rows(f"marvl/{path}.jsonl", question, languages)


TEST = rows("zero_shot/annotations/marvl-{language}", *LANGUAGES)

TASK = ClassificationTask(
    name="marvl",
    about="a sentence about two pictures: true or false",
    languages=("en", *LANGUAGES),
    labels=nlvr2.LABELS,
    wording=nlvr2.WORDING,
    pictures="MaRVL, as <language>/images/<concept>/<name>; English: NLVR2",
    origin="datasets/marvl and datasets/nlvr2 of e-bug/iglue, or marvl-challenge/marvl-code",
    splits={
        "test": PerLanguage({"en": nlvr2.TASK.splits["test"]} | dict.fromkeys(LANGUAGES, TEST)),
        "test_translated": rows("zero_shot/annotations_machine-translate/marvl-{language}_gmt", *LANGUAGES),
        "train": nlvr2.TASK.splits["train"],
        "dev": nlvr2.TASK.splits["dev"],
        "dev_translated": nlvr2.TASK.splits["dev_translated"],
    }
    | {f"train_{shots}": rows(f"few_shot/annotations/marvl-{{language}}_train{shots}", *FEW) for shots in EXAMPLES},
    sizes=nlvr2.TASK.sizes,
    shots=Shots(EXAMPLES, FEW),
    protocols=(
        ClassificationProtocol(name="official", about="IGLUE: the likelier of true and false; English is NLVR2 Test-P"),
        ClassificationProtocol(
            name="contains",
            about="Pangea: yes and no are read as true and false; an output that contains the label is right",
            match="contains",
        ),
    ),
    counts={"official": COUNTS, "contains": COUNTS},
    images={"official": IMAGES, "contains": IMAGES},
)
