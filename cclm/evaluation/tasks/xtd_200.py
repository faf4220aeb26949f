"""XTD-200: XTD10's English captions of 1,000 pictures of COCO, translated by machine to 200 languages.

Read as data/xtd200 of visheratin/nllb-clip ships it: test_image_names.txt and <language>.txt, line by line, languages
as in flickr30k_200; there is no English.
"""

from __future__ import annotations

from cclm.evaluation.protocol import RetrievalProtocol
from cclm.evaluation.sources import Lines
from cclm.evaluation.task import RetrievalTask
from cclm.evaluation.tasks.flickr30k_200 import LANGUAGES

TASK = RetrievalTask(
    name="xtd_200",
    about="captions of COCO's pictures, one each, translated by machine",
    languages=LANGUAGES,
    pictures="COCO train2014 and val2014",
    origin="data/xtd200 of visheratin/nllb-clip, as xtd200/",
    splits={
        "test": Lines("xtd200/test_image_names.txt", {language: (f"xtd200/{language}.txt",) for language in LANGUAGES})
    },
    protocols=(RetrievalProtocol(name="official", about="NLLB-CLIP: 1,000 pictures, a caption each"),),
    counts={"official": dict.fromkeys(LANGUAGES, 1000)},
    images={"official": dict.fromkeys(LANGUAGES, 1000)},
)
