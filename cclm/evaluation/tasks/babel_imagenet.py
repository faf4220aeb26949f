"""Babel-ImageNet: ImageNet's validation pictures, recognised by the names of their classes in a language.

Names are read as gregor-ge/Babel-ImageNet ships them, {"DE": [[numbers of classes], [their names]], ..}, as
babel_imagenet/babel_imagenet.json or babel_imagenet-298.json. Pictures lie as torchvision's ImageNet has them,
imagenet/val/<class>/<name>.JPEG. Classes are numbered in the order of LOC_synset_mapping.txt of ImageNet's Kaggle
archive where imagenet/ holds it, else in that of the names of their folders, of which there must then be 1,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cclm.data.raw import read_json, read_lines
from cclm.evaluation.items import Picture
from cclm.evaluation.protocol import Protocol
from cclm.evaluation.sources import DataFolder, Source
from cclm.evaluation.task import PictureTask

# The languages of XLM-R, without English: a part of the file's 298.
LANGUAGES = tuple(
    """
    af am ar as az be bg bn br bs ca cs cy da de el eo es et eu fa fi fr fy ga gd gl gu ha he hi hr hu hy id is it ja jv
    ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my ne nl no om or pa pl ps pt ro ru sa sd si sk sl so sq sr su sv
    sw ta te th tl tr ug uk ur uz vi xh yi zh
    """.split()
)
NAMES = ("babel_imagenet/babel_imagenet.json", "babel_imagenet/babel_imagenet-298.json")
PICTURES, ORDER, CLASSES = "imagenet/val", "imagenet/LOC_synset_mapping.txt", 1000


def names(data: DataFolder, language: str) -> dict[str, tuple[str, ...]]:
    """Number of a class -> its name, of the classes that have one."""
    path = next(filter(None, map(data.find, NAMES)), None) or data.path(NAMES[0])
    whole = read_json(path)
    own = whole.get(language.upper()) if isinstance(whole, dict) else None
    try:
        numbers, found = own
        assert len(numbers) == len(set(numbers)) and all(isinstance(name, str) and name.strip() for name in found)
        return {str(int(number)): (name,) for number, name in zip(numbers, found, strict=True)}
    except (TypeError, ValueError, AssertionError):
        reason = "no [numbers of classes, their names]"
        raise ValueError(f"{path} has {reason} in {language.upper()}; fetch it again") from None


@dataclass(frozen=True)
class ClassFolders(Source):
    """Pictures by class, the same for every language."""

    languages: tuple[str, ...]

    def files(self, language: str) -> tuple[str, ...]:
        return (NAMES[0], f"{PICTURES}/")

    def read(self, data: DataFolder, language: str) -> Iterator[Picture]:
        folder = data.path(f"{PICTURES}/")
        order = data.find(ORDER)
        if order is not None:
            classes = [line.split()[0] for line in read_lines(order) if line.strip()]
        else:
            classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
            if len(classes) != CLASSES:
                raise ValueError(
                    f"{folder} holds {len(classes):,} classes, not ImageNet's {CLASSES:,}, so that their numbers are "
                    f"not known; add {ORDER}, which lists all in their order"
                )
        for number, name in enumerate(classes):
            for path in sorted((folder / name).glob("*")):
                yield Picture(f"{name}/{path.name}", f"{name}/{path.name}", str(number))


TASK = PictureTask(
    name="babel_imagenet",
    about="pictures, each recognised by the name of its class",
    languages=LANGUAGES,
    pictures="ImageNet's validation set, as imagenet/val/<class>/ below --data",
    origin="data of gregor-ge/Babel-ImageNet as babel_imagenet/, ImageNet's val below --data",
    splits={"test": ClassFolders(LANGUAGES)},
    names=names,
    protocols=(Protocol(name="official", about="the names alone, without a prompt; only classes that have one"),),
)
