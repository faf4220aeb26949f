"""XTD10: one caption in each of eleven languages for 1,000 pictures of COCO (reference/iglue.md 4).

Read as adobe-research/Cross-lingual-Test-Dataset-XTD10 ships it, in xtd10/, where Japanese is called jp. Pictures are
of COCO's train2014 and val2014: a model that was trained on COCO has seen some.
"""

from __future__ import annotations

from cclm.evaluation.protocol import RetrievalProtocol
from cclm.evaluation.sources import Lines
from cclm.evaluation.task import RetrievalTask

FOLDERS = {"en": "XTD10", "de": "MIC", "fr": "MIC", "ja": "STAIR"} | dict.fromkeys(
    ("es", "it", "ko", "pl", "ru", "tr", "zh"), "XTD10"
)
SHIPPED = {"ja": "jp"}

TASK = RetrievalTask(
    name="xtd10",
    about="captions of COCO's pictures, one each",
    languages=tuple(FOLDERS),
    pictures="COCO train2014 and val2014",
    origin="adobe-research/Cross-lingual-Test-Dataset-XTD10, as xtd10/",
    splits={
        "test": Lines(
            "xtd10/XTD10/test_image_names.txt",
            {
                language: (f"xtd10/{folder}/test_1kcaptions_{SHIPPED.get(language, language)}.txt",)
                for language, folder in FOLDERS.items()
            },
        )
    },
    protocols=(RetrievalProtocol(name="official", about="1,000 pictures, a caption each"),),
    counts={"official": dict.fromkeys(FOLDERS, 1000)},
    images={"official": dict.fromkeys(FOLDERS, 1000)},
)
