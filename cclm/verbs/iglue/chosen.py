"""Which tests are meant by --tasks, --languages, --protocol and --data; where their pictures are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial as partial_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclm.errors import first_line
from cclm.verbs.inputs import codes

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.evaluation.items import TestSet
    from cclm.evaluation.pictures import PictureFiles
    from cclm.evaluation.protocol import Protocol
    from cclm.evaluation.task import DataFolder, Task

ALL = "all"  # as --tasks
logger = logging.getLogger(__name__)


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

    asked = _asked(given)
    names = dict.fromkeys(name for one in asked for name in (tasks.names() if one == ALL else [one]))
    if not names:
        raise ValueError(f"--tasks {given!r} names no task; there are {', '.join(tasks.names())}")
    return [tasks.find(name) for name in names]


def _asked(given: str) -> list[str]:
    return [name for name in map(str.strip, given.split(",")) if name]


def add_pictures(parser: ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, default=None, help="folder of pictures, in zips too; --data by default")
    parser.add_argument("--stand-in-images", action="store_true", help="drawings in their place; numbers mean nothing")


@dataclass(frozen=True)
class Chosen:
    """A task as it is to be measured. `translated`: the shipped translations of the test are read. `named`: by the
    user; else it is one of all, and left out where it cannot be measured.
    """

    task: Task[Any, Any]
    protocol: Protocol
    languages: tuple[str, ...]
    translated: bool = False
    named: bool = True

    def tests(self, data: DataFolder, partial: bool) -> list[TestSet]:
        """One for each language. Errors: ValueError."""
        read = partial_of(self.task.test_set, data, protocol=self.protocol, translated=self.translated)
        return self.kept({language: partial_of(read, language, whole=not partial) for language in self.languages})

    def kept(self, tests: Mapping[str, Callable[[], TestSet]]) -> list[TestSet]:
        """The tests by language; of a task that was not named, those that there are: the others are told in one line.

        Errors: ValueError.
        """
        found, reasons = [], {}
        for language, test in tests.items():
            try:
                found.append(test())
            except ValueError as error:
                if self.named:
                    raise
                reasons[language] = first_line(error)
        if reasons:
            some = ", ".join(reasons) if len(reasons) < 10 else f"{len(reasons)} languages"
            where = f" in {some}" if found else ""
            logger.warning("left out %s%s: %s", self.task.name, where, next(iter(reasons.values())))
        return found


@contextmanager
def lenient(task: Task[Any, Any], named: bool) -> Iterator[None]:
    """A task that was not named, and cannot be measured, is told in one line. Errors: ValueError for one that was."""
    try:
        yield
    except ValueError as error:
        if named:
            raise
        logger.warning("left out %s: %s", task.name, first_line(error))


def chosen(given: Namespace, translator: str = "") -> list[Chosen]:
    """Errors: ValueError for tasks, languages and protocols that there are not; no file is read.

    `translator`: "shipped", or a model's, for which English needs none. A task is left out in languages that it has
    not, as long as another one has them; of --tasks all, each is left out that cannot be measured so.
    """
    found, asked = [], _asked(given.tasks)
    for task in tasks_named(given.tasks):
        named = ALL not in asked or task.name in asked
        with lenient(task, named):
            found.append(_measured(task, given.protocol, translator, named))
    wanted = codes(given.languages)
    if wanted is None:
        return found
    there = {language for one in found for language in one.languages}
    if unknown := [language for language in wanted if language not in there]:
        raise ValueError(f"no test in language {', '.join(unknown)}; these tasks have {', '.join(sorted(there))}")
    kept = []
    for one in found:
        with lenient(one.task, one.named):
            own = tuple(name for name in wanted if name in one.languages)
            if not own:
                told = f"task {one.task.name} has no test in {', '.join(wanted)}"
                raise ValueError(f"{told}; leave it out, or name its languages")
            kept.append(replace(one, languages=own))
    return kept


def _measured(task: Task[Any, Any], name: str | None, translator: str, named: bool) -> Chosen:
    from cclm.evaluation.task import ClassificationTask, RetrievalTask

    protocol = task.protocol(name)
    if translator and not isinstance(task, (ClassificationTask, RetrievalTask)):
        raise ValueError(f"task {task.name} is not read in English, so there is nothing to translate; leave it out")
    split = f"{protocol.split}_translated" if translator == "shipped" else protocol.split
    if split not in task.splits:
        raise ValueError(f"task {task.name} ships no translated {protocol.split}; give --translate a model's name")
    languages = tuple(name for name in task.splits[split].languages if not translator or name != "en")
    return Chosen(task, protocol, languages, translator == "shipped", named)


@contextmanager
def pictures_of(given: Namespace) -> Iterator[PictureFiles]:
    """Errors: ValueError."""
    from cclm.evaluation.pictures import open_pictures

    if given.images is not None and given.stand_in_images:
        raise ValueError("--images and --stand-in-images exclude each other; leave one of them out")
    with open_pictures(None if given.stand_in_images else given.images or given.data) as pictures:
        yield pictures
