"""Multi30K: Flickr30K's pictures described in English and German, five times each, and translated into de fr cs.

Source: https://github.com/multi30k/dataset (its folder `data`, or any folder that holds these two), and the pictures:
  task1/raw/<split>.<language>[.gz]            a line per picture: an English caption, or its translation
  task2/raw/<split>.<number>.<language>[.gz]   five captions per picture, en and de, independent of each other
  task1/image_splits, task2/image_splits       names of the pictures, line by line
  images                                       Flickr30K's, below the same folder or the one of option `images`, or in
                                               .zip files there; found by name or by the number that Flickr gives them
Licence: captions for research and education only, pictures as their owners on Flickr say. Size: 29,000 pictures to
train on, 1,014 for dev, 1,000 for the test of 2016; tests of 2017 and 2018 with 1,000, 461 (COCO) and 1,071 pictures.

A record is a picture. `captions` are task 2's five where a language has them and else task 1's one, as the published
retrieval scores count them (en, de 5; fr, cs 1); `parallel` is task 1's sentence in every language. Option `task`: 1
takes task 1 alone, 2 task 2 alone. Splits: `train`, `dev` (val), `test` (test_2016_flickr), `test_2017_flickr` ..
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cclm.data.image_ids import stem
from cclm.data.raw import Skipped, open_images, read_lines, record_key
from cclm.errors import SampleError
from cclm.types import Record

TASK1 = re.compile(r"(?P<split>\w+)\.(?P<language>[a-z]{2})(\.gz)?")
TASK2 = re.compile(r"(?P<split>\w+)\.\d\.(?P<language>[a-z]{2})(\.gz)?")
SPLITS = {"val": "dev", "test_2016_flickr": "test", "test_2016": "test"}


@dataclass
class Described:
    """What the lines of all files say of one picture."""

    image: str
    captions: dict[str, list[str]] = field(default_factory=dict)  # of task 2
    parallel: dict[str, str] = field(default_factory=dict)  # of task 1


def find(source: Path, name: str) -> Path | None:
    """The folder of this path, anywhere below `source`."""
    inside = sorted(path for path in source.rglob(Path(name).name) if path.as_posix().endswith(f"/{name}"))
    return next(iter(inside), None)


def listed(folder: Path, split: str) -> list[str]:
    """Names of the pictures of a split. Errors: ValueError."""
    lists = folder.parent / "image_splits"
    path = next((path for path in (lists / f"{split}.txt", lists / f"{split}_images.txt") if path.is_file()), None)
    if path is None:
        raise ValueError(f"multi30k: {lists} has no {split}.txt, which names the pictures: fetch it with the captions")
    return [line.partition("#")[0].strip() for line in read_lines(path)]


def read_files(folder: Path | None, pattern: re.Pattern[str]) -> Iterator[tuple[str, str, str, str]]:
    """(split, picture, language, text) of all lines. Errors: ValueError for a file with other lines than pictures."""
    for path in sorted(folder.iterdir()) if folder else ():
        name = pattern.fullmatch(path.name)
        if name is None:
            continue
        pictures, lines = listed(folder, name["split"]), list(read_lines(path))
        if len(pictures) != len(lines):
            raise ValueError(f"multi30k: {path} has {len(lines)} lines for {len(pictures)} pictures: fetch it again")
        split = SPLITS.get(name["split"], name["split"])
        for picture, text in zip(pictures, lines, strict=True):
            yield split, picture, name["language"], text.strip()


def describe(source: Path, task: int) -> dict[tuple[str, str], Described]:
    """By split and picture, in the order of the lists. Errors: ValueError where no file is there."""
    found: dict[tuple[str, str], Described] = {}
    if task != 2:
        for split, picture, language, text in read_files(find(source, "task1/raw"), TASK1):
            about = found.setdefault((split, picture), Described(picture))
            if text:
                about.parallel[language] = text
    if task != 1:
        for split, picture, language, text in read_files(find(source, "task2/raw"), TASK2):
            about = found.setdefault((split, picture), Described(picture))
            if text:
                about.captions.setdefault(language, []).append(text)
    if not found:
        raise ValueError(f"multi30k: {source} has no task1/raw/train.en.gz or alike: give Multi30K's data folder")
    return found


def records(source: Path, *, task: int = 0, images: str = "") -> Iterator[tuple[str, Record]]:
    """Yield (split, record), a record per picture. `task`: 1 or 2 for one of the two alone. `images`: the folder of
    the pictures, where it is another than `source`. What is missing or damaged is left out, counted, logged.
    """
    if task not in (0, 1, 2):
        raise ValueError(f"multi30k: option task={task}; give 1 (translations), 2 (five captions) or 0 for both")
    found = describe(source, task)
    with open_images(Path(images) if images else source) as pictures, Skipped(source) as skipped:
        for (split, _), about in found.items():
            one = {language: [text] for language, text in about.parallel.items()}
            try:
                image = pictures.read(about.image)
            except SampleError as error:
                skipped.add(error.reason, f"{split} {about.image}")
                continue
            key = record_key(stem(about.image))
            yield split, Record(key, image, captions=one | about.captions, parallel=about.parallel)
