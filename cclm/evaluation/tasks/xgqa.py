"""xGQA: questions about pictures in eight languages, each with one of 1,842 English answers (reference/iglue.md 1.3).

Answers come from GQA's testdev for every language, whose questions are the same; only their texts are translated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cclm.data.annotations import text, unicode_text
from cclm.errors import SampleError
from cclm.evaluation.items import Question, Wording
from cclm.evaluation.protocol import ClassificationProtocol
from cclm.evaluation.sources import DataFolder, Rows, Source, bad_row, rows_of
from cclm.evaluation.task import ClassificationTask, Shots

LANGUAGES = ("en", "bn", "de", "id", "ko", "pt", "ru", "zh")
OTHERS = LANGUAGES[1:]
EXAMPLES = {"1": 27, "5": 155, "10": 317, "20": 594, "25": 704, "48": 1490}
GOLD = "gqa/annotations/testdev.json"
FEW_SHOT = "xGQA/annotations/few_shot/{language}"
TESTED, ASKED = 9666, 12578


def answer(row: dict[str, Any]) -> str:
    """GQA's one answer, or the heaviest of LXMERT's weighted ones, of which files exist whose only answer weighs 0."""
    if not isinstance(row.get("label"), dict):
        return text(row, "answer")
    weights = {unicode_text(name): weight for name, weight in row["label"].items()}
    if not weights or "" in weights or not all(type(weight) in (int, float) for weight in weights.values()):
        raise SampleError("label is no answer -> weight")
    return max(weights, key=weights.__getitem__)


def question(place: str, row: dict[str, Any]) -> Question:
    """Of GQA's form, whose id is its place in the file, or LXMERT's."""
    return Question(
        id=text(row, "question_id") if "question_id" in row else place,
        images=(f"{text(row, 'imageId', 'img_id')}.jpg",),
        text=text(row, "question", "sent"),
        label=answer(row),
    )


def rows(path: str, *languages: str) -> Rows:
    return Rows(path, question, languages or LANGUAGES)


@dataclass(frozen=True)
class Testdev(Source):
    """GQA's 12,578 testdev questions, or IGLUE's test among them: those in neither its dev nor its train_48.

    The texts stand in the first of two files that is there, both below `folder`; where neither is, they are empty, and
    English ones come with the answers.
    """

    folder: str
    languages: tuple[str, ...]
    test: bool

    def wording(self, language: str) -> tuple[str, ...]:
        """Files of questions, of which one is enough; the first holds IGLUE's test alone."""
        every = f"{self.folder}/zero_shot/testdev_balanced_questions_{language}.json"
        return (f"{self.folder}/few_shot/{language}/test.json", every) if self.test else (every,)

    def files(self, language: str) -> tuple[str, ...]:
        if not self.test:
            return (GOLD,)
        return (GOLD, *(f"{FEW_SHOT.format(language=language)}/{name}.json" for name in ("dev", "train_48")))

    def read(self, data: DataFolder, language: str) -> Iterator[Question]:
        gold, *others = (data.path(name) for name in self.files(language))
        left_out = {asked.id for path in others for asked in questions(path)}
        stamp = gold.stat()
        found = [asked for asked in answered(gold, (stamp.st_mtime_ns, stamp.st_size)) if asked.id not in left_out]
        path = next((path for path in map(data.find, self.wording(language)) if path is not None), None)
        if path is None:
            yield from found if self.folder == "xGQA/annotations" and language == "en" else map(mute, found)
            return
        texts = {asked.id: asked.text for asked in questions(path)}
        for asked in found:
            if asked.id not in texts:
                raise ValueError(f"{path} has no question {asked.id}, which is of the test; fetch it again")
            yield replace(asked, text=texts[asked.id])


def mute(asked: Question) -> Question:
    return replace(asked, text="")


def questions(path: Path) -> Iterator[Question]:
    for place, row in rows_of(path):
        try:
            yield question(place, row)
        except SampleError as error:
            raise bad_row(path, place, error) from None


@lru_cache(maxsize=2)
def answered(path: Path, stamp: tuple[int, int]) -> tuple[Question, ...]:
    """The file of answers, which all languages and splits share; read anew once its `stamp` is another."""
    return tuple(questions(path))


TASK = ClassificationTask(
    name="xgqa",
    about="a question about a picture, answered in one or two English words",
    languages=LANGUAGES,
    label_file="gqa/annotations/trainval_label2ans.json",
    rest="testdev",
    wording=Wording("<image>\n{text} Answer in one word or two."),
    unlisted=("bottle cap",),
    pictures="GQA (Visual Genome), 398 of its testdev",
    origin="datasets/xGQA and datasets/gqa of e-bug/iglue; texts also in Adapter-Hub/xGQA",
    splits={
        "test": Testdev("xGQA/annotations", LANGUAGES, test=True),
        "test_translated": Testdev("xGQA/annotations_machine-translate", OTHERS, test=True),
        "testdev": Testdev("xGQA/annotations", LANGUAGES, test=False),
        "testdev_translated": Testdev("xGQA/annotations_machine-translate", OTHERS, test=False),
        "train": rows("gqa/annotations/train.json", "en"),
        "valid": rows("gqa/annotations/valid.json", "en"),
        "dev": rows(f"{FEW_SHOT}/dev.json"),  # in the language itself, unlike other tasks'
    }
    | {f"train_{shots}": rows(f"{FEW_SHOT}/train_{shots}.json") for shots in EXAMPLES},
    sizes={"dev": 1422, "valid": 132062},
    shots=Shots(EXAMPLES, LANGUAGES),
    protocols=(
        ClassificationProtocol(name="official", about="IGLUE: 9,666 questions in neither its dev nor its train_48"),
        ClassificationProtocol(name="testdev", about="xGQA's paper: all 12,578 questions", split="testdev"),
        ClassificationProtocol(
            name="avg8",
            about="PaliGemma's README: all 12,578 questions, and English counts in the average",
            split="testdev",
            average_english=True,
        ),
        ClassificationProtocol(
            name="contains",
            about="Pangea: an output that contains the answer is right; official questions",
            match="contains",
        ),
    ),
    counts={
        "official": dict.fromkeys(LANGUAGES, TESTED),
        "contains": dict.fromkeys(LANGUAGES, TESTED),
        "testdev": dict.fromkeys(LANGUAGES, ASKED),
        "avg8": dict.fromkeys(LANGUAGES, ASKED),
    },
    images={
        "official": dict.fromkeys(LANGUAGES, 300),
        "contains": dict.fromkeys(LANGUAGES, 300),
        "testdev": dict.fromkeys(LANGUAGES, 398),
        "avg8": dict.fromkeys(LANGUAGES, 398),
    },
)
