"""Weights of one geometry -> another of the same family: a new resolution, other heads, two images for a text.

What a fine-tuning run does to a pretrained folder, and `cclm convert --image-size` to a released checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cclm.models.config import CCLMConfig
from cclm.models.fill import KeyReport
from cclm.models.model import CCLMModel
from cclm.models.resize import resize_table

_MOST_PIXELS = 2048  # a side; the tables of larger images alone would fill a computer's memory
_BLOCK = re.compile(r"(fusion\.blocks)\.(\d+)\.(.+)")
_DECODER_BLOCK = re.compile(r"answer_decoder\.stack\.blocks\.(\d+)\.(.+)")
_DECODER = {
    "answer_decoder.embeddings.": "embeddings.",
    "answer_decoder.stack.norm.": "fusion.norm.",
    "answer_decoder.transform.": "mlm_head.",
    "answer_decoder.bias": "mlm_head.decoder.bias",
}


def adapted_config(config: CCLMConfig, changes: Mapping[str, Any]) -> CCLMConfig:
    """`config` with other settings; a Swin's windows grow with the image, as 7 at 224 and 12 at 384 pixels do.

    Errors: ValueError for an image size that does not divide into patches and windows, or is beyond all use.
    """
    kept = {name: value for name, value in config.to_dict().items() if name in type(config).__dataclass_fields__}
    new = type(config)(**(kept | dict(changes)))
    options = dict(new.backbone_options or {})
    if new.image_size != config.image_size and "backbone_options" not in changes:
        swin = "swin" in new.backbone
        step = options.get("patch_size", 4 if swin else 16)
        step *= 2 ** (len(options.get("depths", range(4))) - 1) if swin else 1
        if new.image_size < step or new.image_size % step:
            near = min(max(step, round(new.image_size / step) * step), _MOST_PIXELS)
            what = "a patch of the last stage" if swin else "its patches"
            raise ValueError(f"image size {new.image_size} is no multiple of {step}, {what}; try {near}")
        if new.image_size > _MOST_PIXELS:
            raise ValueError(f"image size {new.image_size} is too large; give {_MOST_PIXELS} pixels or fewer")
        if swin:
            new.backbone_options = options | {"window_size": _window(config, new.image_size // step, step)}
    return new


def _window(config: CCLMConfig, side: int, step: int) -> int:
    """A Swin's windows where its last map is `side` wide: they keep their share of it, all of it as published.

    Errors: ValueError where that is no whole number.
    """
    named = re.search(r"window(\d+)", config.backbone)
    window = (config.backbone_options or {}).get("window_size", int(named[1]) if named else 7)
    before = config.image_size // step
    if window * side % before:
        unit = before // math.gcd(window, before) * step
        raise ValueError(
            f"image size {side * step} leaves windows of {window} on a last map of {before} no whole side; try "
            f"{max(1, round(side * step / unit)) * unit}"
        )
    return window * side // before


def adapted(weights: Mapping[str, Tensor], old: CCLMConfig, new: CCLMConfig) -> tuple[dict[str, Tensor], KeyReport]:
    """The tensors of a model of `old` for one of `new`, and which of the latter's none filled.

    Relative-position tables are resized as the original does. A fusion layer that becomes several interleaved blocks
    gives each of them its weights; a new answer decoder starts as the fusion does (reference/cclm.md 4.2, 4.3).
    Errors: ValueError naming the first tensor that does not fit.
    """
    with torch.device("meta"):
        wanted = CCLMModel(new).state_dict()
    found, report, used = {}, KeyReport(), set()
    for name, like in wanted.items():
        source = _source(name, old, new)
        if source not in weights:
            report.new.append(name)
            continue
        value = weights[source]
        if name.endswith("relative_position_bias_table"):
            value = resize_table(value, len(like))
        if value.shape != like.shape:
            raise ValueError(
                f"{name} is {tuple(value.shape)} in the pretrained model, {tuple(like.shape)} as configured; leave "
                "network.config's widths and vocabulary as they were"
            )
        found[name] = value
        report.filled.append(name)
        used.add(source)
    report.left_over = dict.fromkeys(sorted(set(weights) - used), "the new model has no place for it")
    return found, report


def _source(name: str, old: CCLMConfig, new: CCLMConfig) -> str:
    """Which tensor of the old model our `name` of the new one starts from."""
    if "answer" in new.heads and "answer" not in old.heads and name.startswith("answer_decoder."):
        if block := _DECODER_BLOCK.fullmatch(name):
            first = max(0, old.fusion_layers - new.answer_layers)
            return f"fusion.blocks.{(first + int(block[1])) * old.interleaved}.{block[2]}"
        return next((ours + name[len(theirs) :] for theirs, ours in _DECODER.items() if name.startswith(theirs)), name)
    if new.interleaved != old.interleaved and (block := _BLOCK.fullmatch(name)):
        return f"{block[1]}.{int(block[2]) // new.interleaved * old.interleaved}.{block[3]}"
    return name
