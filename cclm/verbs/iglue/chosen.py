"""Which tests are meant by --tasks, --languages, --protocol and --data; where their pictures are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclm.verbs.inputs import codes

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.evaluation.items import TestSet
    from cclm.evaluation.pictures import PictureFiles
    from cclm.evaluation.protocol import Protocol
    from cclm.evaluation.task import DataFolder, Task

ALL = "all"  # as --tasks


def add_tests(parser: ArgumentParser) -> None:
    parser.add_argument("--tasks", type=str, required=True, help="xvnli,xflickrco or all; or a task file of your own")
    parser.add_argument("--data", type=Path, required=True, help="folder of the benchmarks' files")
    parser.add_argument("--languages", type=str, default=None, help="de,fr; all that a task has by default")
    parser.add_argument("--protocol", type=str, default=None, help="how it is measured; each task's first by default")
    parser.add_argument(
        "--partial", action="store_true", help="score what there is; every number then says of how much"
    )


def tasks_named(given: str) -> list[Task[Any, Any]]:
    """What --tasks says, each once. Errors: ValueError for none, or one that there is not."""
    from cclm.evaluation import task as tasks

    asked = filter(None, map(str.strip, given.split(",")))
    names = dict.fromkeys(name for one in asked for name in (tasks.names() if one == ALL else [one]))
    if not names:
        raise ValueError(f"--tasks {given!r} names no task; there are {', '.join(tasks.names())}")
    return [tasks.find(name) for name in names]


def add_pictures(parser: ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, default=None, help="folder of pictures, in zips too; --data by default")
    parser.add_argument("--stand-in-images", action="store_true", help="drawings in their place; numbers mean nothing")


@dataclass(frozen=True)
class Chosen:
    """A task as it is to be measured. `translated`: the shipped translations of the test are read."""

    task: Task[Any, Any]
    protocol: Protocol
    languages: tuple[str, ...]
    translated: bool = False

    def tests(self, data: DataFolder, partial: bool) -> list[TestSet]:
        """One for each language. Errors: ValueError."""
        return [
            self.task.test_set(data, language, self.protocol, self.translated, whole=not partial)
            for language in self.languages
        ]


def chosen(given: Namespace, translator: str = "") -> list[Chosen]:
    """Errors: ValueError for tasks, languages and protocols that there are not; no file is read.

    `translator`: "shipped", or a model's, for which English needs none. A task is left out in languages that it has
    not, as long as another one has them.
    """
    found = []
    for task in tasks_named(given.tasks):
        protocol = task.protocol(given.protocol)
        split = f"{protocol.split}_translated" if translator == "shipped" else protocol.split
        if split not in task.splits:
            raise ValueError(f"task {task.name} ships no translated {protocol.split}; give --translate a model's name")
        languages = tuple(name for name in task.splits[split].languages if not translator or name != "en")
        found.append(Chosen(task, protocol, languages, translator == "shipped"))
    wanted = codes(given.languages)
    if wanted is None:
        return found
    there = {language for one in found for language in one.languages}
    if unknown := [language for language in wanted if language not in there]:
        raise ValueError(f"no test in language {', '.join(unknown)}; these tasks have {', '.join(sorted(there))}")
    kept = [
        Chosen(one.task, one.protocol, tuple(name for name in wanted if name in one.languages), one.translated)
        for one in found
    ]
    if bare := [one.task.name for one in kept if not one.languages]:
        raise ValueError(f"task {bare[0]} has no test in {', '.join(wanted)}; leave it out, or name its languages")
    return kept


@contextmanager
def pictures_of(given: Namespace) -> Iterator[PictureFiles]:
    """Errors: ValueError."""
    from cclm.evaluation.pictures import open_pictures

    if given.images is not None and given.stand_in_images:
        raise ValueError("--images and --stand-in-images exclude each other; leave one of them out")
    with open_pictures(None if given.stand_in_images else given.images or given.data) as pictures:
        yield pictures
