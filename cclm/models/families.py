"""Whose weights are these? The checkpoints of CCLM and X2-VLM: what tells them, their geometry, their names for ours.

Names are written from ours to theirs; one tensor of ours may stand under several of their names (tied ones).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cclm.models.backbones import beit_settings, image_tables, is_buffer, layer_count, swin_settings
from cclm.models.config import CCLMConfig
from cclm.models.weights import Weights

__all__ = ("Geometry", "Naming", "geometry", "is_buffer", "recognise")

SWIN, X2VLM, X2VLM_ENGLISH = "CCLM-3M/4M", "CCLM-X2VLM", "X2-VLM"

# What a state dict of each family must hold, by which the nearest one is told.
_MARKS = {
    SWIN: (
        r"vision_encoder\.patch_embed\.proj\.weight",
        r"vision_encoder\.layers\.0\.blocks\.0\.attn\.relative_position_bias_table",
        r"vision_encoder\.norm\.weight",
        r"text_encoder\.(bert\.)?embeddings\.word_embeddings\.weight",
        r"text_encoder\.(bert\.)?encoder\.layer\.0\.attention\.self\.query\.weight",
        r"text_encoder\.(bert\.)?encoder\.layer\.\d+\.crossattention\.self\.query\.weight",
    ),
    X2VLM: (
        r"vision_encoder\.patch_embed\.proj\.weight",
        r"vision_encoder\.blocks\.0\.attn\.relative_position_bias_table",
        r"vision_encoder\.fc_norm\.weight",
        r"text_encoder\.embeddings\.word_embeddings\.weight",
        r"text_encoder\.encoder\.layer\.0\.attention\.self\.query\.weight",
        r"cross_encoder\.encoder\.layer\.0\.crossattention\.self\.query\.weight",
    ),
    X2VLM_ENGLISH: (
        r"vision_encoder\.patch_embed\.proj\.weight",
        r"vision_encoder\.blocks\.0\.attn\.relative_position_bias_table",
        r"vision_encoder\.fc_norm\.weight",
        r"text_encoder\.(bert\.)?embeddings\.word_embeddings\.weight",
        r"text_encoder\.(bert\.)?encoder\.layer\.0\.attention\.self\.query\.weight",
        r"text_encoder\.(bert\.)?encoder\.layer\.\d+\.crossattention\.self\.query\.weight",
    ),
}

_LAYER = {  # ours: theirs, within one layer
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.out": "crossattention.output.dense",
    "cross_attention_norm": "crossattention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
_EMBEDDINGS = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "token_type": "token_type_embeddings",
    "norm": "LayerNorm",
}
_HEADS = {
    "image_projection": "vision_proj",
    "text_projection": "text_proj",
    "match_head": "itm_head",
    "box_head": "bbox_head",
    "class_head": "cls_head",
    "assign_head": "ta_head",
}
_XLM_HEAD = {  # ours: XLM-R's
    "dense.weight": ("dense.weight",),
    "dense.bias": ("dense.bias",),
    "norm.weight": ("layer_norm.weight",),
    "norm.bias": ("layer_norm.bias",),
    "decoder.bias": ("bias", "decoder.bias"),
}
# Of tensors that geometry is read off, the number of dimensions.
_DIMENSIONS = {
    re.compile(r"temp"): 0,
    re.compile(r"(.*\.)?(\w+_embeddings|fc1|dense|text_proj|cls_head\.[03]|decoder)\.weight"): 2,
    re.compile(r".*relative_position_bias_table"): 2,
    re.compile(r".*\.attn_mask"): 3,
    re.compile(r"(.*\.)?patch_embed(dings)?\.proj(ection)?\.weight"): 4,
}


def recognise(weights: Weights) -> str:
    """The family of a checkpoint. Errors: ValueError naming the nearest one and what it lacks for it."""
    lacking = {}
    for family, marks in _MARKS.items():
        lacking[family] = [mark for mark in marks if not any(re.fullmatch(mark, name) for name in weights)]
        if not lacking[family]:
            return family
    nearest = min(lacking, key=lambda family: len(lacking[family]))
    missing = [re.sub(r"\\d\+", "N", mark).replace("(bert\\.)?", "").replace("\\", "") for mark in lacking[nearest]]
    told = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    if len(missing) == len(_MARKS[nearest]):
        told = f"it has nothing of one, such as {missing[0]}"
    else:
        told = f"it is nearest to {nearest}, but has no {told}"
    known = ", ".join(_MARKS)
    raise ValueError(f"no checkpoint of a known family: {told}; give one of {known}, or of XLM-R, Swin or BEiT-v2")


@dataclass(frozen=True)
class Naming:
    """How one family writes the tensors of a model of ours."""

    family: str
    config: CCLMConfig
    bare: bool  # text_encoder without `.bert`: the fine-tuned forms, and all of X2VLM

    @property
    def text(self) -> str:
        return "text_encoder" if self.bare or self.family == X2VLM else "text_encoder.bert"

    def theirs(self, name: str) -> list[str]:
        """Their names for our tensor `name`."""
        part, _, rest = name.partition(".")
        if part == "image_encoder":
            return [f"vision_encoder.{self._vision(rest.removeprefix('backbone.'))}"]
        if part in ("text_encoder", "fusion"):
            return self._block(part, rest)
        if part == "embeddings":
            return [f"{self.text}.embeddings.{_embedding(rest)}"]
        if part == "mlm_head":
            return _vocabulary("mlm_head" if self.family == X2VLM else "text_encoder.cls", rest)
        if part == "answer_decoder":
            return _answer(rest)
        if part == "logit_scale":
            return ["temp"]
        return [f"{_HEADS[part]}.{rest}" if part in _HEADS else name]

    def _vision(self, name: str) -> str:
        """timm counts Swin's downsampling to the stage after it, the original to the one before."""
        if down := re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name):
            return f"layers.{int(down[1]) - 1}.downsample.{down[2]}"
        return name

    def _block(self, stack: str, name: str) -> list[str]:
        index, inner = _split_layer(name.removeprefix("blocks."))
        if stack == "fusion" and self.family == X2VLM:
            return [f"cross_encoder.encoder.layer.{index}.{inner}"]
        first = index + (self.config.text_layers if stack == "fusion" else 0)
        shared = self.config.interleaved if re.search(r"crossattention\.self\.(key|value)", inner) else 1
        return [f"{self.text}.encoder.layer.{layer}.{inner}" for layer in range(first, first + shared)]


def _split_layer(name: str) -> tuple[int, str]:
    """Our `3.attention.query.weight` -> 3 and their name within a layer."""
    index, _, inner = name.partition(".")
    module, _, leaf = inner.rpartition(".")
    return int(index), f"{_LAYER[module]}.{leaf}"


def _embedding(name: str) -> str:
    module, _, leaf = name.partition(".")
    return f"{_EMBEDDINGS[module]}.{leaf}"


def _vocabulary(prefix: str, name: str) -> list[str]:
    if name == "decoder.bias":
        return [f"{prefix}.predictions.bias", f"{prefix}.predictions.decoder.bias"]
    if name == "decoder.weight":
        return [f"{prefix}.predictions.decoder.weight"]
    return [f"{prefix}.predictions.transform.{name.replace('norm.', 'LayerNorm.')}"]


def _answer(name: str) -> list[str]:
    part, _, rest = name.partition(".")
    if part == "embeddings":
        own = [f"text_decoder.bert.embeddings.{_embedding(rest)}"]
        return [*own, "text_decoder.cls.predictions.decoder.weight"] if rest == "word.weight" else own
    if part == "stack":
        index, inner = _split_layer(rest.removeprefix("blocks."))
        return [f"text_decoder.bert.encoder.layer.{index}.{inner}"]
    return _vocabulary("text_decoder.cls", "decoder.bias" if part == "bias" else rest)


def check_dimensions(weights: Weights) -> None:
    """Errors: ValueError naming a tensor that is of no model's number of dimensions."""
    for name, value in weights.items():
        want = next((count for pattern, count in _DIMENSIONS.items() if pattern.fullmatch(name)), value.dim())
        if value.dim() != want:
            raise ValueError(f"{name} is {tuple(value.shape)}, not of {want} dimension(s); fetch the file again")


def tables(naming: Naming) -> dict[str, Tensor]:
    """What a checkpoint holds that is computed, not learned, under their names."""
    positions = torch.arange(naming.config.max_positions)[None]  # (1, P)
    found = {f"{naming.text}.embeddings.position_ids": positions}
    if "answer" in (naming.config.heads or ()):
        found["text_decoder.bert.embeddings.position_ids"] = positions
    return found | {f"vision_encoder.{name}": value for name, value in image_tables(naming.config).items()}


# -- XLM-R's own names -------------------------------------------------------------------------------------------------


def xlm_roberta_names(layers: int, head: bool) -> list[str]:
    """The learned tensors of an XLM-R of so many layers, with or without its head, and without its pooler."""
    leaves = [f"{module}.{leaf}" for module in _LAYER.values() for leaf in ("weight", "bias") if "cross" not in module]
    names = [f"embeddings.{module}.weight" for module in _EMBEDDINGS.values()] + ["embeddings.LayerNorm.bias"]
    names += [f"encoder.layer.{layer}.{leaf}" for layer in range(layers) for leaf in leaves]
    return names + [f"lm_head.{theirs[0]}" for theirs in _XLM_HEAD.values()] * head


def xlm_roberta_sources(name: str, config: CCLMConfig) -> list[str]:
    """XLM-R's names for our tensor `name`, none where it has no such tensor.

    Its first `text_layers` layers are the text encoder; further ones start the fusion (reference/cclm.md 1.4).
    """
    part, _, rest = name.partition(".")
    if part == "embeddings":
        tied = ["lm_head.decoder.weight"] if rest == "word.weight" and config.tie_word_embeddings else []
        return [f"embeddings.{_embedding(rest)}", *tied]
    if part == "mlm_head":
        return [f"lm_head.{theirs}" for theirs in _XLM_HEAD.get(rest, ())]
    if part in ("text_encoder", "fusion") and rest.startswith("blocks."):
        index, inner = _split_layer(rest.removeprefix("blocks."))
        first = config.text_layers if part == "fusion" else 0
        return [] if "crossattention" in inner else [f"encoder.layer.{first + index}.{inner}"]
    return []


def bare_text(name: str) -> str:
    """XLM-R's name without that of the model around it."""
    return re.sub(r"^(roberta|bert)\.", "", name)


# -- geometry ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """What a checkpoint's shapes tell of its model, and what only a guess can."""

    naming: Naming
    guessed: dict[str, str] = field(default_factory=dict)  # setting -> why this value


def geometry(family: str, weights: Weights, told: Mapping[str, Any], num_heads: int | None) -> Geometry:
    """The configuration of a checkpoint of `family`; `told` is what lies in the file beside the weights.

    `num_heads` of the text layers: None where `_text_heads` shall find them. Errors: ValueError where shapes make no
    model.
    """
    bare = "text_encoder.embeddings.word_embeddings.weight" in weights
    text = "text_encoder" if bare else "text_encoder.bert"
    words = weights[f"{text}.embeddings.word_embeddings.weight"]
    hidden = words.shape[1]
    vision = {name.removeprefix("vision_encoder."): v for name, v in weights.items() if name.startswith("vision_e")}
    backbone = swin_settings(vision, vision, told) if family == SWIN else beit_settings(vision)
    if backbone.width != hidden:
        raise ValueError(
            f"the image encoder is {backbone.width} wide, the text layers {hidden}; those of {family} are alike"
        )
    guessed = dict(backbone.guessed)
    if num_heads is None and (num_heads := _text_heads(told, hidden)) is None:
        known = (backbone.text_heads, max(4, hidden // 64), 2, 1)
        num_heads = next(count for count in known if count and hidden % count == 0)
        guessed["num_heads"] = f"{num_heads}, from the image encoder's; --num-heads says otherwise"
    projected = "vision_proj.weight" in weights and "text_proj.weight" in weights
    settings: dict[str, Any] = {
        "vocab_size": words.shape[0],
        "hidden_size": hidden,
        "num_heads": num_heads,
        "intermediate_size": weights[f"{text}.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_positions": weights[f"{text}.embeddings.position_embeddings.weight"].shape[0],
        "embedding_size": weights["text_proj.weight"].shape[0] if projected else 0,
        "position_offset": 0 if family == SWIN else 2,
        "fusion_norm_eps": 1e-5 if family == SWIN else 1e-12,
        "tie_word_embeddings": family == SWIN,
        **_stacks(family, weights, f"{text}.encoder.layer"),
        **backbone.settings,
        **_heads(weights, hidden),
    }
    if "temp" in weights:
        settings["temperature"] = float(weights["temp"])  # exact: float32 in a float64
        if not 0 < settings["temperature"] < math.inf:
            raise ValueError(f"temp is {settings['temperature']:.3g}, which no temperature is; fetch it again")
    _check_told(family, settings, told)
    return Geometry(Naming(family, CCLMConfig(**settings), bare), guessed)


def _stacks(family: str, weights: Weights, prefix: str) -> dict[str, Any]:
    """Text and fusion layers. Errors: ValueError where layers are left out."""
    layers = layer_count(weights, prefix)
    if family == X2VLM:
        return {"text_layers": layers, "fusion_layers": layer_count(weights, "cross_encoder.encoder.layer")}
    numbers = [layer for layer in range(layers) if f"{prefix}.{layer}.crossattention.self.query.weight" in weights]
    crossed = layer_count(weights, prefix, "crossattention.", first=min(numbers))
    found: dict[str, Any] = {"text_layers": layers - crossed, "fusion_layers": crossed}
    if _interleaved(weights, prefix, layers - crossed, layers):
        found |= {"fusion_layers": crossed // 2, "images_per_text": 2, "several_images": "interleaved"}
    if not is_half(found["text_layers"], found["fusion_layers"]):
        raise ValueError(
            f"it has {found['text_layers']} text and {found['fusion_layers']} fusion layers, but those of {family} are "
            "the halves of one stack; fetch it again"
        )
    return found


def is_half(text_layers: int, fusion_layers: int) -> bool:
    """Whether CCLM-3M/4M cuts a stack of so many layers there: at its half (reference/cclm.md 1.4)."""
    return text_layers == (text_layers + fusion_layers) // 2


def _check_told(family: str, settings: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Errors: ValueError where the file's own configuration is of another model than its tensors."""
    found = {
        "text_num_hidden_layers": settings["text_layers"] + (settings["fusion_layers"] if family == SWIN else 0),
        "cross_num_hidden_layers": settings["fusion_layers"] if family == X2VLM else 0,
        "embed_dim": settings["embedding_size"],
        "image_res": settings["image_size"],
    }
    for name, value in found.items():
        if value and isinstance(told.get(name, value), int) and told.get(name, value) != value:
            raise ValueError(f"its config says {name} {told[name]}, its tensors {value}; fetch it again")


def _text_heads(told: Mapping[str, Any], hidden: int) -> int | None:
    """Heads of the text layers, of which no tensor has a dimension, from what lies in the file beside the weights.

    That is a configuration of the text encoder, or the name of one with the width that it is published with. Where
    neither is there, None: in every published model a text head is as wide as a BEiT head, or as two of Swin's.
    """
    for name, value in told.items():
        if name == "num_attention_heads" and isinstance(value, int):
            return value
        if isinstance(value, Mapping) and name != "vision_config" and (found := _text_heads(value, hidden)):
            return found
    published = {"xlm-roberta-base": (768, 12), "xlm-roberta-large": (1024, 16)}
    width, heads = published.get(str(told.get("text_encoder")).rstrip("/").rsplit("/", 1)[-1], (0, 0))
    return heads if width == hidden else None


def _interleaved(weights: Weights, prefix: str, first: int, last: int) -> bool:
    """Whether each two fusion layers share their keys' projection: the form with two images for a text."""
    if not {"cls_head.3.weight", "ta_head.weight"} & set(weights):
        return False
    keys = [weights.get(f"{prefix}.{layer}.crossattention.self.key.weight") for layer in range(first, last)]
    pairs = list(zip(keys[::2], keys[1::2], strict=False))
    return bool(pairs) and len(keys) % 2 == 0 and all(a is not None and b is not None and a.equal(b) for a, b in pairs)


def _heads(weights: Weights, hidden: int) -> dict[str, Any]:
    """Which heads there are. A classifier of three labels is XVNLI's, of two NLVR2's; others number theirs."""
    marks = {
        "match": "itm_head.3.weight",
        "mlm": r"(text_encoder\.cls|mlm_head)\.predictions\.decoder\.weight",
        "box": "bbox_head.3.weight",
        "classify": "cls_head.3.weight",
        "assign": "ta_head.weight",
        "answer": "text_decoder.cls.predictions.decoder.weight",
    }
    heads = [head for head, mark in marks.items() if any(re.fullmatch(mark, name) for name in weights)]
    found: dict[str, Any] = {"heads": heads}
    if "classify" in heads:
        count = weights["cls_head.3.weight"].shape[0]
        known = {2: ["False", "True"], 3: ["contradiction", "entailment", "neutral"]}
        found["labels"] = known.get(count, [str(index) for index in range(count)])
        if weights["cls_head.0.weight"].shape[1] == 2 * hidden:
            found |= {"images_per_text": 2, "several_images": "apart"}
    if "answer" in heads:
        found["answer_layers"] = layer_count(weights, "text_decoder.bert.encoder.layer")
    return found
