"""Zero-shot retrieval on a dataset during training: what `validate`, `test` and every N steps of `fit` run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from cclm.data.shards import check_languages, list_shards, read_records
from cclm.data.state_cache import StateCache
from cclm.evaluation.encoding import ImageViews, pixel_views
from cclm.evaluation.report import Provenance
from cclm.evaluation.retrieval import RetrievalOptions, evaluate_retrieval
from cclm.images import open_image
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.types import Record, View

# What a training log shows of a report; the rest is `cclm evaluate retrieval`'s.
LOGGED = ("R@1", "R@10")


@dataclass(frozen=True)
class RetrievalSet:
    """One dataset to retrieve from. `languages`: None for all it has; `rerank`: as in `RetrievalOptions`."""

    shards: str
    languages: list[str] | None = None
    rerank: int = 0
    rerank_similarity: float = 0.0

    def check(self, name: str) -> None:
        """Before the training. Errors: ValueError naming the set, where shards or languages are missing."""
        try:
            list_shards(self.shards)
            check_languages(self.shards, self.languages)
        except (ValueError, OSError) as error:
            raise ValueError(f"validation set {name}: {error}") from None


@dataclass(frozen=True)
class RetrievalTask:
    """A set, and the states of its images where the backbone is frozen and they stand in a cache."""

    name: str
    settings: RetrievalSet
    cache: StateCache | None = None

    def evaluate(self, model: CCLMModel, processor: CCLMProcessor) -> dict[str, float]:
        """Metrics by "<set>/<language>/<direction>/<metric>"; the language "others" is the mean without English."""
        chosen = self.settings.languages
        options = RetrievalOptions(
            tuple(chosen) if chosen else None,
            rerank=self.settings.rerank,
            rerank_similarity=self.settings.rerank_similarity,
            draws=0,
        )
        untold = Provenance("in training", "", self.settings.shards, "", "")
        records = read_records(self.settings.shards)
        report = evaluate_retrieval(model, processor, records, self._views(model, processor), untold, options)
        rows = dict(report.languages)
        if len(rows) > 1 and "en" in rows:
            rows["others"] = {way: report.mean(way, without=("en",)) for way in report.directions()}
        return {
            f"{self.name}/{language}/{way}/{metric}": float(scores[metric])
            for language, ways in rows.items()
            for way, scores in ways.items()
            for metric in LOGGED
        }

    def to(self, device: torch.device, **options: bool) -> Self:
        """A task is no batch of tensors: Lightning finds nothing to move."""
        return self

    def _views(self, model: CCLMModel, processor: CCLMProcessor) -> ImageViews:
        if self.cache is None:
            return pixel_views(model, processor, lambda data: open_image(data, processor.image_size))
        cache = self.cache

        def views(records: tuple[Record, ...]) -> View:
            states = np.stack([cache.get(record.key) for record in records]).astype(np.float32)  # (B, L, W)
            return model.encode_image_states(torch.from_numpy(states).to(model.device))

        return views
