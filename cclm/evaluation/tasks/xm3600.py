"""XM3600 (Crossmodal-3600): captions in 36 languages, written for 3,600 pictures of Open Images (reference/iglue.md 4).

Read as google/crossmodal-3600 ships it: captions.jsonl of captions.zip, as xm3600/captions.jsonl; a line a picture,
{"image/key": .., "<language>": {"caption": [..], ..}, ..}. A picture is looked for as <image/key>.jpg.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from cclm.data.annotations import text
from cclm.errors import SampleError
from cclm.evaluation.items import Caption
from cclm.evaluation.protocol import RetrievalProtocol
from cclm.evaluation.sources import PerLanguage, Rows
from cclm.evaluation.task import RetrievalTask

LANGUAGES = tuple(
    """
    en ar bn cs da de el es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt quz ro ru sv sw te th tr uk vi zh
    """.split()
)
PICTURES = 3600


def captions(language: str, place: str, row: dict[str, Any]) -> Iterator[Caption]:
    key, own = text(row, "image/key"), row.get(language)
    found = own.get("caption") if isinstance(own, dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(caption, str) for caption in found):
        raise SampleError(f"no captions in {language}")
    for number, caption in enumerate(found):
        yield Caption(f"{key}#{number}", f"{key}.jpg", caption)


TASK = RetrievalTask(
    name="xm3600",
    about="captions in 36 languages of pictures from where they are spoken, about two each",
    languages=LANGUAGES,
    pictures="Open Images, the 3,600 of Crossmodal-3600",
    origin="captions.zip of google/crossmodal-3600, as xm3600/captions.jsonl",
    splits={
        "test": PerLanguage(
            {
                language: Rows("xm3600/captions.jsonl", partial(captions, language), (language,))
                for language in LANGUAGES
            }
        )
    },
    protocols=(
        RetrievalProtocol(name="all-captions", about="Babel-ImageNet, MTEB, SigLIP: all captions, any of them found"),
        RetrievalProtocol(
            name="one-caption",
            about="CLIP_benchmark: the first caption of a picture; English counts in the average of 36",
            captions=1,
            average_english=True,
        ),
    ),
    counts={"one-caption": dict.fromkeys(LANGUAGES, PICTURES)},
    images=dict.fromkeys(("one-caption", "all-captions"), dict.fromkeys(LANGUAGES, PICTURES)),
)
