"""A language model that sees: image encoder -> bridge -> visual states among the embeddings of a prompt.

Shapes: B prompts, L tokens, I pictures of all prompts in reading order, N visual states of a picture, D width of the
language model, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from cclm.models.vision import ImageEncoder
from cclm.pivot.bridges import Bridge, BridgeSettings
from cclm.pivot.folders import held, named_state, read_config, read_own, reference, resolved, take, write
from cclm.pivot.generation import GenerationOptions
from cclm.pivot.image_encoder import ImageEncoderSettings, fingerprint, states_of
from cclm.pivot.label_likelihood import label_log_likelihoods
from cclm.pivot.language_model import LanguageModel, LanguageModelSettings
from cclm.pivot.lora import LoraSettings
from cclm.pivot.notes import TrainingNotes
from cclm.pivot.processor import PivotProcessor
from cclm.types import VISUAL, ImageInput, PromptBatch, PromptInput, StatesInput, VisualPromptBatch

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

MODEL_TYPE = "cclm_image_to_text"
Images = ImageInput | StatesInput


@dataclass(frozen=True)
class ImageToTextSettings:
    """What the model is made of. `pretrained`: a folder of such a model to start from, in which the same language model
    and image encoder were joined by the same bridge; whatever trained there is taken.
    """

    language_model: LanguageModelSettings
    image_encoder: ImageEncoderSettings
    bridge: BridgeSettings = BridgeSettings()
    pretrained: str | None = None

    def build(self, image_size: int, processor_of: Callable[[int], PivotProcessor]) -> Built:
        """For square images of so many pixels a side. `processor_of` gives the processor for so many visual states.

        Errors: ValueError for parts that are not there or do not fit one another.
        """
        encoder = self.image_encoder.build(image_size)
        source = states_of(encoder, image_size)
        processor = processor_of(self.bridge.count(1 + source.side**2))
        special = processor.tokenizer.bos_token_id, processor.answers([""])[0][-1], processor.tokenizer.pad_token_id
        language_model = self.language_model.build(len(processor.tokenizer), *special)
        bridge = self.bridge.build(source, language_model.width, _usual_norm(language_model))
        model = ImageToText(self, language_model, encoder, bridge)
        model.image_size = image_size
        given = {"language_model": self.language_model.pretrained, "image_encoder": self.image_encoder.known}
        filled = {name for name in named_state(model) if given.get(name.partition(".")[0]) and "lora_" not in name}
        if self.pretrained:
            model.start_from(self.pretrained)
        return Built(model, processor, {name for name, _ in model.named_parameters()} - filled - model.taken)


class Built(NamedTuple):
    """`new_names`: of the model's parameters that no weights filled."""

    model: ImageToText
    processor: PivotProcessor
    new_names: set[str]


@dataclass(frozen=True)
class Prompt:
    """What is asked about `pictures`, as many as the template has marks. `language`: of the answer, as a code.

    `template`: None is the one that the model was trained with; `text`: what goes into its field {text}.
    """

    pictures: tuple[Image.Image, ...]
    language: str
    template: str | None = None
    text: str = ""


class ImageToText(nn.Module):
    """A language model whose prompts hold pictures: the states that a bridge makes of an image encoder's stand among
    the embeddings of the words, at the places that the processor left for them.
    """

    processor: PivotProcessor  # of a model that was loaded from a folder
    image_size: int  # pixels a side, of a model that its settings built

    def __init__(
        self, settings: ImageToTextSettings, language_model: LanguageModel, image_encoder: ImageEncoder, bridge: Bridge
    ) -> None:
        super().__init__()
        self.settings = settings
        self.language_model, self.image_encoder, self.bridge = language_model, image_encoder, bridge
        self.notes = TrainingNotes()
        self.taken: set[str] = set()  # names of what a folder that was started from brought
        self.fingerprints = {  # of what lies elsewhere, before anything here has trained
            "language_model": language_model.fingerprint() if settings.language_model.pretrained else "",
            "image_encoder": fingerprint(image_encoder) if settings.image_encoder.known else "",
        }

    # -- reading -----------------------------------------------------------------------------------------------------

    def visual(self, images: Images) -> Tensor:
        """Pictures, or the image encoder's states of them -> visual states (I, N, D)."""
        states = images.states if isinstance(images, StatesInput) else self.image_encoder(images.pixel_values)
        return self.bridge(states)

    def embeds(self, images: Images, input_ids: Tensor) -> Tensor:
        """Prompts (B, L) with the pictures in their places -> (B, L, D).

        Errors: ValueError where there are more or fewer pictures than places for them.
        """
        visual, places = self.visual(images), input_ids == VISUAL  # (I, N, D), (B, L)
        count, each = int(places.sum()), visual.shape[1]
        if count != len(visual) * each:
            raise ValueError(
                f"{len(visual)} picture(s) for prompts with {count // each} mark(s) <image>; give each mark a picture"
            )
        words = self.language_model.embed(input_ids)
        return words.masked_scatter(places.unsqueeze(-1), visual.to(words.dtype))

    def embeds_of(self, batch: PromptBatch) -> Tensor:
        """Prompts of a batch (B, L, D), with pictures or without."""
        if isinstance(batch, VisualPromptBatch):
            return self.embeds(batch.images, batch.prompts.input_ids)
        return self.language_model.embed(batch.prompts.input_ids)

    def forward(self, batch: PromptBatch) -> Tensor:
        """Mean cross-entropy over the tokens of all answers."""
        prompts = batch.prompts
        return self.language_model.loss(self.embeds_of(batch), prompts.attention_mask, prompts.labels)

    # -- answering ---------------------------------------------------------------------------------------------------

    def log_likelihood(self, images: Images, prompts: PromptInput) -> Tensor:
        """Log probability (B,) float32 of each prompt's answer: the sum over its tokens."""
        embeds = self.embeds(images, prompts.input_ids)
        return self.language_model.log_likelihood(embeds, prompts.attention_mask, prompts.labels)

    @torch.no_grad()
    def label_log_likelihoods(self, images: Images, prompts: PromptInput, labels: Sequence[list[int]]) -> Tensor:
        """Log probability (B, K) float32 of each label, as the processor's `answers` gives them, after each prompt.

        Pictures and prompts, which are without answers and padded on the left, are read once for all labels.
        """
        embeds = self.embeds(images, prompts.input_ids)
        return label_log_likelihoods(self.language_model, embeds, prompts.attention_mask, labels)

    @torch.no_grad()
    def generate(
        self, images: Images, prompts: PromptInput, options: GenerationOptions, streamer: BaseStreamer | None = None
    ) -> list[list[int]]:
        """Ids of the answers to prompts padded on the left. Errors: as of `embeds` and LanguageModel.generate."""
        embeds = self.embeds(images, prompts.input_ids)
        return self.language_model.generate(embeds, prompts.attention_mask, options, streamer)

    def answer(
        self, prompts: Sequence[Prompt], options: GenerationOptions, streamer: BaseStreamer | None = None
    ) -> list[str]:
        """The answers to prompts about pictures, all read at once; `streamer` takes those of a single one.

        Errors: ValueError for a language that is unknown, for more or fewer pictures than marks, and as of `generate`.
        """
        rows = [self._tokens(prompt) for prompt in prompts]
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        device = next(self.bridge.parameters()).device
        pixels = self.processor.images(pictures).to(device)
        batch = self.processor.prompts(rows, left=True).to(device)
        return self.processor.decode(self.generate(ImageInput(pixels), batch, options, streamer))

    def _tokens(self, prompt: Prompt) -> list[int]:
        template = self.processor.template if prompt.template is None else prompt.template
        if template is None:
            raise ValueError("this model's folder tells no prompt that it was trained with; give one")
        return self.processor.prompt(template, prompt.language, prompt.text, len(prompt.pictures))

    # -- folders -----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """What trained, here or where this training started, and where the rest lies; the processor goes beside it."""
        settings = self.settings
        name = settings.language_model.pretrained
        language_model = replace(settings.language_model, pretrained=name and reference(name, folder))
        content = {
            "language_model": asdict(language_model),
            "image_encoder": asdict(settings.image_encoder.referred(folder)),
            "bridge": asdict(settings.bridge),
            "image_size": self.image_size,
            "fingerprints": self.fingerprints,
            **asdict(self.notes),
        }
        nowhere = {"language_model": not name, "image_encoder": not settings.image_encoder.known}
        rest = {name for name in named_state(self) if nowhere.get(name.partition(".")[0])}
        write(folder, MODEL_TYPE, content, self, held(self) | self.taken | rest)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: torch.device | str = "cpu", language_model: str | None = None
    ) -> ImageToText:
        """The model of a folder, with its processor. `language_model`: where this lies now, if it has been moved.

        Errors: ValueError where the folder is damaged, or a part of the model is no longer there or another.
        """
        settings, image_size = read_config(
            folder, MODEL_TYPE, lambda stored: (_settings(stored, folder, language_model), stored["image_size"])
        )
        processor = read_own(folder, PivotProcessor.from_pretrained)
        if processor.image_size != image_size:
            raise ValueError(
                f"{folder}: the processor makes pictures of {processor.image_size} pixels a side, the model was "
                f"trained with {image_size}; export the model again"
            )
        model = settings.build(image_size, lambda states: _checked(processor, states, folder)).model
        model.start_from(folder)
        model.processor = processor
        return model.to(device).eval()

    def start_from(self, folder: str | Path) -> None:
        """Take what trained in a folder, and its notes.

        Errors: ValueError where it is damaged, was made for another language model or image encoder, or does not fit.
        """
        self.taken, self.notes = take(folder, MODEL_TYPE, self, self.fingerprints)


def _checked(processor: PivotProcessor, states: int, folder: str | Path) -> PivotProcessor:
    if processor.visual_states != states:
        raise ValueError(
            f"{folder}: the processor leaves {processor.visual_states} places for a picture, the bridge makes {states} "
            "states of one; export the model again"
        )
    return processor


def _settings(stored: Mapping[str, Any], folder: str | Path, language_model: str | None) -> ImageToTextSettings:
    """What a folder's config.json says, its references as they are called from here."""
    told = dict(stored["language_model"])
    told["lora"] = told["lora"] and LoraSettings(**told["lora"])
    if told["pretrained"]:
        told["pretrained"] = language_model or resolved(told["pretrained"], folder, "language model")
    encoder = ImageEncoderSettings(**stored["image_encoder"]).resolved(folder)
    return ImageToTextSettings(LanguageModelSettings(**told), encoder, BridgeSettings(**stored["bridge"]))


def _usual_norm(language_model: LanguageModel) -> float:
    """The median length of its token embeddings, as they enter it; of some thousand tokens."""
    rows = language_model.plain.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, rows - 1, min(rows, 4096)).long()
    with torch.no_grad():
        return float(language_model.embed(ids[None]).float().norm(dim=-1).median())
