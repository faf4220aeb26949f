"""The same predictions under a task's other protocols: what these make of them, and which of them they are of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cclm.evaluation.items import Captions, Questions, Sentences, TestSet
from cclm.evaluation.result import Result
from cclm.evaluation.scoring import ScoreOptions, score_answers
from cclm.evaluation.task import ClassificationTask, DataFolder, Task
from cclm.evaluation.ways import ways


def other_protocols(
    task: ClassificationTask, data: DataFolder, test: Questions, answers: Mapping[str, str], options: ScoreOptions
) -> list[Result]:
    """Exact results under protocols that match answers as the test's does, but ask other questions, whole.

    XVNLI's 1,164 and 1,150 rows: a question without a label needs no answer, as it is wrong whatever is said. Protocols
    of the same questions, or of ones without an answer, are left out.
    """
    found: list[Result] = []
    for protocol, other in _others(task, data, test):
        assert isinstance(other, Questions)
        needed = {question.id for question in other.questions if question.label is not None}
        if protocol.match != test.protocol.match or not needed <= set(answers):
            continue
        if other.fingerprint() in {result.ids for result in found}:
            continue
        known = other.spared | set(other.ids)
        given = dict.fromkeys(other.ids, test.labels[0]) | {name: answers[name] for name in answers if name in known}
        found.append(score_answers(other, given, options).result)
    return found


def fitting_protocols(task: Task, data: DataFolder, test: TestSet, predictions: Mapping[str, Any]) -> list[str]:
    """Names of other protocols whose ids are exactly those of the predictions: by id, or by direction and id."""
    return [protocol.name for protocol, other in _others(task, data, test) if _is_of(predictions, other)]


def _others(task: Task, data: DataFolder, test: TestSet) -> Iterator[tuple[Any, TestSet]]:
    """Protocols of other items than the test's, where their files are there and whole."""
    for protocol in task.protocols:
        try:
            other = task.test_set(data, test.language, protocol)
        except ValueError:  # files are missing, or other items than the protocol has
            continue
        if other.fingerprint() != test.fingerprint():
            yield protocol, other


def _is_of(predictions: Mapping[str, Collection[str]], test: TestSet) -> bool:
    if isinstance(test, Captions | Sentences):
        asking = {way.name: set(way.queries) for way in ways(test)}
        return all(set(predictions[name]) == asking[name] for name in predictions)
    spared = test.spared if isinstance(test, Questions) else frozenset()
    return set(test.ids) <= set(predictions) <= spared.union(test.ids)
