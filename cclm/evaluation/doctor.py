"""What of the benchmarks is there, whole and readable: per task, split and language, and the tests' pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cclm.data.build import nearest
from cclm.data.raw import open_images
from cclm.errors import SampleError, first_line
from cclm.evaluation.items import Questions
from cclm.evaluation.pictures import FolderPictures
from cclm.evaluation.sources import DataFolder
from cclm.evaluation.task import Task
from cclm.images import open_image

if TYPE_CHECKING:
    from rich.console import Group

State: TypeAlias = Literal["complete", "no texts", "other count", "unreadable", "missing"]
TRANSLATED = "_translated"
WIDTH = 100  # columns
SHOWN = 8  # languages, or reasons, before the rest is only counted


@dataclass(frozen=True)
class Finding:
    """A split in a language. `found`, `expected`: items; `files`: those that are missing; `reason`: why unreadable,
    or of what other than items there is another count.
    """

    split: str
    language: str
    state: State
    found: int = 0
    expected: int | None = None
    files: tuple[str, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"files": list(self.files)}


@dataclass(frozen=True)
class Pictured:
    """A test's pictures in a language. `missing`, `unreadable`: their number; `first`: a missing one's name;
    `reasons`: how many could not be read why, empty where none was opened.
    """

    split: str
    language: str
    wanted: int
    missing: int
    unreadable: int = 0
    first: str = ""
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Health:
    """Of one task. `pictures`: of every test and language; `every`: all of these together, each once. `without`: why
    they could not be looked for, "" where they were.
    """

    task: Task
    findings: tuple[Finding, ...]
    pictures: tuple[Pictured, ...] = ()
    every: Pictured | None = None
    without: str = ""

    @property
    def absent(self) -> bool:
        """Nothing of it is there."""
        return all(finding.state == "missing" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task.name,
            "origin": self.task.origin,
            "splits": [finding.to_dict() for finding in self.findings],
            "pictures": [vars(pictured) for pictured in self.pictures],
            "pictures_of": self.task.pictures,
            "pictures_unread": self.without,
        }


def examine(
    tasks: Sequence[Task],
    data: DataFolder,
    images: Path,
    languages: Sequence[str] | None = None,
    opened: bool = False,
) -> list[Health]:
    """Look at everything of the tasks, in the languages or all. `opened`: decode every picture of the tests, too.

    A file that is damaged is a finding, not an error. Errors: ValueError for a folder of pictures that is not there,
    or a language that none of the tasks has.
    """
    there = sorted({language for task in tasks for source in task.splits.values() for language in source.languages})
    for language in languages or ():
        if language not in there:
            close = nearest(language, there).rpartition("allowed")[0]  # of hundreds
            raise ValueError(f"none of these tasks is there in language {language!r}; {close}leave --languages out")
    if not images.is_dir():
        raise ValueError(f"--images {images} is no folder; give the one that the pictures, or zips of them, lie in")
    try:
        with open_images(images) as found:
            return _healths(tasks, data, languages, _Eye(FolderPictures(found), opened))
    except ValueError as error:  # a damaged zip
        return _healths(tasks, data, languages, None, first_line(error))


class _Eye:
    """Looks at pictures, at each once however many languages have it."""

    def __init__(self, pictures: FolderPictures, opened: bool) -> None:
        self.pictures, self.opened = pictures, opened
        self.seen: dict[str, str] = {}  # name -> "", "missing", or why it cannot be read

    def state(self, name: str) -> str:
        if name not in self.seen:
            self.seen[name] = self._look(name)
        return self.seen[name]

    def _look(self, name: str) -> str:
        if name not in self.pictures:
            return "missing"
        try:
            if self.opened:
                open_image(self.pictures.read(name))
        except (SampleError, OSError) as error:
            return first_line(error)
        return ""

    def look(self, split: str, language: str, names: Sequence[str]) -> Pictured:
        states = {name: self.state(name) for name in names}
        missing = [name for name, state in states.items() if state == "missing"]
        reasons = Counter(state for state in states.values() if state not in ("", "missing"))
        first = missing[0] if missing else ""
        return Pictured(split, language, len(names), len(missing), reasons.total(), first, dict(reasons))


def _healths(
    tasks: Sequence[Task], data: DataFolder, languages: Sequence[str] | None, eye: _Eye | None, without: str = ""
) -> list[Health]:
    """Of the tasks that are there in one of the languages."""
    found = []
    for task in tasks:
        findings, pictures = [], []
        every: dict[str, None] = {}
        for split, language in _places(task, languages):
            finding, names = _look(task, data, split, language)
            findings.append(finding)
            if names and eye is not None and any(protocol.split == split for protocol in task.protocols):
                pictures.append(eye.look(split, language, names))
                every.update(dict.fromkeys(names))
        if findings:
            whole = eye.look("", "", list(every)) if eye is not None and every else None
            found.append(Health(task, tuple(findings), tuple(pictures), whole, without))
    return found


def _places(task: Task, languages: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    for split, source in task.splits.items():
        for language in source.languages:
            if languages is None or language in languages:
                yield split, language


def _look(task: Task, data: DataFolder, split: str, language: str) -> tuple[Finding, tuple[str, ...]]:
    """A finding, and the names of the pictures."""
    source = task.splits[split]
    expected = _expected(task, split, language)
    if missing := tuple(name for name in source.files(language) if data.find(name) is None):
        return Finding(split, language, "missing", 0, expected, missing), ()
    plain = split.removesuffix(TRANSLATED)
    protocol = next((protocol for protocol in task.protocols if protocol.split == plain), None)
    try:
        if protocol is None:
            return _counted(split, language, len(task.items(data, language, split)), expected), ()
        translated = split != plain
        test = task.test_set(data, language, protocol, translated, whole=False)
        wrong = task.miscounted(test, translated)
    except Exception as error:  # whatever a damaged file raises, it must not hide the others
        return Finding(split, language, "unreadable", 0, expected, reason=first_line(error)), ()
    if isinstance(test, Questions) and test.textless:
        texts = tuple(name for name in source.wording(language) if data.find(name) is None)
        return Finding(split, language, "no texts", len(test), expected, texts), test.images()
    if wrong is not None and wrong[0] != "items":
        kind, number, wanted = wrong
        reason = f"{number:,} {kind} instead of {wanted:,}"
        return Finding(split, language, "other count", len(test), expected, reason=reason), test.images()
    return _counted(split, language, len(test), expected), test.images()


def _counted(split: str, language: str, found: int, expected: int | None) -> Finding:
    return Finding(split, language, "complete" if expected in (None, found) else "other count", found, expected)


def _expected(task: Task, split: str, language: str) -> int | None:
    """Items by the protocol that scores the split, by its size, or by the number of shots."""
    plain = split.removesuffix(TRANSLATED)
    for protocol in task.protocols:
        if protocol.split == plain:
            return task.expected(protocol, language, split != plain) or task.sizes.get(split)
    shots = task.shots.examples if task.shots is not None else {}
    return task.sizes.get(split, shots.get(split.removeprefix("train_")))


def summary(found: Sequence[Health]) -> Group:
    """A line for every kind of split, then what cannot be read and why, and what to fetch; within 100 columns."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    view = Table(box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    for name in ("task", "split"):
        view.add_column(name, "bold" if name == "task" else "", no_wrap=True)
    for name in ("there", "items"):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("what lacks")
    for health in found:
        for number, cells in enumerate(_lines(health)):
            view.add_row("" if number else health.task.name, *map(Text, cells))
    notes = [*_reasons(found), *_fetches(found)] or ["Everything is there."]
    lines = (line for note in notes for line in wrap(note, WIDTH, subsequent_indent="    ", break_on_hyphens=False))
    return Group(view, Text("\n".join(lines)))


def _lines(health: Health) -> Iterator[tuple[str, str, str, str]]:
    """Split, how many of its sets of a language are there, their items, and what lacks."""
    if health.absent:
        yield "", f"0 of {len(health.findings)}", "", "nothing of it is here"
        return
    kinds: dict[str, list[Finding]] = {}
    for finding in health.findings:
        kinds.setdefault(_kind(health.task, finding.split), []).append(finding)
    for kind, findings in kinds.items():
        there = [finding for finding in findings if finding.found]
        sizes = sorted(finding.found for finding in there)
        items = "–".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else ""
        yield kind, f"{len(there)} of {len(findings)}", items, "; ".join(_lacks(findings))
    if health.without:
        yield "pictures", "", "", "not looked for, see below"
    elif health.every is not None:
        every = health.every
        lacks = [f"missing, as {every.first}"] if every.missing else []
        lacks += [f"unreadable: {every.unreadable:,}"] if every.unreadable else []
        yield "pictures", "", f"{every.wanted - every.missing:,} of {every.wanted:,}", "; ".join(lacks)


def _kind(task: Task, split: str) -> str:
    plain = split.removesuffix(TRANSLATED)
    if task.shots is not None and split.startswith("train_") and split == plain:
        return "few-shot train"
    return "translated " * (split != plain) + plain.replace("_", " ")


def _lacks(findings: Sequence[Finding]) -> Iterator[str]:
    """In words, for each kind of lack, in which languages."""
    kinds: dict[str, dict[str, None]] = {}
    for finding in findings:
        if finding.state == "other count":
            words = finding.reason or f"{finding.found:,} instead of {finding.expected:,}"
            kinds.setdefault(words, {})[finding.language] = None
        elif finding.state != "complete":
            kinds.setdefault(finding.state, {})[finding.language] = None
    for words, languages in kinds.items():
        named = list(languages)
        rest = f" and {len(named) - SHOWN} more" if len(named) > SHOWN + 1 else ""
        yield f"{words}: {' '.join(named[:SHOWN] if rest else named)}{rest}"


def _reasons(found: Sequence[Health]) -> Iterator[str]:
    """Why files and pictures cannot be read, a line each, the first so many."""
    bad = [
        f"{health.task.name}, {finding.split} in {finding.language}: {finding.reason}"
        for health in found
        for finding in health.findings
        if finding.state == "unreadable"
    ]
    bad += [f"pictures: {reason}" for reason in dict.fromkeys(health.without for health in found if health.without)]
    for health in found:
        reasons = health.every.reasons if health.every is not None else {}
        bad += [f"{health.task.name}, {count:,} pictures: {reason}" for reason, count in reasons.items()]
    if bad:
        yield "Not readable:"
        yield from (f"  {line}" for line in bad[:SHOWN])
        if len(bad) > SHOWN:
            yield f"  and {len(bad) - SHOWN} more; --json tells all"


def _fetches(found: Sequence[Health]) -> Iterator[str]:
    """What to fetch from where, a line for the files of a task, and one for its pictures."""
    wanted = []
    for health in found:
        task = health.task
        if kinds := dict.fromkeys(_kind(task, each.split) for each in health.findings if each.state != "complete"):
            wanted.append(f"{task.name}: {'all' if health.absent else ', '.join(kinds)}; {task.origin or 'its source'}")
        if health.every is not None and health.every.missing:
            wanted.append(f"{task.name}: pictures; {task.pictures or 'its source'}")
    if wanted:
        yield "To fetch, and where it comes from:"
        yield from (f"  {line}" for line in wanted)
