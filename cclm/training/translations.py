"""Measures during training how well a language model translates: the mean loss of a token of the right translation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from cclm.data.shards import check_languages, list_shards, read_records
from cclm.data.state_cache import StateCache
from cclm.pivot.language_model import LanguageModel
from cclm.pivot.processor import PivotProcessor
from cclm.pivot.prompts import Template
from cclm.training.validation import Task
from cclm.types import Record

METRIC = "answers/loss"  # of a token, in the language of the answer


@dataclass(frozen=True)
class TranslationSet:
    """Parallel sentences: from `pivot` into every other language, and from these into it.

    `prompt`: the template they are asked with. `languages`: None for all there are. `limit`: so many records that have
    the pivot's language, None for all.
    """

    shards: str
    prompt: str
    pivot: str = "en"
    languages: list[str] | None = None
    batch_size: int = 64
    limit: int | None = 200

    def check(self, name: str) -> None:
        """Before the training. Errors: ValueError naming the set, where something is missing."""
        try:
            list_shards(self.shards)
            check_languages(self.shards, [self.pivot, *(self.languages or [])])
            Template(self.prompt).check_pictures(0)
        except (ValueError, OSError) as error:
            raise ValueError(f"validation set {name}: {error}") from None
        for field, value in (("batch_size", self.batch_size), ("limit", self.limit)):
            if value is not None and value < 1:
                raise ValueError(f"validation set {name}: {field}={value}; give 1 or more")

    def task(self, name: str, cache: StateCache | None) -> TranslationTask:
        return TranslationTask(name, self)


@dataclass(frozen=True)
class TranslationTask(Task):
    """The loss on a set's translations."""

    settings: TranslationSet

    def evaluate(self, model: LanguageModel, processor: PivotProcessor) -> dict[str, float]:
        pivot, losses = self.settings.pivot, {}
        records = self._records()
        spoken = {code for record in records for code in record.parallel} - {pivot}
        others = sorted(spoken if self.languages is None else spoken & set(self.languages))
        back = {"lost": 0.0, "tokens": 0}
        for code in others:
            told = [record.parallel for record in records if code in record.parallel]
            there = [(each[pivot], each[code]) for each in told]
            lost, tokens = self._lost(model, processor, code, there)
            losses[code] = lost / tokens
            lost, tokens = self._lost(model, processor, pivot, [(text, answer) for answer, text in there])
            back["lost"] += lost
            back["tokens"] += tokens
        if losses:
            losses |= {"others": sum(losses.values()) / len(losses), pivot: back["lost"] / back["tokens"]}
        return {f"{self.name}/{code}/{METRIC}": loss for code, loss in losses.items()}

    def _records(self) -> list[Record]:
        found = (record for record in read_records(self.settings.shards) if self.settings.pivot in record.parallel)
        return list(islice(found, self.settings.limit))

    def _lost(
        self, model: LanguageModel, processor: PivotProcessor, language: str, pairs: list[tuple[str, str]]
    ) -> tuple[float, int]:
        """Summed loss and number of the answers' tokens. `pairs`: a text, and what it is in the language."""
        device = next(model.parameters()).device
        lost, tokens, size = 0.0, 0, self.settings.batch_size
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            asked = [processor.prompt(self.settings.prompt, language, text) for text, _ in part]
            answers = processor.answers([answer for _, answer in part])
            prompts = processor.prompts(asked, answers).to(device)
            embeds = model.embed(prompts.input_ids)
            likelihood = model.log_likelihood(embeds, prompts.attention_mask, prompts.labels)  # (B,)
            lost -= float(likelihood.double().sum())
            tokens += sum(map(len, answers))
        return lost, tokens
