"""Whose weights are these? The checkpoints of CCLM and X2-VLM: what tells them, their geometry, their names for ours.

Names are written from ours to theirs; one tensor of ours may stand under several of their names (tied ones).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cclm.models.config import CCLMConfig

SWIN, X2VLM, X2VLM_ENGLISH = "CCLM-3M/4M", "CCLM-X2VLM", "X2-VLM"

Weights = Mapping[str, Tensor]

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
_BUFFERS = re.compile(r".*\.(position_ids|relative_position_index|attn_mask)")


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


def is_buffer(name: str) -> bool:
    """Whether their `name` is a table that is computed, not learned."""
    return _BUFFERS.fullmatch(name) is not None


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
    backbone, heads = swin_settings(vision, vision, told) if family == SWIN else beit_settings(vision)
    if (width := image_width(backbone)) != hidden:
        raise ValueError(f"the image encoder is {width} wide, the text layers {hidden}; those of {family} are alike")
    guessed = {}
    if num_heads is None and (num_heads := _text_heads(told, hidden)) is None:
        num_heads = next(count for count in (heads, max(4, hidden // 64), 2, 1) if count and hidden % count == 0)
        guessed["num_heads"] = f"{num_heads}, from the image encoder's; --num-heads says otherwise"
    layers = _count(weights, f"{text}.encoder.layer")
    crossed = _count(weights, f"{text}.encoder.layer", ".crossattention.self.query.weight")
    fusion = {"text_layers": layers - crossed, "fusion_layers": crossed}
    if family == X2VLM:
        fusion = {"text_layers": layers, "fusion_layers": _count(weights, "cross_encoder.encoder.layer")}
    elif _interleaved(weights, f"{text}.encoder.layer", layers - crossed, layers):
        fusion |= {"fusion_layers": crossed // 2, "images_per_text": 2, "several_images": "interleaved"}
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
        **fusion,
        **backbone,
        **_heads(weights, hidden),
    }
    if "temp" in weights:
        settings["temperature"] = float(weights["temp"])  # exact: float32 in a float64
        if not settings["temperature"] > 0:
            raise ValueError(f"temp is {settings['temperature']:.3g}, which no temperature is; fetch it again")
    return Geometry(Naming(family, CCLMConfig(**settings), bare), guessed)


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


def _count(weights: Weights, prefix: str, suffix: str = ".attention.self.query.weight") -> int:
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+){re.escape(suffix)}")
    return len({found[1] for name in weights if (found := pattern.fullmatch(name))})


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
        found["answer_layers"] = _count(weights, "text_decoder.bert.encoder.layer")
    return found


def swin_settings(
    weights: Weights, tables: Weights, told: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], int]:
    """Settings of a Swin of the original's names, and the text heads that go with it.

    Its image size follows from `tables`, `told` or the windows: see `_swin_image_size`.
    """
    depths: list[int] = []
    heads: list[int] = []
    windows: list[int] = []
    while blocks := _count(weights, f"layers.{len(depths)}.blocks", ".attn.qkv.weight"):
        table = weights[f"layers.{len(depths)}.blocks.0.attn.relative_position_bias_table"]
        windows.append(_window(table))
        heads.append(table.shape[1])
        depths.append(blocks)
    patch = weights["patch_embed.proj.weight"]
    options = {
        "embed_dim": patch.shape[0],
        "depths": depths,
        "num_heads": heads,
        "patch_size": patch.shape[2],
        "window_size": windows[0],
        "mlp_ratio": weights["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / patch.shape[0],
        "drop_path_rate": 0.1,
    }
    size = _swin_image_size(windows, tables, told or {}, patch.shape[2])
    found = {"backbone": "swin_base_patch4_window7_224", "backbone_options": options, "image_size": size}
    return found, heads[-1] // 2


def _swin_image_size(windows: list[int], tables: Weights, told: Mapping[str, Any], patch: int) -> int:
    """Pixels of the images that a Swin with these windows, one for each stage, is for.

    The attention mask of a stage, in `tables`, tells it; so does a window that had to shrink to its stage's map.
    Otherwise `told` may say it, or else it is that at which windows fill the last stage, as in every published model.
    """
    for name, mask in tables.items():
        if found := re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.attn_mask", name):
            return math.isqrt(mask.shape[0] * mask.shape[1]) * 2 ** int(found[1]) * patch
    shrunk = next((stage for stage, side in enumerate(windows) if side < windows[0]), None)
    if shrunk is not None:
        return windows[shrunk] * 2**shrunk * patch
    size = told.get("image_res", told.get("image_size"))
    return size if isinstance(size, int) and size > 0 else windows[-1] * 2 ** (len(windows) - 1) * patch


def beit_settings(weights: Weights) -> tuple[dict[str, Any], int]:
    """Settings of a BEiT-v2, and the text heads that go with it."""
    patch = weights["patch_embed.proj.weight"]
    table = weights["blocks.0.attn.relative_position_bias_table"]
    options = {
        "embed_dim": patch.shape[0],
        "depth": _count(weights, "blocks", ".attn.qkv.weight"),
        "num_heads": table.shape[1],
        "patch_size": patch.shape[2],
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / patch.shape[0],
        "drop_path_rate": 0.1,
    }
    size = _window(table[:-3]) * patch.shape[2]
    return {"backbone": "beitv2_base_patch16_224", "backbone_options": options, "image_size": size}, table.shape[1]


def image_width(settings: Mapping[str, Any]) -> int:
    """The width of the states of a backbone with these settings; a Swin doubles it at every stage but its first."""
    options = settings["backbone_options"]
    return options["embed_dim"] * 2 ** (len(options.get("depths", [0])) - 1)


def _window(table: Tensor) -> int:
    """The side of the window that a relative-position table (R, H) is for."""
    side = math.isqrt(len(table))
    if side * side != len(table) or side % 2 == 0:
        raise ValueError(f"a relative-position table has {len(table)} rows, of no square window; the file is damaged")
    return (side + 1) // 2
