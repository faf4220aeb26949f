"""COCO: captions in en and ja of Karpathy's 5,000 test pictures, in zh of COCO-CN's 1,000 (reference/iglue.md 4).

Read as their authors ship them, in coco/: dataset_coco.json (Karpathy's splits, for en and the order of pictures),
stair_captions_v1.2_val.json (STAIR captions, for ja), and of coco-cn-version1805v1.1 coco-cn_test.txt and
imageid.human-written-caption.txt (for zh: 1,000 pictures, 1,053 captions). Five folds of 1,000, the first of them, and
one gallery of 5,000 give three different numbers; where a picture has more than five captions, the first five count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclm.data.annotations import text
from cclm.data.raw import read_json, read_lines
from cclm.errors import SampleError
from cclm.evaluation.items import Caption
from cclm.evaluation.protocol import RetrievalProtocol
from cclm.evaluation.sources import DataFolder, PerLanguage, Source, bad_row
from cclm.evaluation.task import RetrievalTask

KARPATHY = "coco/dataset_coco.json"
STAIR = "coco/stair_captions_v1.2_val.json"
CN = "coco/coco-cn-version1805v1.1"


def listed(path: Path, key: str) -> list[dict[str, Any]]:
    """A list of objects in a JSON object. Errors: ValueError naming file and key."""
    whole = read_json(path)
    found = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{path} has no list of {key}; fetch it again")
    return found


def karpathy(data: DataFolder, split: str) -> Iterator[tuple[str, str, list[Caption]]]:
    """COCO's number, the file name and the English captions of every picture of a split."""
    path = data.path(KARPATHY)
    for number, row in enumerate(listed(path, "images"), 1):
        try:
            if text(row, "split") != split:
                continue
            image, sentences = text(row, "filename"), row.get("sentences")
            if not isinstance(sentences, list) or not all(isinstance(found, dict) for found in sentences):
                raise SampleError("no list of sentences")
            captions = [Caption(text(found, "sentid"), image, text(found, "raw")) for found in sentences]
            yield text(row, "cocoid"), image, captions
        except SampleError as error:
            raise bad_row(path, f"image {number}", error) from None


@dataclass(frozen=True)
class English(Source):
    split: str
    languages: tuple[str, ...] = ("en",)

    def files(self, language: str) -> tuple[str, ...]:
        return (KARPATHY,)

    def read(self, data: DataFolder, language: str) -> Iterator[Caption]:
        for _, _, captions in karpathy(data, self.split):
            yield from captions


@dataclass(frozen=True)
class Japanese(Source):
    """STAIR's captions of the same pictures in the same order."""

    split: str
    languages: tuple[str, ...] = ("ja",)

    def files(self, language: str) -> tuple[str, ...]:
        return (KARPATHY, STAIR)

    def read(self, data: DataFolder, language: str) -> Iterator[Caption]:
        path = data.path(STAIR)
        captions: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for number, row in enumerate(listed(path, "annotations"), 1):
            try:
                captions[text(row, "image_id")].append((text(row, "id"), text(row, "caption")))
            except SampleError as error:
                raise bad_row(path, f"annotation {number}", error) from None
        for key, image, _ in karpathy(data, self.split):
            if key not in captions:
                raise ValueError(
                    f"{path} has no caption of {image}, which is of Karpathy's {self.split}; fetch it again"
                )
            for identifier, caption in captions[key]:
                yield Caption(identifier, image, caption)


@dataclass(frozen=True)
class Chinese(Source):
    """COCO-CN's captions that people wrote, not those translated from English."""

    split: str
    languages: tuple[str, ...] = ("zh",)

    def files(self, language: str) -> tuple[str, ...]:
        return (f"{CN}/coco-cn_{self.split}.txt", f"{CN}/imageid.human-written-caption.txt")

    def read(self, data: DataFolder, language: str) -> Iterator[Caption]:
        names, captions = (data.path(name) for name in self.files(language))
        wanted = {line.strip() for line in read_lines(names)}
        for number, line in enumerate(read_lines(captions), 1):
            key, tab, caption = line.partition("\t")
            if not tab:
                raise bad_row(captions, f"line {number}", SampleError("no tab between picture and caption"))
            if (image := key.partition("#")[0]) in wanted:
                yield Caption(key, f"{image}.jpg", caption)


TEST = {"en": English("test"), "ja": Japanese("test")}
ABOUT = "UC2, CCLM: a gallery of Karpathy's first 1,000 test pictures; zh: COCO-CN's 1,000"

TASK = RetrievalTask(
    name="coco",
    about="captions of COCO's pictures, five each in en and ja",
    languages=("en", "ja", "zh"),
    pictures="COCO val2014; zh: train2014, too",
    origin="Karpathy's caption_datasets.zip, STAIR-captions v1.2, COCO-CN 1805v1.1 (on request), as coco/",
    splits={
        "test": PerLanguage(TEST),
        "test_1k": PerLanguage(TEST | {"zh": Chinese("test")}),
        "dev": PerLanguage({"en": English("val"), "ja": Japanese("val"), "zh": Chinese("val")}),
        "train": English("train"),
    },
    protocols=(
        RetrievalProtocol(name="1k", about=ABOUT, split="test_1k", gallery=1000, captions=5),
        RetrievalProtocol(name="1k-5fold", about="mean of five galleries of 1,000 pictures", folds=5, captions=5),
        RetrievalProtocol(name="5k", about="one gallery of 5,000 pictures", captions=5),
    ),
    counts={
        "1k": {"en": 5000, "ja": 5000, "zh": 1053},
        "1k-5fold": {"en": 25000, "ja": 25000},
        "5k": {"en": 25000, "ja": 25000},
    },
    images={
        "1k": dict.fromkeys(("en", "ja", "zh"), 1000),
        "1k-5fold": dict.fromkeys(("en", "ja"), 5000),
        "5k": dict.fromkeys(("en", "ja"), 5000),
    },
)
