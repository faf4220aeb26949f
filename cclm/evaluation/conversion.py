"""The same answers under a task's other protocols, where they suffice for these, too: XVNLI's 1,164 and 1,150 rows."""

from __future__ import annotations

from collections.abc import Mapping

from cclm.evaluation.items import Questions
from cclm.evaluation.result import Result
from cclm.evaluation.scoring import ScoreOptions, score_answers
from cclm.evaluation.task import ClassificationTask, DataFolder


def other_protocols(
    task: ClassificationTask, data: DataFolder, test: Questions, answers: Mapping[str, str], options: ScoreOptions
) -> list[Result]:
    """Exact results under protocols that match answers as the test's does, but ask other questions.

    A question without a label needs no answer: it is wrong whatever is said. Protocols of the same questions, of ones
    without an answer, or whose files are not there are left out.
    """
    found: list[Result] = []
    seen = {test.fingerprint()}
    for protocol in task.protocols:
        if protocol.match != test.protocol.match or protocol.name == test.protocol.name:
            continue
        if any(data.find(name) is None for name in task.source(protocol.split, test.language).files(test.language)):
            continue
        other = task.under(protocol, data, test.language, protocol.split)
        needed = {question.id for question in other.questions if question.label is not None}
        if other.fingerprint() in seen or not needed <= set(answers):
            continue
        seen.add(other.fingerprint())
        known = other.spared | set(other.ids)
        given = dict.fromkeys(other.ids, test.labels[0]) | {name: answers[name] for name in answers if name in known}
        found.append(score_answers(other, given, options).result)
    return found
