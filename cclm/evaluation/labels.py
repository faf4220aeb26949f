"""An answer as any system writes it -> one of a task's labels: text, truth value, number of the label, or scores."""

from __future__ import annotations

import math
import re
from typing import Any

FEW = 10  # labels of a closed task: an answer that is none of them is a mistake of form
TRUTH = {"true": True, "false": False, "yes": True, "no": False}


class LabelError(ValueError):
    """A value that is no answer to the question; says what is allowed."""


def truths(labels: tuple[str, ...]) -> dict[bool, str] | None:
    """Which of the labels means true and which false, where they are these two."""
    if len(labels) != 2:
        return None
    found = {TRUTH.get(label.casefold()): label for label in labels}
    return {True: found[True], False: found[False]} if set(found) == {True, False} else None


def read_label(value: Any, labels: tuple[str, ...], loose: bool = False) -> str:
    """The label that `value` stands for. `loose`: other texts do too, as answers are looked through for labels.

    A few labels are told apart from their case, as numbers in their order, and by the highest of one score for each.
    Of many, only texts are read, as they stand. Errors: LabelError.
    """
    few = 0 < len(labels) <= FEW
    truth = truths(labels)
    if isinstance(value, list):
        return _highest(value, labels)
    if isinstance(value, bool) and truth is not None:
        return truth[value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and few:
        return _numbered(value, labels, truth)
    if not isinstance(value, str):
        raise LabelError(f"{value!r} is no label; give {_allowed(labels)}")
    if not few or value in labels:
        return value
    text = value.strip().casefold()
    if same := [label for label in labels if label.casefold() == text]:
        return same[0]
    if (number := re.fullmatch(r"(\d+)(\.0*)?", text)) and not (loose and int(number[1]) >= len(labels)):
        return _numbered(int(number[1]), labels, truth)
    if loose:
        return value
    raise LabelError(f"{value!r} is no label; give {_allowed(labels)}")


def contained(label: str, answer: str) -> bool:
    """Whether an answer in free form holds the label, whatever the case; for true and false, yes and no count too."""
    text = answer.casefold()
    if label.casefold() in ("true", "false"):
        text = re.sub(r"\byes\b", "true", re.sub(r"\bno\b", "false", text))
    return label.casefold() in text


def _numbered(number: int, labels: tuple[str, ...], truth: dict[bool, str] | None) -> str:
    if truth is not None and number in (0, 1):
        return truth[bool(number)]
    if not 0 <= number < len(labels):
        raise LabelError(f"{number} is no label; give {_allowed(labels)}, or 0 to {len(labels) - 1}")
    return labels[number]


def _highest(scores: list[Any], labels: tuple[str, ...]) -> str:
    if len(scores) != len(labels) or not all(map(_finite, scores)):
        raise LabelError(f"a list of {len(scores)} is no label; give {_allowed(labels)}, or a score for each in order")
    best = max(scores)
    if scores.count(best) != 1:
        raise LabelError(f"no one of the scores {scores[:5]} is highest; give the label that was chosen")
    return labels[scores.index(best)]


def _finite(score: Any) -> bool:
    return type(score) in (int, float) and math.isfinite(score)


def _allowed(labels: tuple[str, ...]) -> str:
    return " or ".join(labels) if len(labels) <= FEW else f"one of the {len(labels):,} labels as text"
