"""Numbers of several languages, or of several few-shot training sets, made one as IGLUE does (reference/iglue.md 1.7).

An aggregate says in words what it is made of, and none is made of a part unasked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean

from cclm.evaluation.number import AVERAGE, SIZES, Number
from cclm.evaluation.protocol import FewShot, MaxShot, Protocol, ZeroShot
from cclm.evaluation.task import Task

AREA = "area"  # in the place of the shots
ZERO_SHOT, FEW_SHOT, MAX_SHOT = (regime.name for regime in (ZeroShot, FewShot, MaxShot))
_ENGLISH = {True: "English included", False: "English excluded"}


@dataclass(frozen=True, kw_only=True)
class Aggregate(Number):
    """`languages`: that it is the mean of; `missing`: that it should have been. `words`: both, for a reader."""

    languages: tuple[str, ...]
    missing: tuple[str, ...] = ()
    words: str = ""


def average(numbers: Iterable[Number], languages: Sequence[str], partial: bool = False) -> Aggregate:
    """Plain mean of one series over `languages`; numbers of other languages are left out.

    `partial`: average what is there and say "3 of 4 languages".
    Errors: ValueError for numbers of several series, a language that is there twice or, unless partial, not at all.
    """
    by_language: dict[str, Number] = {}
    for number in numbers:
        if number.language in by_language:
            raise ValueError(f"{_named(number)} is there twice in {number.language}; give one of the two")
        by_language[number.language] = number
    if len({number.series for number in by_language.values()}) > 1:
        different = sorted({_named(number) for number in by_language.values()})
        raise ValueError(f"numbers of {len(different)} kinds have no average: {'; '.join(different)}")
    there = [by_language[language] for language in languages if language in by_language]
    missing = tuple(language for language in languages if language not in by_language)
    if not there or missing and not partial:
        kind = f" of {_named(next(iter(by_language.values())))}" if by_language else ""
        raise ValueError(
            f"no average{kind}: {len(there)} of {len(languages)} languages, without {' '.join(missing)}; "
            "evaluate these too, or ask for a partial average"
        )
    names = tuple(number.language for number in there)
    value = fmean(number.value for number in there)
    return _joined(there, value, names, missing, _mean_words(there, languages, missing))


def _mean_words(there: Sequence[Number], languages: Sequence[str], missing: Collection[str]) -> str:
    count = f"{len(there)} of {len(languages)}" if missing else f"{len(languages)}"
    words = f"mean of {count} languages ({' '.join(number.language for number in there)})"
    words += f", without {' '.join(missing)}" if missing else ""
    words += f", {_ENGLISH['en' in languages]}"
    each = [number.captions for number in there if number.captions is not None]
    if each and max(each) - min(each) > 1e-9:
        words += f"; captions per image differ, {min(each):.3g} to {max(each):.3g}"
    return words


def by_series(numbers: Iterable[Number]) -> list[list[Number]]:
    """Numbers that differ in language only, together."""
    series: dict[tuple[str, ...], list[Number]] = {}
    for number in numbers:
        series.setdefault(number.series, []).append(number)
    return list(series.values())


def averages(
    numbers: Iterable[Number], task: Task | None, languages: Sequence[str] | None = None, partial: bool = False
) -> list[Aggregate]:
    """One average per series, over the languages that its protocol averages over, or over those given.

    A series of which only an average is published keeps it; one with none of the languages has none.
    """
    found = []
    for own in by_series(numbers):
        over = languages if task is None or languages is not None else task.averaged(protocol_of(own[0], task))
        assert over is not None, "numbers of a task that is not ours are averaged over languages that are given"
        there = {number.language for number in own}
        if there.intersection(over) and (partial or there.issuperset(over)):
            found.append(average([number for number in own if number.language != AVERAGE], over, partial))
        elif AVERAGE in there:
            printed = next(number for number in own if number.language == AVERAGE)
            found.append(Aggregate(**_fields(printed), languages=(), words="average as its source prints it"))
    return found


def protocol_of(number: Number, task: Task) -> Protocol:
    """The number's own; one that we do not know averages as the task's first does."""
    return next((known for known in task.protocols if known.name == number.protocol), task.protocols[0])


def area(points: Mapping[int, float]) -> float:
    """Area under a curve by trapezoids, divided by the largest x: its mean height.

    Errors: ValueError without a point at 0 or another one.
    """
    places = sorted(points)
    if len(places) < 2 or places[0] != 0:
        raise ValueError(f"points at {places} have no area from 0 on; give one at 0 and another")
    pairs = zip(places, places[1:], strict=False)
    return sum((right - left) * (points[left] + points[right]) / 2 for left, right in pairs) / places[-1]


def few_shot_score(numbers: Iterable[Number], task: Task, language: str = AVERAGE) -> Aggregate:
    """Area under the accuracy curve over numbers of labelled examples, 0 (zero-shot) included, divided by the largest.

    `numbers`: of one system, protocol, direction and metric; at each point the mean over the same languages, or one
    language alone. Errors: ValueError naming the cells that are missing.
    """
    numbers = list(numbers)
    assert task.shots is not None and numbers
    protocol = protocol_of(numbers[0], task)
    languages = (language,) if language != AVERAGE else task.averaged(protocol, few_shot=True)
    names = {"": 0} | dict(task.shots.examples)
    points: dict[str, dict[str, Number]] = {name: {} for name in names}
    for number in sorted(numbers, key=lambda number: number.regime != MAX_SHOT):  # few-shot's own goes before
        if number.shots in points and number.regime in (ZERO_SHOT, FEW_SHOT, MAX_SHOT) and number.language in languages:
            points[number.shots][number.language] = replace(number, regime=FEW_SHOT)
    absent = {name: [one for one in languages if one not in there] for name, there in points.items()}
    if any(absent.values()):
        named = [f"{name or 'zero-shot'} ({' '.join(there)})" for name, there in absent.items() if there]
        raise ValueError(f"no few-shot score of {numbers[0].system} on {task.name} without {', '.join(named)}")
    means = {names[name]: average(there.values(), languages).value for name, there in points.items()}
    parts = [number for there in points.values() for number in there.values()]
    words = f"area under the curve over {', '.join(map(str, means))} labelled examples, "
    words += language if language != AVERAGE else _mean_words(parts[: len(languages)], languages, ())
    whole = _joined(parts, area(means), languages, (), words)
    return replace(whole, language=language, regime=FEW_SHOT, shots=AREA)


def _joined(
    parts: Sequence[Number], value: float, languages: tuple[str, ...], missing: tuple[str, ...], words: str
) -> Aggregate:
    """The parts' common fields; their notes each once; nothing that is only one part's own."""
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes if not note.startswith("captions per")))
    common = _fields(parts[0]) | {"language": AVERAGE, "value": value, "notes": notes, "interval": None, "ids": ""}
    counts = [part.items for part in parts if part.items is not None]
    common["items"] = sum(counts) if len(counts) == len(parts) and len(parts) == len(languages) else None
    common["verified"] = all(part.verified for part in parts)
    common["captions"] = parts[0].captions if len({part.captions for part in parts}) == 1 else None
    for size in SIZES:
        each = [getattr(part, size) for part in parts[: len(languages)]]
        common[size] = None if None in each else each[0] if len(set(each)) == 1 else tuple(each)
    return Aggregate(**common, languages=languages, missing=missing, words=words)


def _fields(number: Number) -> dict[str, object]:
    return {field.name: getattr(number, field.name) for field in fields(Number)}


def _named(number: Number) -> str:
    kind = (number.task, number.direction, number.metric, number.protocol, number.split, number.regime, number.shots)
    return f"{number.system or 'a system'}: {' '.join(part for part in kind if part)}"
