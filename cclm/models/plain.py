"""Weights of one half of a model: a Swin or BEiT-v2 as timm, transformers or their authors write them, and XLM-R's.

They come out under timm's and XLM-R's own names, which `convert` fills a model from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cclm.models.families import beit_settings, swin_settings

Weights = Mapping[str, Tensor]

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
    (r"(?:attention\.)?(?:self\.|attention\.)?(?:relative_position_bias\.)?relative_position_bias_table", "attn.TABLE"),
    (r"TABLE", "relative_position_bias_table"),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(?<=\d\.)output\.dense\.", "mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
)
_JOINED = re.compile(r"(.*\.attn)\.(?:q|query)\.weight")


def is_image(weights: Weights) -> bool:
    """Whether these are a Swin's or BEiT's alone."""
    return any(re.search(r"patch_embed(?:dings)?\.proj(?:ection)?\.weight", name) for name in weights) and not any(
        name.startswith("vision_encoder.") for name in weights
    )


def is_text(weights: Weights) -> bool:
    """Whether these are XLM-R's alone."""
    return any(re.fullmatch(r"(?:roberta\.|bert\.)?embeddings\.word_embeddings\.weight", name) for name in weights)


def image_weights(weights: Weights, told: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same under timm's names, and the settings of CCLMConfig for such a backbone. Tables of indices are left out.

    `told`: the configuration beside them. Errors: ValueError where it is neither a Swin nor a BEiT with relative
    positions.
    """
    if any("projection" in name or "q_proj" in name for name in weights):
        weights = _joined({_renamed(name): value for name, value in weights.items()})
    named = {name: v for name, v in weights.items() if not re.search(r"relative_position_index|attn_mask$", name)}
    if "blocks.0.attn.relative_position_bias_table" in named:
        return named, beit_settings(named)[0]
    if "layers.0.blocks.0.attn.relative_position_bias_table" not in named:
        raise ValueError("the image weights are of no Swin or BEiT with relative positions; give such a file")
    if "layers.0.downsample.norm.weight" not in named:  # timm counts downsampling to the stage after it
        named = {re.sub(r"layers\.(\d+)\.downsample", _stage_before, name): value for name, value in named.items()}
    settings = swin_settings(named, weights, told)[0]
    return {re.sub(r"layers\.(\d+)\.downsample", _stage_after, name): value for name, value in named.items()}, settings


def _stage_before(found: re.Match[str]) -> str:
    return f"layers.{int(found[1]) - 1}.downsample"


def _stage_after(found: re.Match[str]) -> str:
    return f"layers.{int(found[1]) + 1}.downsample"


def _renamed(name: str) -> str:
    for pattern, replacement in _TRANSFORMERS:
        name = re.sub(pattern, replacement, name)
    return name


def _joined(weights: Weights) -> dict[str, Tensor]:
    """Queries, keys and values as one product; a BEiT's biases stay apart, as it has none for keys."""
    joined = dict(weights)
    for name in weights:
        if found := _JOINED.fullmatch(name):
            at, short = found[1], name.endswith(".q.weight")
            names = ["q", "k", "v"] if short else ["query", "key", "value"]
            joined[f"{at}.qkv.weight"] = torch.cat([joined.pop(f"{at}.{part}.weight") for part in names])
            biases = [joined.pop(f"{at}.{part}.bias", None) for part in names]
            if biases[1] is None:
                joined |= {f"{at}.q_bias": biases[0], f"{at}.v_bias": biases[2]}
            else:
                joined[f"{at}.qkv.bias"] = torch.cat(biases)
    return joined
