"""Our own results beside the literature's numbers, and the aggregates of both: what tables, plots and files show."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

from cclm.evaluation.aggregate import (
    FEW_SHOT,
    MAX_SHOT,
    ZERO_SHOT,
    Aggregate,
    averages,
    by_series,
    few_shot_score,
    protocol_of,
)
from cclm.evaluation.number import AVERAGE, Number, cell, numbers
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.protocol import QuasiZeroShot, Supervised, TranslateTest, TranslateTrain, Unstated
from cclm.evaluation.published import published
from cclm.evaluation.result import Result
from cclm.evaluation.task import Task, find, names

SUPERVISED = Supervised.name
REGIMES = (
    *(ZERO_SHOT, QuasiZeroShot.name, SUPERVISED, Unstated.name),
    *(TranslateTest.name, TranslateTrain.name, MAX_SHOT),
)
SHOWN = ("accuracy", "consistency", "R@1", "CIDEr", "fidelity")
ENGLISH = "en"


@dataclass(frozen=True)
class View:
    """What one table or plot is of; `task` is None for one that is not ours."""

    name: str
    task: Task | None = field(compare=False)
    direction: str
    metric: str

    @property
    def slug(self) -> str:
        return "_".join(part for part in (self.name, self.direction, self.metric.replace("@", "")) if part)

    @property
    def title(self) -> str:
        metric = "mean recall of both directions" if self.metric == "mean_recall" else self.metric
        way = f", {self.direction.replace('_', ' ')}" if self.direction else ""
        return f"{self.name}: {metric}{way}"


@dataclass(frozen=True)
class Line:
    """Numbers of one series, by language, and their average where there is one."""

    numbers: dict[str, Number]
    average: Aggregate | None

    @property
    def head(self) -> Number:
        return next(iter(self.numbers.values()), self.average)  # type: ignore[return-value]

    @property
    def own(self) -> bool:
        return not self.head.source

    @property
    def stands_in(self) -> bool:
        """Some of its pictures were made up."""
        return any(StandIns.note in number.notes for number in self.numbers.values())

    @property
    def partial(self) -> tuple[str, ...]:
        """What its numbers say of tests that were not whole."""
        notes = (note for number in self.numbers.values() for note in number.notes if note.startswith("partial: "))
        return tuple(dict.fromkeys(notes))


@dataclass(frozen=True)
class Survey:
    """`literature`: which published numbers stand beside: "verified", "all" or "none"."""

    results: tuple[Result, ...]
    literature: str = "verified"
    _tasks: dict[str, Task | None] = field(default_factory=dict, repr=False)

    @cached_property
    def own(self) -> list[Number]:
        """Of max-shot and few-shot results of one thing, few-shot's."""
        few = {cell(replace(result, regime=MAX_SHOT)) for result in self.results if result.regime == FEW_SHOT}
        return [number for result in self.results if cell(result) not in few for number in numbers(result)]

    def task(self, name: str) -> Task | None:
        if name not in self._tasks:
            self._tasks[name] = find(name) if name in names() else None
        return self._tasks[name]

    @cached_property
    def known(self) -> list[Number]:
        """Published numbers of the same tasks, and of regimes that we have too (few-shot's zero-shot point besides)."""
        if self.literature == "none":
            return []
        regimes = {number.regime for number in self.own}
        if regimes & {FEW_SHOT, MAX_SHOT}:
            regimes |= {FEW_SHOT, ZERO_SHOT}
        tasks = {number.task for number in self.own}
        found = published(self.literature == "all", task=tasks, regime=regimes)
        # The same test has as many captions for them as for us, which an average has to tell.
        captions = {(n.task, n.protocol, n.language, n.direction): n.captions for n in self.own}
        return [replace(n, captions=captions.get((n.task, n.protocol, n.language, n.direction))) for n in found]

    def views(self) -> list[View]:
        """Accuracy, consistency, recall at 1 each way, CIDEr, fidelity; mean recall where the literature gives it."""
        with_mean = {number.task for number in published(unverified=True, metric="mean_recall")}
        found = dict.fromkeys(
            View(number.task, self.task(number.task), number.direction, number.metric)
            for number in self.own
            if number.metric in SHOWN
            or (number.metric == "mean_recall" and not number.direction and number.task in with_mean)
        )
        return list(found)

    def _of(self, view: View, numbers: Sequence[Number]) -> list[Number]:
        wanted = (view.name, view.direction, view.metric)
        return [number for number in numbers if (number.task, number.direction, number.metric) == wanted]

    def languages(self, view: View) -> list[str]:
        """Those of our own numbers, in the task's order."""
        there = dict.fromkeys(number.language for number in self._of(view, self.own))
        order = list(view.task.languages) if view.task else []
        return [name for name in order if name in there] + [name for name in there if name not in order]

    def lines(self, view: View) -> list[Line]:
        """By regime, max-shot for few-shot; in each our own first, then the literature's, best average first."""
        own = self._lines(view, self._of(view, self.own))
        known = [line for line in self._lines(view, self._of(view, self.known)) if self._comparable(line, view)]
        known.sort(key=lambda line: -line.average.value if line.average else 0.0)
        ordered = []
        for regime in REGIMES:
            ours = [line for line in own if line.head.regime == regime]
            ordered += ours + [line for line in known if line.head.regime == regime and ours]
        return ordered

    def _lines(self, view: View, numbers: Sequence[Number]) -> list[Line]:
        largest = list(view.task.shots.examples)[-1] if view.task and view.task.shots else None
        there = [
            replace(number, regime=MAX_SHOT) if number.regime == FEW_SHOT and number.shots == largest else number
            for number in map(_with_others, numbers)
        ]
        return [self._line(view, own) for own in by_series(n for n in there if n.regime != FEW_SHOT)]

    def _line(self, view: View, series: list[Number]) -> Line:
        found = averages(series, view.task, self._over(view, series), partial=not series[0].source)
        order = {name: place for place, name in enumerate(view.task.languages)} if view.task else {}
        named = sorted((n for n in series if n.language != AVERAGE), key=lambda n: order.get(n.language, len(order)))
        return Line({number.language: number for number in named}, found[0] if found else None)

    def _over(self, view: View, series: list[Number]) -> Sequence[str] | None:
        if view.task is None:
            return [number.language for number in series if number.language != ENGLISH]
        if series[0].regime in (FEW_SHOT, MAX_SHOT):
            return view.task.averaged(protocol_of(series[0], view.task), few_shot=True)
        return None

    def _comparable(self, line: Line, view: View) -> bool:
        """It says something of a language of ours, or on average; not of English alone where we have others."""
        shared = set(line.numbers) & set(self.languages(view))
        return bool(shared - {ENGLISH}) or line.average is not None or shared == set(self.languages(view))

    def shots(self, view: View) -> list[Line]:
        """Few-shot's lines at every number of examples, zero-shot's for none, of systems that have few-shot numbers;
        in the languages that every point has.
        """
        if (task := view.task) is None or task.shots is None:
            return []
        points = ("", *task.shots.examples)
        found = []
        for known in (self._of(view, self.own), self._of(view, self.known)):
            there = [
                replace(number, regime=FEW_SHOT)
                for number in known
                if number.regime in (ZERO_SHOT, FEW_SHOT, MAX_SHOT)
                and number.shots in points
                and number.language in task.averaged(protocol_of(number, task), few_shot=True)
            ]
            systems = {(number.system, number.protocol) for number in there if number.shots}
            there = [number for number in there if (number.system, number.protocol) in systems]
            there.sort(key=lambda number: points.index(number.shots))
            found += [self._line(view, own) for own in by_series(there)]
        return found

    def score(self, view: View, lines: Sequence[Line], language: str = AVERAGE) -> Aggregate:
        """The few-shot score of lines of one system. Errors: ValueError naming what is missing."""
        assert view.task is not None
        return few_shot_score([n for line in lines for n in line.numbers.values()], view.task, language)

    def aggregates(self) -> list[Aggregate]:
        """Of every score of our own: averages, also at each number of examples, and few-shot scores."""
        found = []
        for name, direction, metric in dict.fromkeys((n.task, n.direction, n.metric) for n in self.own):
            view = View(name, self.task(name), direction, metric)
            lines = [self._line(view, own) for own in by_series(self._of(view, self.own))]
            found += [line.average for line in lines if line.average]
            systems: dict[tuple[str, str], list[Line]] = {}
            for line in self.shots(view):
                if line.own:
                    systems.setdefault((line.head.system, line.head.protocol), []).append(line)
            for lines in systems.values():
                with suppress(ValueError):  # the table says what is missing
                    found.append(self.score(view, lines))
        return found


def _with_others(number: Number) -> Number:
    """English, in which a model has learned, stands in the row of the languages that it is transferred to, as IGLUE's
    tables have it; no average counts it."""
    return replace(number, regime=ZERO_SHOT) if (number.language, number.regime) == (ENGLISH, SUPERVISED) else number
