"""WIT: captions of Wikipedia's pictures in eleven languages, a gallery for each (reference/iglue.md 1.6).

An image is known by its `wit_ix`, as addresses die and file names repeat: its picture is looked for as <wit_ix>.jpg,
which a recipe or a download of the rows' `image_url` has to name so (drawings and TIFF files converted to JPEG).
"""

from __future__ import annotations

from typing import Any

from cclm.data.annotations import text, unicode_text
from cclm.errors import SampleError
from cclm.evaluation.items import Caption
from cclm.evaluation.protocol import RetrievalProtocol
from cclm.evaluation.sources import Numbered, Rows
from cclm.evaluation.task import RetrievalTask

COUNTS = {
    "en": 1000,
    "ar": 890,
    "bg": 860,
    "da": 891,
    "el": 570,
    "et": 874,
    "id": 901,
    "ja": 1000,
    "ko": 931,
    "tr": 721,
    "vi": 946,
}
IMAGES = {
    "en": 685,
    "ar": 792,
    "bg": 806,
    "da": 814,
    "el": 541,
    "et": 780,
    "id": 854,
    "ja": 842,
    "ko": 889,
    "tr": 681,
    "vi": 869,
}
LANGUAGES = tuple(COUNTS)
OTHERS = LANGUAGES[1:]
CAPTION = "caption_reference_description"


def caption(place: str, row: dict[str, Any]) -> Caption:
    """A blank caption too, which protocols treat differently."""
    if CAPTION not in row:
        raise SampleError(f"no {CAPTION}")
    image = f"{text(row, 'wit_ix')}.jpg"
    return Caption(image, image, unicode_text(row[CAPTION]))


def rows(path: str, *languages: str) -> Numbered:
    return Numbered(Rows(f"wit/{path}.jsonl", caption, languages))


TASK = RetrievalTask(
    name="wit",
    about="captions of Wikipedia's pictures, one or several each",
    languages=LANGUAGES,
    pictures="Wikipedia, by the rows' image_url, each named <wit_ix>.jpg",
    origin="datasets/wit of e-bug/iglue",
    splits={
        "test": rows("annotations/test_{language}", *LANGUAGES),
        "test_translated": rows("annotations_machine-translate/test_{language}_gmt", *OTHERS),
        "train": rows("annotations/train_en", "en"),
        "dev": rows("annotations/val_en", "en"),
    },
    sizes={"dev": 4632, "train": 500000},
    protocols=(
        RetrievalProtocol(name="official", about="IGLUE: all captions, blank ones too"),
        RetrievalProtocol(name="captioned", about="CCLM, MTEB: a row without a caption is left out", blank="left_out"),
    ),
    counts={
        "official": COUNTS,
        "official_translated": {"ar": 891},  # one row of the test itself was withdrawn later
        "captioned": COUNTS | {"el": 569, "id": 900},
        "captioned_translated": {"ar": 891},
    },
    images={
        "official": IMAGES,
        "official_translated": {"ar": 793},
        "captioned": IMAGES | {"el": 540, "id": 853},
        "captioned_translated": {"ar": 793},
    },
)
