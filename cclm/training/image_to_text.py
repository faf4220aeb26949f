"""Trains what lets a language model see: prompts about pictures -> the loss on their answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cclm.data.batches import StreamConfig
from cclm.data.pairs import ImageCaption, Translation
from cclm.objectives.base import EncodedPair
from cclm.objectives.late_interaction import LateInteraction
from cclm.pivot.image_to_text import MODEL_TYPE, ImageToTextSettings
from cclm.pivot.language_model import LayerEncoder
from cclm.pivot.meeting import meeting
from cclm.pivot.notes import TrainingNotes
from cclm.pivot.presets import CHAT, apply_preset
from cclm.pivot.processor import PivotProcessorSettings
from cclm.training.answers import AnswerSet
from cclm.training.base import System
from cclm.training.datamodule import LoaderSettings, StreamDataModule
from cclm.training.language_model import check_fits
from cclm.training.optim import OptimizerSettings, freeze
from cclm.types import PromptBatch

ANSWERS, ALIGNMENT = "answers", "alignment"


@dataclass(frozen=True)
class PictureAlignment:
    """Pictures are drawn to where the language model has the words of their captions, which answering in one language
    does not bring about: then what it says of captions in other languages it says of pictures, too.

    `streams`: names of those in data.streams whose prompts are about one picture each. `layers`: whose states meet,
    each with a loss of its own, of which the mean counts; best where languages do (`cclm evaluate alignment`).
    `temperature`: to begin with; it is learned.
    """

    streams: list[str]
    layers: list[int]
    temperature: float = 0.07

    def check(self, streams: list[str]) -> None:
        """Errors: ValueError where something is missing or out of range, or a stream is none of `streams`."""
        if unknown := set(self.streams) - set(streams):
            raise ValueError(f"model.alignment.streams names {unknown.pop()!r}, which is not among model.streams")
        if not self.streams or not self.layers:
            raise ValueError("model.alignment needs streams and layers; name at least one of each, or set it to null")
        if self.temperature <= 0:
            raise ValueError(f"model.alignment.temperature is {self.temperature}; give a number above 0")


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
        alignment: PictureAlignment | None = None,
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008 (frozen)
        weights: dict[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        """`streams`: names of those in data.streams. `weights`: "stream/answers" or "stream/alignment" -> factor of
        that loss, else 1.
        """
        self.alignment = alignment
        if alignment:
            alignment.check(streams)
        aligned = alignment.streams if alignment else []
        named = {stream: [ANSWERS, *([ALIGNMENT] if stream in aligned else [])] for stream in streams}
        super().__init__(named, optimizer, weights, seed=seed)
        torch.manual_seed(seed)
        self.network, self.preset = network, preset
        self.model, self.processor, self.new_names = network.build(processor.image.image_size, processor.build)
        apply_preset(preset, CHAT, self.model)
        freeze(self.model, optimizer.frozen)
        self._before = self.model.notes
        self.interaction = LateInteraction()
        if alignment:
            self.model.language_model.check_layers(alignment.layers)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / alignment.temperature)))

    def setup(self, stage: str) -> None:
        """Errors: ValueError for a stream without a prompt, and where its longest would not fit."""
        streams: Mapping[str, StreamConfig] = self.trainer.datamodule.streams
        for name, stream in streams.items():
            if stream.prompt is None:
                raise ValueError(
                    f"data.streams.{name} has no prompt; give one, '<image>Describe the picture in {{language}}.'"
                )
            check_fits(name, stream, self.processor, self.model.language_model)
        about = [stream.prompt for stream in streams.values() if not isinstance(stream.pairs, Translation)]
        self.processor.template = self.processor.template or next(iter(about), None)
        self.model.notes = self._before.then(notes(self.preset, streams))

    def stream_losses(self, stream: str, batch: PromptBatch, generator: torch.Generator) -> dict[str, Tensor]:
        embeds, prompts = self.model.embeds_of(batch), batch.prompts
        losses = {ANSWERS: self.model.language_model.loss(embeds, prompts.attention_mask, prompts.labels)}
        if self.alignment and stream in self.alignment.streams:
            losses[ALIGNMENT] = self._alignment_loss(batch, embeds)
        return losses

    def _alignment_loss(self, batch: PromptBatch, embeds: Tensor) -> Tensor:
        """The mean over the layers."""
        language_model, layers = self.model.language_model, self.alignment.layers
        each, ending = self.processor.visual_states, len(self.processor.answers([""])[0])
        found = meeting(language_model, embeds, batch.prompts, layers, each, ending)
        losses = []
        for layer, views in zip(layers, found, strict=True):
            encoder = LayerEncoder(language_model, layer, self.logit_scale)
            losses.append(self.interaction(EncodedPair(encoder, batch, *views)))
        return torch.stack(losses).mean()

    def trainable(self) -> dict[str, nn.Parameter]:
        own = {"logit_scale": self.logit_scale} if self.alignment else {}
        return super().trainable() | own

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
        languages = list(stream.languages())
        translated = isinstance(pairs, ImageCaption) and pairs.texts == "parallel"
        shares = dict.fromkeys(languages, pairs.share) if translated else {}
        found = found.then(TrainingNotes((), tuple(languages), shares))
    return replace(found, presets=(preset,))
