"""Measures during training how well a model that sees knows the answers of a dev set: the mean loss of a token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cclm.data.shards import check_languages, list_shards, read_records
from cclm.data.state_cache import StateCache
from cclm.evaluation.encoding import texts_of
from cclm.images import open_image
from cclm.pivot.image_to_text import ImageToText
from cclm.pivot.processor import PivotProcessor
from cclm.pivot.prompts import Template
from cclm.training.validation import Task
from cclm.types import ImageInput, Record, StatesInput

METRIC = "answers/loss"


@dataclass(frozen=True)
class AnswerSet:
    """Pictures, and in every language the first caption of each, or the parallel sentence where there is none.

    `prompt`: the template they are asked with. `languages`: None for all there are. `limit`: so many pictures, None for
    all.
    """

    shards: str
    prompt: str
    languages: list[str] | None = None
    batch_size: int = 64
    limit: int | None = None

    def check(self, name: str) -> None:
        """Before the training. Errors: ValueError naming the set, where something is missing."""
        try:
            list_shards(self.shards)
            check_languages(self.shards, self.languages)
            Template(self.prompt).check_pictures(1)
        except (ValueError, OSError) as error:
            raise ValueError(f"validation set {name}: {error}") from None
        for field, value in (("batch_size", self.batch_size), ("limit", self.limit)):
            if value is not None and value < 1:
                raise ValueError(f"validation set {name}: {field}={value}; give 1 or more")

    def task(self, name: str, cache: StateCache | None) -> AnswerTask:
        return AnswerTask(name, self, cache)


@dataclass(frozen=True)
class AnswerTask(Task):
    """The loss on a set's answers."""

    settings: AnswerSet

    def evaluate(self, model: ImageToText, processor: PivotProcessor) -> dict[str, float]:
        lost: dict[str, float] = {}
        spoken: dict[str, int] = {}
        for records in self._batches():
            images = self._images(records, processor)
            for language in sorted({language for record in records for language in texts_of(record)}):
                if self.languages is not None and language not in self.languages:
                    continue
                told = [row for row, record in enumerate(records) if language in texts_of(record)]
                answers = processor.answers([texts_of(records[row])[language][0] for row in told])
                prompt = processor.prompt(self.settings.prompt, language, pictures=1)
                prompts = processor.prompts([prompt] * len(told), answers)
                batch = images.select(torch.tensor(told)), prompts
                device = next(model.bridge.parameters()).device
                likelihood = model.log_likelihood(*(part.to(device) for part in batch))  # (B,)
                lost[language] = lost.get(language, 0.0) - float(likelihood.double().sum())
                spoken[language] = spoken.get(language, 0) + sum(map(len, answers))
        losses = {language: lost[language] / spoken[language] for language in lost}
        others = [loss for language, loss in losses.items() if language != "en"]
        if others and len(losses) > len(others):
            losses["others"] = sum(others) / len(others)
        return {f"{self.name}/{language}/{METRIC}": loss for language, loss in losses.items()}

    def _batches(self) -> Iterator[list[Record]]:
        batch: list[Record] = []
        for number, record in enumerate(read_records(self.settings.shards)):
            if number == self.settings.limit:
                break
            batch.append(record)
            if len(batch) == self.settings.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _images(self, records: list[Record], processor: PivotProcessor) -> ImageInput | StatesInput:
        if self.cache is not None:
            states = np.stack([self.cache.get(record.key) for record in records])  # (B, L, W)
            return StatesInput(torch.from_numpy(states))
        size = processor.image_size
        return ImageInput(processor.images([open_image(record.image or b"", size) for record in records]))
