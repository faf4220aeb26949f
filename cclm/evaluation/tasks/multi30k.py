"""Multi30K: captions of Flickr30K's pictures in en de fr cs (reference/iglue.md 4).

Task 2 has five independent captions per picture in English and German, task 1 an English one and its translations.
Five are found far more easily than one, so that an average over languages mixes both officially and says so.
"""

from __future__ import annotations

from cclm.evaluation.protocol import RetrievalProtocol
from cclm.evaluation.sources import Lines, PerLanguage
from cclm.evaluation.task import RetrievalTask

LANGUAGES = ("en", "de", "fr", "cs")
FIVE, ONE = ("en", "de"), ("fr", "cs")
THREE = ("en", "de", "fr")  # of the tests of 2017


def task1(split: str, *languages: str) -> Lines:
    """A caption per picture and language; each is a translation of the English one."""
    texts = {language: (f"multi30k/task1/raw/{split}.{language}.gz",) for language in languages or LANGUAGES}
    return Lines(f"multi30k/task1/image_splits/{split}.txt", texts)


def task2(split: str) -> Lines:
    """Five captions per picture, written for it."""
    texts = {name: tuple(f"multi30k/task2/raw/{split}.{n}.{name}.gz" for n in range(1, 6)) for name in FIVE}
    return Lines(f"multi30k/task2/image_splits/{split}_images.txt", texts)


def both(task2_split: str, task1_split: str) -> PerLanguage:
    five, one = task2(task2_split), task1(task1_split, *ONE)
    return PerLanguage(dict.fromkeys(FIVE, five) | dict.fromkeys(ONE, one))


def counts(images: int) -> dict[str, int]:
    return dict.fromkeys(FIVE, 5 * images) | dict.fromkeys(ONE, images)


TASK = RetrievalTask(
    name="multi30k",
    about="captions of Flickr30K's pictures: en and de five each, fr and cs one each",
    languages=LANGUAGES,
    pictures="Flickr30K; COCO 2014 for test2017-mscoco",
    origin="multi30k/dataset, its data/task1 and data/task2 as multi30k/task1 and multi30k/task2",
    splits={
        "test": both("test_2016", "test_2016_flickr"),
        "test_task1": task1("test_2016_flickr"),
        "test_2017": task1("test_2017_flickr", *THREE),
        "test_2017_mscoco": task1("test_2017_mscoco", *THREE),
        "test_2018": task1("test_2018_flickr"),
        "dev": both("val", "val"),
        "dev_task1": task1("val"),
        "train": both("train", "train"),
        "train_task1": task1("train"),
    },
    sizes={"train_task1": 29000},
    protocols=(
        RetrievalProtocol(
            name="official", about="UC2, CCLM: test 2016; five captions an image in en, de, one in fr, cs"
        ),
        RetrievalProtocol(name="task1", about="test 2016, one caption an image: translations", split="test_task1"),
        RetrievalProtocol(name="dev", about="dev, as official: five captions an image or one", split="dev"),
        RetrievalProtocol(name="dev-task1", about="dev, one caption an image", split="dev_task1"),
        RetrievalProtocol(name="test2017", about="Flickr's of 2017, one caption an image", split="test_2017"),
        RetrievalProtocol(name="test2017-mscoco", about="COCO's of 2017, one caption each", split="test_2017_mscoco"),
        RetrievalProtocol(name="test2018", about="Flickr's of 2018, one caption an image", split="test_2018"),
    ),
    counts={
        "official": counts(1000),
        "task1": dict.fromkeys(LANGUAGES, 1000),
        "dev": counts(1014),
        "dev-task1": dict.fromkeys(LANGUAGES, 1014),
        "test2017": dict.fromkeys(THREE, 1000),
        "test2017-mscoco": dict.fromkeys(THREE, 461),
        "test2018": dict.fromkeys(LANGUAGES, 1071),
    },
    images={
        "official": dict.fromkeys(LANGUAGES, 1000),
        "task1": dict.fromkeys(LANGUAGES, 1000),
        "dev": dict.fromkeys(LANGUAGES, 1014),
        "dev-task1": dict.fromkeys(LANGUAGES, 1014),
        "test2017": dict.fromkeys(THREE, 1000),
        "test2017-mscoco": dict.fromkeys(THREE, 461),
        "test2018": dict.fromkeys(LANGUAGES, 1071),
    },
)
