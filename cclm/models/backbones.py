"""Image encoders read off their weights: the geometry of a Swin or BEiT-v2, and the tables that it computes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cclm.models.config import CCLMConfig
from cclm.models.vision import ImageEncoder
from cclm.models.weights import Weights

_BUFFERS = re.compile(r".*\.(position_ids|relative_position_index|attn_mask)")


@dataclass(frozen=True)
class Backbone:
    """`settings` of CCLMConfig, the `text_heads` that are published beside it, and which settings are `guessed`."""

    settings: dict[str, Any]
    text_heads: int
    guessed: dict[str, str] = field(default_factory=dict)  # setting -> why this value

    @property
    def swin(self) -> bool:
        return "swin" in self.settings["backbone"]

    @property
    def width(self) -> int:
        """Of the states; a Swin doubles it at every stage but its first."""
        options = self.settings["backbone_options"]
        return options["embed_dim"] * 2 ** (len(options.get("depths", [0])) - 1)


def layer_count(weights: Weights, prefix: str, inner: str = "", first: int = 0) -> int:
    """How many layers `prefix.{first}`, `prefix.{first + 1}` .. hold tensors whose names go on with `inner`.

    Errors: ValueError naming a layer that is left out.
    """
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.{re.escape(inner)}")
    found = {int(match[1]) for name in weights if (match := pattern.match(name))}
    if missing := sorted(set(range(first, first + len(found))) - found):
        raise ValueError(
            f"it has layers up to {prefix}.{max(found)}, but no {f'{prefix}.{missing[0]}.{inner}'.rstrip('.')}; "
            "fetch the file again"
        )
    return len(found)


def swin_settings(weights: Weights, tables: Weights, told: Mapping[str, Any] | None = None) -> Backbone:
    """A Swin of the original's names, or timm's. Its image size follows from `tables`, `told` or the windows.

    Half of a Swin's blocks shift their windows, so that they come in pairs: an odd number is taken, and pointed out.
    """
    depths: list[int] = []
    heads: list[int] = []
    windows: list[int] = []
    for stage in range(layer_count(weights, "layers")):
        table = weights[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"]
        windows.append(_window(table))
        heads.append(table.shape[1])
        depths.append(layer_count(weights, f"layers.{stage}.blocks"))
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
    size, guessed = _swin_image_size(windows, tables, told or {}, patch.shape[2]), {}
    if any(depth % 2 for depth in depths):
        guessed["depths"] = f"{depths}: a Swin's blocks come in pairs, so the last of a stage may be missing"
    if size is None:
        size = windows[-1] * 2 ** (len(windows) - 1) * patch.shape[2]
        guessed["image_size"] = f"{size}, at which windows fill the last stage, as published; neither tables nor a "
        guessed["image_size"] += "config.json tell it"
    settings = {"backbone": "swin_base_patch4_window7_224", "backbone_options": options, "image_size": size}
    return Backbone(settings, heads[-1] // 2, guessed)


def _swin_image_size(windows: list[int], tables: Weights, told: Mapping[str, Any], patch: int) -> int | None:
    """Pixels of the images that a Swin with these windows, one for each stage, is for.

    The attention mask of a stage, in `tables`, tells it; so does a window that had to shrink to its stage's map, or
    else `told`.
    """
    for name, mask in tables.items():
        if found := re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.attn_mask", name):
            return math.isqrt(mask.shape[0] * mask.shape[1]) * 2 ** int(found[1]) * patch
    shrunk = next((stage for stage, side in enumerate(windows) if side < windows[0]), None)
    if shrunk is not None:
        return windows[shrunk] * 2**shrunk * patch
    size = told.get("image_res", told.get("image_size"))
    return size if isinstance(size, int) and size > 0 else None


def beit_settings(weights: Weights) -> Backbone:
    """A BEiT-v2, under the names of its authors and timm."""
    patch = weights["patch_embed.proj.weight"]
    table = weights["blocks.0.attn.relative_position_bias_table"]
    options = {
        "embed_dim": patch.shape[0],
        "depth": layer_count(weights, "blocks"),
        "num_heads": table.shape[1],
        "patch_size": patch.shape[2],
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / patch.shape[0],
        "drop_path_rate": 0.1,
    }
    size = _window(table[:-3]) * patch.shape[2]
    settings = {"backbone": "beitv2_base_patch16_224", "backbone_options": options, "image_size": size}
    return Backbone(settings, table.shape[1])


def _window(table: Tensor) -> int:
    """The side of the window that a relative-position table (R, H) is for."""
    side = math.isqrt(len(table))
    if side * side != len(table) or side % 2 == 0:
        raise ValueError(f"a relative-position table has {len(table)} rows, of no square window; the file is damaged")
    return (side + 1) // 2


# -- tables that are computed ----------------------------------------------------------------------------------------


def is_buffer(name: str) -> bool:
    """Whether their `name` is that of a table that is computed, not learned."""
    return _BUFFERS.fullmatch(name) is not None


def image_tables(config: CCLMConfig) -> dict[str, Tensor]:
    """Indices and masks of the image encoder, under timm's names. They depend on neither its width nor its heads."""
    options = dict(config.backbone_options or {})
    heads = [1] * len(options.get("depths", range(4))) if "swin" in config.backbone else 1
    with torch.random.fork_rng(devices=[]):  # whose draws are none of ours
        encoder = ImageEncoder(config.backbone, config.image_size, options | {"embed_dim": 1, "num_heads": heads})
    return {name: value for name, value in encoder.backbone.named_buffers() if is_buffer(name)}


def check_table(name: str, value: Tensor, known: Weights) -> str:
    """Why `value` is left over, which `known` computes. Errors: ValueError where it does not, or another."""
    if name not in known:
        raise ValueError(f"nothing explains {name}; is it of a changed model?")
    want = known[name].to(value.dtype)
    if want.shape != value.shape or not torch.equal(want, value):
        raise ValueError(f"{name} is not the table that this model computes, so it is another function; fetch it again")
    return "computed, not learned"
