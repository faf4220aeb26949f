"""xFlickr&CO: captions in eight languages and the 2,000 images they are about (reference/iglue.md 1.5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cclm.data.annotations import text
from cclm.errors import SampleError
from cclm.evaluation.items import Caption
from cclm.evaluation.protocol import RetrievalProtocol
from cclm.evaluation.sources import PerLanguage, Rows
from cclm.evaluation.task import RetrievalTask, Shots

LANGUAGES = ("en", "de", "es", "id", "ja", "ru", "tr", "zh")
OTHERS = LANGUAGES[1:]
EXAMPLES = {shots: int(shots) for shots in ("1", "5", "10", "25", "50", "100")}
# in German and Japanese only, outside the few-shot score
MANY = {"200": 200, "500": 500, "1000": 1000, "1500": 1500, "100x5": 500, "200x5": 1000}
OFFICIAL = dict.fromkeys(LANGUAGES, 2000)  # an image has one caption
CAPTIONED = OFFICIAL | {"de": 1999, "id": 1999}


def captions(place: str, row: dict[str, Any]) -> Iterator[Caption]:
    """A caption per sentence; blank ones too, which protocols treat differently."""
    image, sentences = text(row, "img_path"), row.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise SampleError("sentences is no list of texts")
    for number, sentence in enumerate(sentences):
        yield Caption(f"{image}#{number}", image, sentence)


def rows(path: str, *languages: str) -> Rows:
    return Rows(path, captions, languages)


TASK = RetrievalTask(
    name="xflickrco",
    about="captions of Flickr30K's and COCO's pictures, one each",
    languages=LANGUAGES,
    pictures="1,000 of Flickr30K, 1,000 of COCO val2014",
    origin="datasets/xFlickrCO and datasets/flickr30k of e-bug/iglue",
    splits={
        "test": rows("xFlickrCO/annotations/{language}/test.jsonl", *LANGUAGES),
        "test_translated": rows("xFlickrCO/annotations_machine-translate/{language}/test_gmt.jsonl", *OTHERS),
        "train": rows("flickr30k/annotations/train_ann.jsonl", "en"),
        "train_translated": PerLanguage(
            {
                "de": rows("xFlickrCO/annotations/de/train_ann.jsonl", "de"),
                "ja": rows("xFlickrCO/annotations/ja/train.jsonl", "ja"),
            }
        ),
        "dev": rows("flickr30k/annotations/valid_ann.jsonl", "en"),
        "dev_translated": rows(
            "flickr30k/annotations_machine-translate/valid-{language}_gmt.jsonl", "bn", "ko", *OTHERS
        ),
    }
    | {f"train_{shots}": rows(f"xFlickrCO/annotations/{{language}}/train_{shots}.jsonl", *OTHERS) for shots in EXAMPLES}
    | {f"train_{shots}": rows(f"xFlickrCO/annotations/{{language}}/train_{shots}.jsonl", "de", "ja") for shots in MANY},
    sizes={"train": 145000, "dev": 5070, "dev_translated": 5070}
    | {f"train_{shots}": examples for shots, examples in MANY.items()},
    shots=Shots(EXAMPLES, OTHERS),
    protocols=(
        RetrievalProtocol(name="official", about="IGLUE: all 2,000 images and captions, blank ones too"),
        RetrievalProtocol(
            name="captioned", about="CCLM: a row without a caption is left out with its image", blank="left_out"
        ),
    ),
    counts={"official": OFFICIAL, "captioned": CAPTIONED},
    images={"official": OFFICIAL, "captioned": CAPTIONED},
)
