"""What a model is measured by during training: what `validate`, `test` and every N steps of `fit` run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import nn

from cclm.data.readers import Processor
from cclm.data.shards import check_languages, list_shards, read_records
from cclm.data.state_cache import StateCache
from cclm.evaluation.answering import RankOptions
from cclm.evaluation.encoding import ImageViews, pixel_views
from cclm.evaluation.report import Provenance, Report
from cclm.evaluation.retrieval import RetrievalOptions, evaluate_retrieval
from cclm.evaluation.statements import StatementOptions, evaluate_statements
from cclm.images import open_image
from cclm.models.labels import read_labels
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.types import Record, View

# What a training log shows of a report; the rest is `cclm evaluate`'s.
LOGGED = ("R@1", "R@10", "mean_recall", "accuracy", "consistency")


@dataclass(frozen=True)
class RetrievalSet:
    """One dataset to retrieve from. `languages`: None for all it has; `rerank` and its kin as in `RetrievalOptions`."""

    shards: str
    languages: list[str] | None = None
    rerank: int = 0
    rerank_similarity: float = 0.0
    rerank_score: str = "log_odds"

    def check(self, name: str) -> None:
        """Before the training. Errors: ValueError naming the set, where something is missing or out of range."""
        _check_shards(name, self.shards, self.languages)
        try:
            self.options()
        except ValueError as error:
            raise ValueError(f"validation set {name}: {error}") from None

    def options(self) -> RetrievalOptions:
        return RetrievalOptions(
            tuple(self.languages) if self.languages else None,
            rerank=self.rerank,
            rerank_similarity=self.rerank_similarity,
            rerank_score=self.rerank_score,
            draws=0,
        )

    def task(self, name: str, cache: StateCache | None) -> RetrievalTask:
        return RetrievalTask(name, self, cache)


@dataclass(frozen=True)
class StatementSet:
    """One dataset of statements or questions. `head`: "classify" or "answer". `labels`: a file, None for the model's.

    `candidates`, `first_token`: as in `RankOptions`, for answers.
    """

    shards: str
    head: str
    languages: list[str] | None = None
    labels: str | None = None
    candidates: int = 128
    first_token: str = "once"

    def check(self, name: str) -> None:
        """Before the training. Errors: ValueError naming the set, where shards, languages or labels are missing."""
        _check_shards(name, self.shards, self.languages)
        try:
            StatementOptions(self.head, tuple(read_labels(self.labels)) if self.labels else ("",), rank=self.rank())
        except ValueError as error:
            raise ValueError(f"validation set {name}: {error}") from None

    def rank(self) -> RankOptions:
        return RankOptions(self.candidates, self.first_token)

    def task(self, name: str, cache: StateCache | None) -> StatementTask:
        return StatementTask(name, self, cache)


class Measured(Protocol):
    """A set that a model is measured by during its training."""

    shards: str
    languages: list[str] | None

    def check(self, name: str) -> None: ...

    def task(self, name: str, cache: StateCache | None) -> Task: ...


@dataclass(frozen=True)
class Task(ABC):
    """A set, and the states of its images where the backbone is frozen and they stand in a cache."""

    name: str
    settings: Measured
    cache: StateCache | None = None

    @abstractmethod
    def evaluate(self, model: nn.Module, processor: Processor) -> dict[str, float]:
        """Metrics by "<set>/<language>/<direction>/<metric>"; the language "others" is the mean without English."""

    @property
    def languages(self) -> tuple[str, ...] | None:
        return tuple(self.settings.languages) if self.settings.languages else None

    def to(self, device: torch.device, **options: bool) -> Self:
        """A task is no batch of tensors: Lightning finds nothing to move."""
        return self


@dataclass(frozen=True)
class ReportTask(Task):
    """What a cross-view model's report says."""

    def evaluate(self, model: CCLMModel, processor: CCLMProcessor) -> dict[str, float]:
        report = self._report(model, processor)
        rows = dict(report.languages)
        if len(rows) > 1 and "en" in rows:
            rows["others"] = {way: report.mean(way, without=("en",)) for way in report.directions()}
        return {
            f"{self.name}/{language}/{way}/{metric}": float(scores[metric])
            for language, ways in rows.items()
            for way, scores in ways.items()
            for metric in LOGGED
            if metric in scores
        }

    @abstractmethod
    def _report(self, model: CCLMModel, processor: CCLMProcessor) -> Report: ...

    @property
    def untold(self) -> Provenance:
        return Provenance("in training", "", self.settings.shards, "", "")

    def _views(self, model: CCLMModel, processor: CCLMProcessor) -> ImageViews:
        if self.cache is None:
            return pixel_views(model, processor, lambda data: open_image(data, processor.image_size))
        cache = self.cache

        def views(records: tuple[Record, ...]) -> View:
            states = np.stack([cache.get(record.key) for record in records]).astype(np.float32)  # (B, L, W)
            return model.encode_image_states(torch.from_numpy(states).to(model.device))

        return views


@dataclass(frozen=True)
class RetrievalTask(ReportTask):
    """Zero-shot retrieval."""

    settings: RetrievalSet

    def _report(self, model: CCLMModel, processor: CCLMProcessor) -> Report:
        records, views = read_records(self.settings.shards), self._views(model, processor)
        return evaluate_retrieval(model, processor, records, views, self.untold, self.settings.options())


@dataclass(frozen=True)
class StatementTask(ReportTask):
    """Accuracy on statements."""

    settings: StatementSet

    def _report(self, model: CCLMModel, processor: CCLMProcessor) -> Report:
        chosen = self.settings
        labels = read_labels(chosen.labels) if chosen.labels else model.config.labels
        options = StatementOptions(chosen.head, tuple(labels or ()), self.languages, rank=chosen.rank(), draws=0)
        records = read_records(chosen.shards)
        return evaluate_statements(model, processor, records, self._views(model, processor), self.untold, options)


def _check_shards(name: str, shards: str, languages: list[str] | None) -> None:
    try:
        list_shards(shards)
        check_languages(shards, languages)
    except (ValueError, OSError) as error:
        raise ValueError(f"validation set {name}: {error}") from None
