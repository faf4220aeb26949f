"""A denoiser that paints what a frozen reader of many languages has read: text states -> bridge -> cross-attention.

Shapes: B pictures with a text each, L tokens, W width of the text encoder's states, N states that the bridge makes of a
text, D their width, C channels of h x w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cclm.models.processor import CCLMProcessor
from cclm.pivot.bridges import Bridge, BridgeSettings, SequenceStates
from cclm.pivot.denoisers import Denoiser, DenoiserSettings
from cclm.pivot.diffusers_parts import has_part, part_config
from cclm.pivot.folders import held, named_state, read_config, read_own, reference, resolved, take, write
from cclm.pivot.noise import Noise, NoiseSettings
from cclm.pivot.notes import TrainingNotes
from cclm.pivot.sampling import SamplingOptions, TextStates, sample, sampler
from cclm.pivot.spaces import PixelSpace, Space, SpaceSettings
from cclm.pivot.text_encoders import TextEncoder, TextEncoderSettings
from cclm.types import ImageInput, PairBatch, TextInput

MODEL_TYPE = "cclm_text_to_image"


@dataclass(frozen=True)
class TextToImageSettings:
    """What the model is made of. Where the denoiser is a pipeline's, `space` (None) and the scheduler are that one's
    too. `caption_dropout`: share of pictures whose caption is hidden in training, for guidance away from none;
    `guidance`: how far, where painting is not told otherwise.

    `pretrained`: a folder of such a model to start from, of the same parts; whatever trained there is taken.
    """

    text_encoder: TextEncoderSettings
    denoiser: DenoiserSettings
    bridge: BridgeSettings = BridgeSettings()
    space: SpaceSettings | None = None
    noise: NoiseSettings = NoiseSettings()
    caption_dropout: float = 0.1
    guidance: float = 4.0
    pretrained: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout is {self.caption_dropout}; it is a share, from 0 to below 1")
        SamplingOptions(guidance=self.guidance)

    def build(self, processor: CCLMProcessor) -> Built:
        """For square pictures of the processor's size. Errors: ValueError for parts that are not there or do not fit
        one another.
        """
        pipeline = self.denoiser.pretrained
        space = (self.space or SpaceSettings(vae=pipeline)).build()
        parts = Parts(
            self.text_encoder.build(processor),
            space,
            self.denoiser.build(space, processor.image_size),
            self.noise.build(_scheduler_of(pipeline, self.noise), isinstance(space, PixelSpace)),
        )
        bridge = self.bridge.build(SequenceStates(parts.text_encoder.width), parts.denoiser.width)
        model = TextToImage(self, parts, bridge, processor)
        if self.pretrained:
            model.start_from(self.pretrained)
        filled = {name for name in named_state(model) if not name.startswith(model.nowhere_else)}
        return Built(model, {name for name, _ in model.named_parameters()} - filled - model.taken)


def _scheduler_of(pipeline: str | None, noise: NoiseSettings) -> dict[str, Any] | None:
    """What a pipeline tells of the noise that its denoiser has learned to undo.

    Errors: ValueError where it tells nothing and the settings do not either: any other noise would be learned anew.
    """
    if pipeline and has_part(pipeline, "scheduler"):
        return part_config(pipeline, "scheduler")
    if pipeline and not noise.tells_process:
        raise ValueError(
            f"no scheduler in {pipeline}, which tells the noise that its denoiser was trained with; add the pipeline's "
            "folder `scheduler`, or give noise.scheduler with prediction_type and beta_schedule"
        )
    return None


class Parts(NamedTuple):
    """What pictures are painted with, but for the bridge."""

    text_encoder: TextEncoder
    space: Space
    denoiser: Denoiser
    noise: Noise


class Built(NamedTuple):
    """`new_names`: of the model's parameters that no weights filled."""

    model: TextToImage
    new_names: set[str]


class TextToImage(nn.Module):
    """Texts in, pictures out. `processor` reads texts, and says how large pictures are."""

    def __init__(self, settings: TextToImageSettings, parts: Parts, bridge: Bridge, processor: CCLMProcessor) -> None:
        super().__init__()
        self.settings, self.processor, self.noise = settings, processor, parts.noise
        self.text_encoder, self.bridge = parts.text_encoder, bridge
        self.denoiser, self.space = parts.denoiser, parts.space
        self.side = parts.space.side(processor.image_size)
        self.notes = TrainingNotes()
        self.taken: set[str] = set()  # names of what a folder that was started from brought
        self.fingerprints = {  # of what lies elsewhere, before anything here has trained
            "text_encoder": parts.text_encoder.fingerprint,
            "denoiser": parts.denoiser.fingerprint() if settings.denoiser.pretrained else "",
            "autoencoder": parts.space.fingerprint(),
        }

    @property
    def nowhere_else(self) -> tuple[str, ...]:
        """Beginnings of the names of what no other folder holds."""
        return ("bridge.",) if self.settings.denoiser.pretrained else ("bridge.", "denoiser.")

    @property
    def device(self) -> torch.device:
        return next(self.bridge.parameters()).device

    # -- training ----------------------------------------------------------------------------------------------------

    def forward(self, batch: PairBatch, generator: torch.Generator) -> Tensor:
        """How far the denoiser is from what it should say of pictures (context, pixels in [-1, 1]) under noise, in the
        light of their texts (target): the weighted mean square. All chance but dropout comes from `generator`.
        """
        assert isinstance(batch.context, ImageInput), "a stream of pictures and captions"
        clean = self.space.encode(batch.context.pixel_values, generator)  # (B, C, h, w)
        noised = self.noise.draw(clean, generator)
        texts = self.read(self._with_some_hidden(batch.target, generator))
        told = self.denoiser(noised.cells, noised.timesteps, texts.states, texts.mask)
        each = F.mse_loss(told.float(), noised.target.float(), reduction="none").mean((1, 2, 3))  # (B,)
        return (noised.weight * each).mean()

    def unsteadiness(
        self, text: TextInput, before: Bridge, noise: float, draws: int, generator: torch.Generator
    ) -> Tensor:
        """How far what the bridge says of texts (B, L), moved a little, is from what another said of them as they are:
        the mean square, in shares of the latter's own.

        All states of a text are moved the same way, as they are in another language: by `noise` times the deviation of
        their mean's values, in `draws` random directions.
        """
        mask = text.attention_mask.bool()
        states = self.text_encoder(text.input_ids, mask)  # (B, L, W)
        with torch.no_grad():
            said, seen = before(states, mask), before.seen(mask).unsqueeze(-1)  # (B, N, D), (B, N, 1)
            mean = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)  # (B, W)
            ways = torch.randn(draws, *mean.shape, generator=generator, device=generator.device).to(mean)
            moved = states + (noise * mean.std(1, keepdim=True) * ways).unsqueeze(2)  # (draws, B, L, W)
        found = self.bridge(moved.flatten(0, 1), mask.repeat(draws, 1)).unflatten(0, (draws, -1))  # (draws, B, N, D)
        return ((found - said) * seen).square().mean() / (said * seen).square().mean()

    def _with_some_hidden(self, text: TextInput, generator: torch.Generator) -> TextInput:
        """A share of the captions, each by itself, gives way to the empty one."""
        chance = torch.rand(len(text), generator=generator, device=generator.device).to(text.input_ids.device)
        hidden = (chance < self.settings.caption_dropout).unsqueeze(1)  # (B, 1)
        empty = self._empty().to(text.input_ids.device)
        length = max(text.input_ids.shape[1], empty.input_ids.shape[1])
        ids, other = (_widened(each.input_ids, length, self.processor.tokenizer.pad_token_id) for each in (text, empty))
        mask, others = (_widened(each.attention_mask, length, False) for each in (text, empty))
        return TextInput(torch.where(hidden, other, ids), torch.where(hidden, others, mask))

    def _empty(self) -> TextInput:
        """The empty caption. Tokenizers that put nothing around a text leave nothing of it: there it is one token."""
        return self._padded(self.processor.tokens([""]))

    def _padded(self, rows: list[list[int]]) -> TextInput:
        tokenizer = self.processor.tokenizer
        alone = next(
            i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None
        )
        return self.processor.padded([row or [alone] for row in rows])

    # -- painting ----------------------------------------------------------------------------------------------------

    def read(self, text: TextInput) -> TextStates:
        """What the denoiser sees of texts (B, L): (B, N, D)."""
        mask = text.attention_mask.bool()
        return TextStates(self.bridge(self.text_encoder(text.input_ids, mask), mask), self.bridge.seen(mask))

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> TextStates:
        """What the denoiser sees of texts of any language. Errors: ValueError for one that is longer than it reads, and
        for NaN.
        """
        rows = self.processor.tokens(list(texts), max_tokens=2**20)
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.processor.max_tokens:
                raise ValueError(
                    f"the prompt {text[:40]!r} .. has {len(row)} tokens, the model reads {self.processor.max_tokens}; "
                    "shorten it"
                )
        found = self.read(self._padded(rows).to(self.device))
        if not found.states.isfinite().all():
            raise ValueError(
                "the bridge gave NaN or infinity: its weights or the text encoder's are damaged; export or train them "
                "again"
            )
        return found

    @torch.no_grad()
    def generate(self, texts: Sequence[str], options: SamplingOptions, generator: torch.Generator) -> list[Image.Image]:
        """A picture for each text, of any language. The n-th picture's noise is the n-th that `generator` draws, so
        that equal seeds give equal noise whatever the language; texts without number may follow.

        Errors: ValueError for prompts that are too long and schedulers that cannot sample this model.
        """
        return [picture for cells in self.paint(texts, options, generator) for picture in _pictures(cells)]

    @torch.no_grad()
    def paint(self, texts: Sequence[str], options: SamplingOptions, generator: torch.Generator) -> list[Tensor]:
        """The same as pixels (P, 3, H, W) about in [-1, 1], batch by batch."""
        if options.guidance is None:
            options = replace(options, guidance=self.settings.guidance)
        scheduler, negative = sampler(self.noise, options.scheduler), self.states([options.negative])
        shape = (1, self.space.channels, self.side, self.side)
        found = []
        for first in range(0, len(texts), options.batch):
            some = texts[first : first + options.batch]
            start = torch.cat([torch.randn(shape, generator=generator, device=generator.device) for _ in some])
            without = negative.repeated(len(some))
            start = start.to(self.device)
            cells = sample(self.denoiser, scheduler, start, self.states(some), without, options, generator)
            found.append(self.space.decode(cells))
        return found

    # -- folders -----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """What trained, here or where this training started, and where the rest lies; the processor goes beside it."""
        content = {
            **asdict(_moved(self.settings, lambda name, part: reference(name, folder))),
            "fingerprints": self.fingerprints,
            **asdict(self.notes),
        }
        del content["pretrained"]  # all that it brought is here
        rest = {name for name in named_state(self) if name.startswith(self.nowhere_else)}
        write(folder, MODEL_TYPE, content, self, held(self) | self.taken | rest)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: torch.device | str = "cpu", text_encoder: str | None = None
    ) -> TextToImage:
        """The model of a folder. `text_encoder`: where this lies now, if it has been moved.

        Errors: ValueError where the folder is damaged, or a part of the model is no longer there or another.
        """

        def way(name: str, part: str) -> str:
            return text_encoder if text_encoder and part == "text encoder" else resolved(name, folder, part)

        settings = read_config(folder, MODEL_TYPE, lambda stored: _moved(_settings(stored), way))
        model = settings.build(read_own(folder, CCLMProcessor.from_pretrained)).model
        model.start_from(folder)
        return model.to(device).eval()

    def start_from(self, folder: str | Path) -> None:
        """Take what trained in a folder, and its notes.

        Errors: ValueError where it is damaged, was made for another text encoder, denoiser or autoencoder, or does not
        fit.
        """
        self.taken, self.notes = take(folder, MODEL_TYPE, self, self.fingerprints)


def _settings(stored: Mapping[str, Any]) -> TextToImageSettings:
    """What a folder's config.json says."""
    return TextToImageSettings(
        TextEncoderSettings(**stored["text_encoder"]),
        DenoiserSettings(**stored["denoiser"]),
        BridgeSettings(**stored["bridge"]),
        SpaceSettings(**stored["space"]) if stored["space"] else None,
        NoiseSettings(**stored["noise"]),
        stored["caption_dropout"],
        stored["guidance"],
    )


def _moved(settings: TextToImageSettings, way: Callable[[str, str], str]) -> TextToImageSettings:
    """With other names of the folders that parts lie in: `way` is given a name and what lies there."""
    text_encoder, denoiser, space = settings.text_encoder, settings.denoiser, settings.space
    return replace(
        settings,
        text_encoder=replace(text_encoder, pretrained=way(text_encoder.pretrained, "text encoder")),
        denoiser=replace(denoiser, pretrained=denoiser.pretrained and way(denoiser.pretrained, "denoiser")),
        space=space and replace(space, vae=space.vae and way(space.vae, "autoencoder")),
    )


def _widened(rows: Tensor, length: int, value: int | bool) -> Tensor:
    return F.pad(rows, (0, length - rows.shape[1]), value=value)


def _pictures(pixels: Tensor) -> list[Image.Image]:
    """(P, 3, H, W) in [-1, 1] -> P pictures, as diffusers makes them."""
    bytes_ = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(each) for each in bytes_]
