"""Trains what has a denoiser paint by the states of a text: pictures under noise, and captions -> how far it is off."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cclm.data.pairs import ImageCaption
from cclm.data.readers import ImageReader, PixelReader
from cclm.models.processor import ImageSettings
from cclm.pivot.averaging import Average
from cclm.pivot.presets import PAINT, apply_preset
from cclm.pivot.text_to_image import MODEL_TYPE, TextToImageSettings
from cclm.training.base import System
from cclm.training.datamodule import StreamDataModule
from cclm.training.image_to_text import notes
from cclm.training.optim import OptimizerSettings, freeze
from cclm.types import PairBatch

LOSS, STEADINESS = "denoising", "steadiness"


@dataclass(frozen=True)
class PaintSettings:
    """`image_size`: pixels a side of what is painted, and of pictures in training, which are squeezed to that: neither
    cropped nor mirrored, as captions say where things are. `max_tokens` of a caption; the tokenizer is the text
    encoder's.
    """

    image_size: int
    max_tokens: int = 64

    @property
    def image(self) -> ImageSettings:
        """Pixels in [-1, 1]."""
        return ImageSettings(self.image_size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (1.0, 1.0), 0.0)


@dataclass(frozen=True)
class Steadiness:
    """Of a model that paints already, and does not learn to any more: its bridge learns to say the same of captions
    whose states are moved, by `noise` times their own deviation in `draws` directions, as it said of them when this
    training began. Names in another language lie about 1 away, and a bridge that has seen English alone takes them for
    something else.
    """

    noise: float = 1.0
    draws: int = 8

    def __post_init__(self) -> None:
        if self.noise <= 0:
            raise ValueError(f"model.steadiness.noise is {self.noise}; give more than 0, or set steadiness to null")
        if self.draws < 1:
            raise ValueError(f"model.steadiness.draws is {self.draws}; give 1 or more")


class TextToImageSystem(System):
    """Trains, of a TextToImage, what `preset` says (cclm/pivot/presets.py); the average over steps is exported."""

    keeps_frozen = False
    exports = MODEL_TYPE

    def __init__(
        self,
        processor: PaintSettings,
        network: TextToImageSettings,
        streams: list[str],
        preset: str = "paint_full",
        average: float = 0.999,
        steadiness: Steadiness | None = None,
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        """`streams`: names of those in data.streams. `average`: decay of the weights' average, 0 for the last step's.
        `steadiness`: what the bridge learns in place of painting.
        """
        self.steadiness = steadiness
        super().__init__({stream: [STEADINESS if steadiness else LOSS] for stream in streams}, optimizer, seed=seed)
        torch.manual_seed(seed)
        self.network, self.preset = network, preset
        self.processor = network.text_encoder.processor(processor.image, processor.max_tokens)
        self.model, self.new_names = network.build(self.processor)
        self.model.denoiser.to(memory_format=torch.channels_last)  # in which U-Nets are faster, on a CPU above all
        apply_preset(preset, PAINT, self.model)
        freeze(self.model, optimizer.frozen)
        if steadiness:
            if preset != "paint_bridge":
                raise ValueError(f"model.preset is {preset}, but steadiness is the bridge's; set it to paint_bridge")
            if not network.pretrained:
                raise ValueError(
                    "model.steadiness holds a bridge to what it says when training begins; name in "
                    "model.network.pretrained the folder of a model that paints"
                )
            self.before = deepcopy(self.model.bridge).requires_grad_(False)
        self.average = Average(self.model, average)
        self._before = self.model.notes

    def setup(self, stage: str) -> None:
        """Errors: ValueError for a stream with a prompt, which is for models that answer, or of other pairs."""
        streams = self.trainer.datamodule.streams
        for name, stream in streams.items():
            if stream.prompt is not None:
                raise ValueError(f"data.streams.{name} has a prompt, but pictures are painted from captions; remove it")
            if not isinstance(stream.pairs, ImageCaption):
                kind = type(stream.pairs).__name__
                raise ValueError(f"data.streams.{name}: {kind} draws no captions to paint from; give ImageCaption")
        self.model.notes = self._before.then(notes(self.preset, streams))

    def stream_losses(self, stream: str, batch: PairBatch, generator: torch.Generator) -> dict[str, Tensor]:
        if chosen := self.steadiness:
            before = self.before.eval()
            lost = self.model.unsteadiness(batch.target, before, chosen.noise, chosen.draws, generator)
            return {STEADINESS: lost}
        return {LOSS: self.model(batch, generator)}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's, once for every update; at the end of a batch it would be too late for a checkpoint of then."""
        super().optimizer_step(*args, **kwargs)
        self.average.step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["average"] = self.average.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Errors: ValueError as of `System`, and where the checkpoint has no average, or one of other weights."""
        super().on_load_checkpoint(checkpoint)
        if "average" not in checkpoint:
            raise ValueError("the checkpoint has no average of weights; resume with one of text_to_image")
        self.average.load_state_dict(checkpoint["average"])

    def export(self, folder: Path) -> None:
        """The model, with the average of its weights, and its processor."""
        with self.average.in_place():
            self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class TextToImageData(StreamDataModule):
    """Streams of pictures and captions; pictures as they are, but for their size."""

    def _image_reader(self) -> ImageReader | None:
        if self.settings.cache is not None:
            raise ValueError("data.loader.cache keeps states of an image encoder, of which there is none; remove it")
        return PixelReader(self.processor, train=False, decode_margin=self.settings.decode_margin)
