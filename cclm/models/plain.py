"""Weights of one half of a model: a Swin or BEiT-v2 as timm, transformers or their authors write them, and XLM-R's.

They come out under timm's and XLM-R's own names, which `convert` fills a model from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from cclm.models.backbones import Backbone, beit_settings, is_buffer, swin_settings
from cclm.models.families import bare_text
from cclm.models.weights import Weights

_Value = TypeVar("_Value")

# transformers' names, of version 5 and before -> timm's. Queries, keys and values are joined afterwards.
_TRANSFORMERS = (
    (r"(?:swin|beit)\.", ""),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"embeddings\.cls_token", "cls_token"),
    (r"encoder\.layers\.(\d+)\.", r"layers.\1."),
    (r"(?:encoder\.layer|layers)\.(\d+)\.(?!blocks|downsample)", r"blocks.\1."),
    (r"lambda_(\d)", r"gamma_\1"),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"attention\.output\.dense\.|attention\.o_proj\.", "attn.proj."),
    (r"attention\.(?:self|attention)\.(query|key|value)\.", r"attn.\1."),
    (r"attention\.([qkv])_proj\.", r"attn.\1."),
    (
        r"(?:attention\.)?(?:self\.|attention\.)?(?:relative_position_bias\.)?relative_position_(bias_table|index)",
        r"attn.relative_position_\1",
    ),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(?<=\d\.)output\.dense\.", "mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
)
_MASKED = re.compile(r"(.*\.)?mask_token|lm_head\..*|decoder\.0\..*")
_JOINED = re.compile(r"(.*\.attn)\.(?:q|query)\.weight")


def is_image(weights: Weights) -> bool:
    """Whether these are a Swin's or BEiT's alone."""
    return any(re.search(r"patch_embed(?:dings)?\.proj(?:ection)?\.weight", name) for name in weights) and not any(
        name.startswith("vision_encoder.") for name in weights
    )


def is_text(weights: Weights) -> bool:
    """Whether these are XLM-R's alone."""
    return any(bare_text(name) == "embeddings.word_embeddings.weight" for name in weights)


@dataclass(frozen=True)
class ImageWeights:
    """A backbone under timm's names, the names that each tensor has in its file, and the tables that it computes."""

    tensors: dict[str, Tensor]
    tables: dict[str, Tensor]
    names: dict[str, list[str]]
    backbone: Backbone


def image_weights(weights: Weights, told: Mapping[str, Any]) -> ImageWeights:
    """The same under timm's names, and what backbone they are of.

    `told`: the configuration beside them. Errors: ValueError where it is neither a Swin nor a BEiT with relative
    positions.
    """
    if masked := [name for name in weights if _MASKED.fullmatch(name)]:
        raise ValueError(
            f"{masked[0]} is of a model that fills in masked images, which lacks the last norm; give one that was "
            "trained further, to classify"
        )
    names = {name: [name] for name in weights}
    named = dict(weights)
    if any("projection" in name or "q_proj" in name for name in weights):
        names = {_renamed(name): [name] for name in weights}
        named = {_renamed(name): value for name, value in weights.items()}
        _join(named, names)
    if any(name.startswith("layers.") for name in named) and "layers.0.downsample.norm.weight" in named:
        named, names = _counted_on(named), _counted_on(names)
    tables = {name: value for name, value in named.items() if is_buffer(name)}
    learned = {name: value for name, value in named.items() if name not in tables}
    if "blocks.0.attn.relative_position_bias_table" in named:
        return ImageWeights(learned, tables, names, beit_settings(learned))
    if "layers.0.blocks.0.attn.relative_position_bias_table" not in named:
        raise ValueError("the image weights are of no Swin or BEiT with relative positions; give such a file")
    return ImageWeights(learned, tables, names, swin_settings(learned, tables, told))


def _counted_on(named: dict[str, _Value]) -> dict[str, _Value]:
    """timm counts downsampling to the stage after it, the original to the one before."""
    pattern = r"(?<=^layers\.)\d+(?=\.downsample\.)"
    return {re.sub(pattern, lambda stage: str(int(stage[0]) + 1), name): value for name, value in named.items()}


def _renamed(name: str) -> str:
    for pattern, replacement in _TRANSFORMERS:
        name = re.sub(pattern, replacement, name)
    return name


def _join(named: dict[str, Tensor], names: dict[str, list[str]]) -> None:
    """Make queries, keys and values one product; a BEiT's biases stay apart, as it has none for keys."""
    for name in list(named):
        if not (found := _JOINED.fullmatch(name)):
            continue
        at, short = found[1], name.endswith(".q.weight")
        parts = ["q", "k", "v"] if short else ["query", "key", "value"]
        new = {"qkv.weight": [f"{part}.weight" for part in parts]}
        if f"{at}.{parts[1]}.bias" in named:
            new["qkv.bias"] = [f"{part}.bias" for part in parts]
        else:
            new |= {"q_bias": [f"{parts[0]}.bias"], "v_bias": [f"{parts[2]}.bias"]}
        for target, sources in new.items():
            sources = [f"{at}.{source}" for source in sources]
            if missing := [source for source in sources if source not in named]:
                raise ValueError(f"the image weights lack {missing[0]} beside {names[name][0]}; fetch the file again")
            named[f"{at}.{target}"] = torch.cat([named.pop(source) for source in sources])
            names[f"{at}.{target}"] = [theirs for source in sources for theirs in names.pop(source)]
