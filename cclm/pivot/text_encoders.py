"""Frozen readers of texts whose states a picture is painted from: a layer of any language model, or a CCLM model's.

Shapes: B texts, L tokens, W width of the states.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.names import model_type
from cclm.models.processor import CCLMProcessor, ImageSettings, read_tokenizer
from cclm.pivot.language_model import LanguageModel, LanguageModelSettings


@dataclass(frozen=True)
class TextEncoderSettings:
    """`pretrained`: a causal language model (a transformers folder or a name of the hub), or a folder of `cclm fit`.

    `layer` of the language model whose states are read, 0 being its embeddings; None: its last one. Choose it by
    `cclm evaluate alignment`: where translations have like states. `dtype` and `quantize` as of a language model.
    """

    pretrained: str
    layer: int | None = None
    dtype: str = "float32"
    quantize: Literal["4bit", "8bit"] | None = None

    @property
    def is_cclm(self) -> bool:
        config = Path(self.pretrained) / "config.json"
        return config.is_file() and model_type(config) == CCLMConfig.model_type

    def processor(self, image: ImageSettings, max_tokens: int) -> CCLMProcessor:
        """Texts as the encoder was trained to read them, pictures as `image` says. Errors: ValueError."""
        if not self.is_cclm:
            tokenizer = read_tokenizer(self.pretrained)
            if tokenizer.pad_token_id is None:  # masked wherever it stands, so any token does
                tokenizer.pad_token = tokenizer.eos_token
            return CCLMProcessor(tokenizer, image, max_tokens)
        own = CCLMProcessor.from_pretrained(self.pretrained)
        return CCLMProcessor(own.tokenizer, image, min(max_tokens, own.max_tokens), own.text_cleaning, own.max_words)

    def build(self, processor: CCLMProcessor) -> TextEncoder:
        """Errors: ValueError where there is no such model, or no such layer of it."""
        if self.is_cclm:
            if self.layer is not None or self.quantize is not None:
                raise ValueError(
                    f"text_encoder: {self.pretrained} is a CCLM model, whose text encoder is read at its end and as it "
                    "is; leave layer and quantize out"
                )
            return CCLMText(CCLMModel.from_pretrained(self.pretrained, dtype=getattr(torch, self.dtype)))
        tokenizer = processor.tokenizer
        ends = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
        settings = LanguageModelSettings(self.pretrained, dtype=self.dtype, quantize=self.quantize)
        model = settings.build(processor.vocab_size, tokenizer.bos_token_id, ends, tokenizer.pad_token_id)
        if processor.max_tokens > model.context_length:
            raise ValueError(
                f"max_tokens is {processor.max_tokens}, but the language model {self.pretrained} reads "
                f"{model.context_length} at most; lower it"
            )
        return LanguageModelText(model, model.depth if self.layer is None else self.layer)


class TextEncoder(nn.Module, ABC):
    """Token ids -> states, never trained. `width` W; `fingerprint` tells whether a bridge was made for this one."""

    width: int
    fingerprint: str

    @torch.no_grad()
    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) and which of them are tokens (B, L) bool -> (B, L, W). Errors: ValueError for texts too long."""
        return self.read(input_ids, mask)

    @abstractmethod
    def read(self, input_ids: Tensor, mask: Tensor) -> Tensor: ...


class LanguageModelText(TextEncoder):
    """The states of one layer of a language model, whose layers above the next one are dropped: they are not read."""

    def __init__(self, language_model: LanguageModel, layer: int) -> None:
        super().__init__()
        language_model.check_layers([layer])
        self.fingerprint = language_model.fingerprint().replace(".", f"-{layer}.")  # of the whole model
        _keep_layers(language_model, layer + 1)  # the last of those left is normed as the model's last, so one more
        self.language_model, self.layer = language_model.eval().requires_grad_(False), layer
        self.width = language_model.width

    def read(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        return self.language_model.states(input_ids, mask, [self.layer])[0]


def _keep_layers(language_model: LanguageModel, count: int) -> None:
    """Drop layers from the top of whatever architecture holds them in one list, as all common ones do."""
    depth = language_model.depth
    for module in language_model.plain.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth > count:
            del module[count:]
            return


class CCLMText(TextEncoder):
    """The text encoder of a CCLM model: its image side and its fusion are not kept."""

    def __init__(self, model: CCLMModel) -> None:
        super().__init__()
        self.embeddings, self.layers = model.embeddings, model.text_encoder
        self.eval().requires_grad_(False)
        self.width = model.config.hidden_size
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            digest.update(name.encode() + value.detach().to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def read(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        return self.layers(self.embeddings(input_ids), mask.bool())
