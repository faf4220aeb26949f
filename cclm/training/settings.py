"""What a config says about the processor, the network and how a step is computed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from cclm.models.adapt import adapted, adapted_config
from cclm.models.fill import every_layer, load_backbone, load_xlm_roberta
from cclm.models.labels import read_labels
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings, load_tokenizer
from cclm.models.weights import read_weights


@dataclass(frozen=True)
class ProcessorSettings:
    """Tokenizer folder (`cclm data tokenizer`, or a transformers name such as xlm-roberta-base) and image settings.

    `text_cleaning`: "none", "caption" or "question", as the original code cleans these; `max_words` kept of a text.
    """

    tokenizer: str
    image: ImageSettings = ImageSettings()
    max_tokens: int = 64
    text_cleaning: str = "none"
    max_words: int | None = None

    def build(self) -> CCLMProcessor:
        """Errors: ValueError where there is no tokenizer, or no such cleaning."""
        tokenizer = load_tokenizer(self.tokenizer)
        return CCLMProcessor(tokenizer, self.image, self.max_tokens, self.text_cleaning, self.max_words)


@dataclass(frozen=True)
class NetworkSettings:
    """Geometry and initial weights of the network.

    `pretrained`: a folder to start from; `config` then holds what is changed of its geometry, for fine-tuning: heads,
    images for a text; tables are resized to the processor's image size. `labels`: what the head "classify" or "answer"
    chooses among, a list or a file of one, as `read_labels` reads it. `backbone_weights`, `text_weights`: files for the
    image encoder (timm names or order) and for the text layers (XLM-R); `package:NAME` is the file that a package
    carries. `text_weights_every`: n takes every n-th layer of these (2: CCLM-3M/4M has 12 of XLM-R large's 24).
    """

    config: dict[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    labels: list[str] | str | None = None
    backbone_weights: str | None = None
    text_weights: str | None = None
    text_weights_every: int = 1

    def __post_init__(self) -> None:
        if self.text_weights_every < 1:
            raise ValueError(f"network.text_weights_every is {self.text_weights_every}; choose 1 (all layers) or more")

    def build(self, processor: CCLMProcessor) -> tuple[CCLMModel, set[str]]:
        """The model, and the names of its parameters that no weights filled."""
        settings = {"image_size": processor.image_size, **_known(self.config)}
        if self.labels:
            settings["labels"] = read_labels(self.labels) if isinstance(self.labels, str) else self.labels
        if self.pretrained:
            if self.backbone_weights or self.text_weights:
                raise ValueError("network.pretrained brings all weights; set backbone_weights and text_weights to null")
            return _changed(CCLMModel.from_pretrained(self.pretrained, dtype=torch.float32), settings)
        model = CCLMModel(CCLMConfig(**({"vocab_size": processor.vocab_size} | settings)))
        filled: set[str] = set()
        if self.backbone_weights:
            report = load_backbone(model.image_encoder.backbone, read_weights(self.backbone_weights))
            filled |= {f"image_encoder.backbone.{name}" for name in report.filled}
        if self.text_weights:
            weights = every_layer(read_weights(self.text_weights), self.text_weights_every)
            filled |= set(load_xlm_roberta(model, weights).filled)
        return model, {name for name, _ in model.named_parameters()} - filled


@dataclass(frozen=True)
class ComputeSettings:
    """How a step is computed, never what: compiled or not, activations kept or recomputed."""

    compile: bool = False
    compile_backend: str = "inductor"
    checkpoint_activations: bool = False

    def apply(self, model: CCLMModel) -> None:
        if self.checkpoint_activations:
            model.checkpoint_activations()
        if self.compile:
            # Block by block: all blocks of a kind share one graph, and text lengths stay free.
            for block in (*model.text_encoder.blocks, *model.fusion.blocks):
                block.compile(dynamic=True, backend=self.compile_backend)
            model.image_encoder.compile(dynamic=False, backend=self.compile_backend)


def _changed(model: CCLMModel, changes: dict[str, Any]) -> tuple[CCLMModel, set[str]]:
    config = adapted_config(model.config, changes)
    known, wanted = model.config.labels or [], config.labels or []
    if "classify" in model.config.heads and known != wanted and sorted(known) == sorted(wanted):
        raise ValueError(
            f"network.labels are those of the pretrained folder in another order ({', '.join(known[:3])} ..); its head "
            "would mean others by them: list them in its order, or leave them out"
        )
    if config.to_dict() == model.config.to_dict():
        return model, set()
    weights, report = adapted(model.state_dict(), model.config, config)
    changed = CCLMModel(config)
    changed.load_state_dict(changed.state_dict() | weights)
    return changed, {name for name, _ in changed.named_parameters()} & set(report.new)


def _known(geometry: dict[str, Any]) -> dict[str, Any]:
    defaults = {f.name: f.default for f in fields(CCLMConfig)}
    for key, value in geometry.items():
        if key == "labels":  # YAML would make truth values of True and False here
            raise ValueError("network.config has no key 'labels'; list them in network.labels")
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, 1)
            raise ValueError(f"network.config has no key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        kind = type(defaults[key])
        if kind in (bool, int, float, str) and type(value) not in {kind, int if kind is float else kind, type(None)}:
            raise ValueError(f"network.config.{key} is {value!r}; give a value like {defaults[key]!r}")
    return geometry
