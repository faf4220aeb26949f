"""Labels of a task as answers to a prompt, for models that say how likely an answer is."""

from __future__ import annotations

from collections.abc import Sequence

from cclm.evaluation.embedder import Answerer, Asked, Images, Labeller, System
from cclm.evaluation.items import Questions, Wording


class Likeliest:
    """A `Labeller`: the label whose answer is the likeliest after the prompt."""

    def __init__(self, answerer: Answerer, wording: Wording) -> None:
        self.answerer, self.wording = answerer, wording

    def check_labels(self, labels: tuple[str, ...], images: int) -> None:
        self.answerer.check_prompt(self.wording.prompt, images)

    def label(self, images: Sequence[Images], asked: Sequence[Asked], labels: tuple[str, ...]) -> list[str]:
        answers = [self.wording.answers.get(label, label) for label in labels]
        rows = self.answerer.likeliest(images, asked, self.wording.prompt, answers)
        return [labels[row] for row in rows]


def labeller(system: System, test: Questions) -> Labeller | None:
    """What labels the test's questions; None for a model that cannot. Errors: ValueError for a test without wording."""
    if system.labels is not None or system.answers is None:
        return system.labels
    if test.wording is None:
        raise ValueError(f"task {test.task} declares no prompt for language models; give --prompt '<image>{{text}} ..'")
    return Likeliest(system.answers, test.wording)
