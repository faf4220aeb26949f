"""Trains what lets a language model see: prompts about pictures -> the loss on their answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cclm.data.batches import StreamConfig
from cclm.data.pairs import ImageCaption, Translation
from cclm.data.shards import MANIFEST, Manifest, list_shards
from cclm.pivot.image_to_text import MODEL_TYPE, ImageToTextSettings
from cclm.pivot.notes import TrainingNotes
from cclm.pivot.presets import apply_preset
from cclm.pivot.processor import PivotProcessorSettings
from cclm.training.answers import AnswerSet
from cclm.training.base import System
from cclm.training.datamodule import LoaderSettings, StreamDataModule
from cclm.training.optim import OptimizerSettings, freeze
from cclm.types import PromptBatch

LOSS = "answers"


class ImageToTextSystem(System):
    """Trains, of an ImageToText, what `preset` says (cclm/pivot/presets.py)."""

    keeps_frozen = False
    exports = MODEL_TYPE

    def __init__(
        self,
        processor: PivotProcessorSettings,
        network: ImageToTextSettings,
        streams: list[str],
        preset: str = "chat_s1",
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008 (frozen)
        weights: dict[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        """`streams`: names of those in data.streams. `weights`: "stream/answers" -> factor of that loss, else 1."""
        super().__init__({stream: [LOSS] for stream in streams}, optimizer, weights, seed=seed)
        torch.manual_seed(seed)
        self.network, self.preset = network, preset
        self.model, self.processor, self.new_names = network.build(processor.image.image_size, processor.build)
        apply_preset(preset, self.model)
        freeze(self.model, optimizer.frozen)
        self._before = self.model.notes

    def setup(self, stage: str) -> None:
        """Errors: ValueError for a stream without a prompt."""
        streams: Mapping[str, StreamConfig] = self.trainer.datamodule.streams
        for name, stream in streams.items():
            if stream.prompt is None:
                raise ValueError(
                    f"data.streams.{name} has no prompt; give one, '<image>Describe the picture in {{language}}.'"
                )
        about = [stream.prompt for stream in streams.values() if not isinstance(stream.pairs, Translation)]
        self.processor.template = self.processor.template or next(iter(about), None)
        self.model.notes = self._before.then(notes(self.preset, streams))

    def stream_losses(self, stream: str, batch: PromptBatch, generator: torch.Generator) -> dict[str, Tensor]:
        return {LOSS: self.model(batch)}

    def export(self, folder: Path) -> None:
        """The model and its processor."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class ImageToTextData(StreamDataModule):
    """Streams of prompts, and sets by name whose answers' loss is measured."""

    def __init__(
        self,
        streams: dict[str, StreamConfig],
        loader: LoaderSettings = LoaderSettings(),  # noqa: B008 (frozen)
        validation: dict[str, AnswerSet] | None = None,
        test: dict[str, AnswerSet] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(streams, loader, seed)
        self.validation, self.testing = {**(validation or {})}, {**(test or {})}
        for name, chosen in (self.validation | self.testing).items():
            chosen.check(name)


def notes(preset: str, streams: Mapping[str, StreamConfig]) -> TrainingNotes:
    """What a training on these streams meets: the languages of texts beside pictures, and which are translations."""
    found = TrainingNotes()
    for stream in streams.values():
        pairs = stream.pairs
        if isinstance(pairs, Translation):  # texts alone
            continue
        languages = sorted(pairs.languages or _languages(stream))
        translated = isinstance(pairs, ImageCaption) and pairs.texts == "parallel"
        shares = dict.fromkeys(languages, pairs.share) if translated else {}
        found = found.then(TrainingNotes((), tuple(languages), shares))
    return replace(found, presets=(preset,))


def _languages(stream: StreamConfig) -> set[str]:
    """All that the manifests of its shards tell of."""
    source = stream.shards if isinstance(stream.shards, str) else list(stream.shards)
    folders = {Path(path).parent for path in list_shards(source, stream.allow_pipe)}
    return {code for folder in folders if (folder / MANIFEST).is_file() for code in Manifest.load(folder).languages}
