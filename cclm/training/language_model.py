"""Trains a language model: prompts without pictures -> the loss on their answers; sentence pairs -> aligned states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cclm.data.batches import StreamConfig
from cclm.data.tokenizer import tag
from cclm.objectives.base import EncodedPair
from cclm.objectives.contrastive import Contrastive
from cclm.pivot.language_model import IGNORED, LanguageModel, LanguageModelSettings, LayerEncoder, layer_view
from cclm.pivot.processor import PivotProcessor, PivotProcessorSettings
from cclm.training.base import System
from cclm.training.datamodule import LoaderSettings, StreamDataModule
from cclm.training.optim import OptimizerSettings, freeze
from cclm.training.translations import TranslationSet
from cclm.types import PairBatch, PromptBatch

ANSWERS, CONTRASTIVE = "answers", "contrastive"


@dataclass(frozen=True)
class AlignmentSettings:
    """Sentences that say the same get like states, which translating alone does not bring about (stage 0 of a pivot).

    `streams`: names of those in data.streams that have no prompt. `layers`: whose states meet, each with a loss of its
    own, of which the mean counts: 0 the embeddings, then the layers. `temperature`: to begin with; it is learned.
    """

    streams: list[str]
    layers: list[int]
    temperature: float = 0.07

    def check(self, streams: list[str]) -> None:
        """Errors: ValueError where something is missing, out of range, or one of `streams` that have a prompt."""
        if twice := set(streams) & set(self.streams):
            raise ValueError(f"model.streams and model.alignment.streams both have {twice.pop()!r}; name it once")
        if not self.streams or not self.layers:
            raise ValueError("model.alignment needs streams and layers; name at least one of each, or set it to null")
        if self.temperature <= 0:
            raise ValueError(f"model.alignment.temperature is {self.temperature}; give a number above 0")


class LanguageModelSystem(System):
    """Trains a language model, new or pretrained, on prompts and, with `alignment`, on sentence pairs beside them."""

    keeps_frozen = False

    def __init__(
        self,
        processor: PivotProcessorSettings,
        network: LanguageModelSettings,
        streams: list[str],
        alignment: AlignmentSettings | None = None,
        whole: bool = False,
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008 (frozen)
        weights: dict[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        """`streams`: names of those in data.streams that have a prompt. `weights`: "stream/answers" or
        "stream/contrastive" -> factor of that loss, else 1. `whole`: prompts are learned as well as their answers,
        which a model from scratch gains from: it gets to know every sentence on both sides of a translation.
        """
        self.alignment, self.whole = alignment, whole
        if alignment:
            alignment.check(streams)
        aligned = alignment.streams if alignment else []
        named = dict.fromkeys(streams, [ANSWERS]) | dict.fromkeys(aligned, [CONTRASTIVE])
        super().__init__(named, optimizer, weights, seed=seed)
        torch.manual_seed(seed)
        self.processor = processor.build()
        tokenizer = self.processor.tokenizer
        special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        self.model = network.build(len(tokenizer), *special)
        end_at_tags(self.model, self.processor)
        freeze(self.model, optimizer.frozen)
        self.new_names = {
            name for name, _ in self.model.named_parameters() if not network.pretrained or "lora_" in name
        }
        self.exports = self.model.plain.config.model_type
        self.contrastive = Contrastive()
        if alignment:
            self.model.check_layers(alignment.layers)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / alignment.temperature)))

    def setup(self, stage: str) -> None:
        """Errors: ValueError for a stream that lacks its prompt, one to be aligned that has one, and where its longest
        would not fit.
        """
        streams: Mapping[str, StreamConfig] = self.trainer.datamodule.streams
        for name, stream in streams.items():
            if self._aligns(name) and stream.prompt is not None:
                raise ValueError(f"data.streams.{name} has a prompt, but its sentences are to be aligned; remove it")
            if not self._aligns(name) and stream.prompt is None:
                raise ValueError(f"data.streams.{name} has no prompt; give one, '{{text}}<2{{code}}>'")
            check_fits(name, stream, self.processor, self.model)
        asked = [stream for name, stream in streams.items() if not self._aligns(name)]
        self.processor.template = self.processor.template or next((stream.prompt for stream in asked), None)
        before = getattr(self.model.plain.config, "languages", None) or []
        languages = {code for stream in asked for code in stream.languages()}
        self.model.plain.config.languages = sorted(languages.union(before))

    def _aligns(self, stream: str) -> bool:
        return self.alignment is not None and stream in self.alignment.streams

    def stream_losses(
        self, stream: str, batch: PromptBatch | PairBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if isinstance(batch, PairBatch):
            return {CONTRASTIVE: self._alignment_loss(batch)}
        prompts = batch.prompts
        embeds = self.model.embed(prompts.input_ids)
        ids, mask = prompts.input_ids, prompts.attention_mask
        labels = ids.where(mask, IGNORED) if self.whole else prompts.labels
        return {ANSWERS: self.model.loss(embeds, mask, labels)}

    def _alignment_loss(self, batch: PairBatch) -> Tensor:
        """The mean over the layers; the model reads each side once."""
        layers = self.alignment.layers
        both = []
        for text in (batch.context, batch.target):
            states = self.model.states(text.input_ids, text.attention_mask, layers)
            both.append([layer_view(each, text.attention_mask) for each in states])
        losses = []
        for layer, context, target in zip(layers, *both, strict=True):
            encoder = LayerEncoder(self.model, layer, self.logit_scale)
            losses.append(self.contrastive(EncodedPair(encoder, batch, context, target)))
        return torch.stack(losses).mean()

    def trainable(self) -> dict[str, nn.Parameter]:
        own = {"logit_scale": self.logit_scale} if self.alignment else {}
        return super().trainable() | own

    def export(self, folder: Path) -> None:
        """A plain transformers folder: model and tokenizer; `languages` of its config are those of the answers."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class LanguageModelData(StreamDataModule):
    """Streams of prompts or sentence pairs, and sets by name whose translations' loss is measured."""

    def __init__(
        self,
        streams: dict[str, StreamConfig],
        loader: LoaderSettings = LoaderSettings(),  # noqa: B008 (frozen)
        validation: dict[str, TranslationSet] | None = None,
        test: dict[str, TranslationSet] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(streams, loader, seed)
        self.validation, self.testing = {**(validation or {})}, {**(test or {})}
        for name, chosen in (self.validation | self.testing).items():
            chosen.check(name)


def end_at_tags(model: LanguageModel, processor: PivotProcessor) -> None:
    """Let a language's tag end an answer, in the folder's generation_config, too: it only ever begins another one, and
    a model that learned whole prompts may go on from a sentence with the tag of its translation.
    """
    tags = processor.tokenizer.convert_tokens_to_ids([tag(code) for code in processor.languages])
    if tags:
        model.stop = tuple(sorted({*model.stop, *tags}))
        model.plain.generation_config.eos_token_id = list(model.stop)


def check_fits(name: str, stream: StreamConfig, processor: PivotProcessor, model: LanguageModel) -> None:
    """Before the first step. Errors: ValueError naming the stream whose longest texts the model has no room for."""
    most = stream.max_tokens or processor.max_tokens
    language = next((code for code, records in stream.languages().items() if records), "en")
    try:
        model.check_length(*((most,) if stream.prompt is None else processor.longest(stream.prompt, language, most)))
    except ValueError as error:
        raise ValueError(f"data.streams.{name}: {error}") from None
