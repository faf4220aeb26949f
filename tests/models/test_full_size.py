"""The published configs, at full size and without storage, have the released checkpoints' names and shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from cclm.models.families import SWIN, X2VLM, Naming, geometry, is_buffer, recognise
from cclm.models.model import CCLMConfig, CCLMModel

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
Shapes = dict[str, tuple[int, ...]]


def released(name: str) -> tuple[CCLMConfig, dict[str, torch.Tensor]]:
    """Every tensor that the original would write of this model, buffers included; none has storage."""
    stored = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    config = CCLMConfig(**stored["model"]["network"]["config"], image_size=stored["processor"]["image"]["image_size"])
    with torch.device("meta"):
        model = CCLMModel(config)
        positions = torch.arange(config.max_positions)[None]  # (1, P)
    naming = Naming(SWIN if "swin" in config.backbone else X2VLM, config, bare=False)
    weights = {theirs: value for ours, value in model.state_dict().items() for theirs in naming.theirs(ours)}
    weights[f"{naming.text}.embeddings.position_ids"] = positions
    buffers = model.image_encoder.backbone.named_buffers()
    weights |= {f"vision_encoder.{name}": value for name, value in buffers if is_buffer(name)}
    return config, weights


def linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def head(name: str, width: int, out: int) -> Shapes:
    return linear(f"{name}.0", 2 * width, width) | norm(f"{name}.1", 2 * width) | linear(f"{name}.3", out, 2 * width)


def heads(width: int) -> Shapes:
    projections = linear("vision_proj", 256, width) | linear("text_proj", 256, width)
    return {"temp": ()} | projections | head("itm_head", width, 2) | head("bbox_head", width, 4)


def attention(name: str, width: int) -> Shapes:
    shapes = linear(f"{name}.output.dense", width, width) | norm(f"{name}.output.LayerNorm", width)
    for part in ("query", "key", "value"):
        shapes |= linear(f"{name}.self.{part}", width, width)
    return shapes


def layer(name: str, width: int, cross: bool) -> Shapes:
    shapes = attention(f"{name}.attention", width) | (attention(f"{name}.crossattention", width) if cross else {})
    shapes |= linear(f"{name}.intermediate.dense", 4 * width, width)
    return shapes | linear(f"{name}.output.dense", width, 4 * width) | norm(f"{name}.output.LayerNorm", width)


def embeddings(name: str, width: int) -> Shapes:
    return norm(f"{name}.LayerNorm", width) | {
        f"{name}.position_ids": (1, 514),
        f"{name}.word_embeddings.weight": (250002, width),
        f"{name}.position_embeddings.weight": (514, width),
        f"{name}.token_type_embeddings.weight": (1, width),
    }


def vocabulary(name: str, width: int) -> Shapes:
    transform = f"{name}.predictions.transform"
    shapes = linear(f"{transform}.dense", width, width) | norm(f"{transform}.LayerNorm", width)
    return shapes | linear(f"{name}.predictions.decoder", 250002, width) | {f"{name}.predictions.bias": (250002,)}


def swin() -> Shapes:
    """Swin-B at 224 pixels: windows of 7 on maps of 56, 28, 14 and 7, every odd block's shifted but in the last."""
    at = "vision_encoder"
    shapes: Shapes = {f"{at}.patch_embed.proj.weight": (128, 3, 4, 4), f"{at}.patch_embed.proj.bias": (128,)}
    shapes |= norm(f"{at}.patch_embed.norm", 128) | norm(f"{at}.norm", 1024)
    for stage, (depth, count, side) in enumerate(((2, 4, 56), (2, 8, 28), (18, 16, 14), (2, 32, 7))):
        width = 128 * 2**stage
        for block in range(depth):
            name = f"{at}.layers.{stage}.blocks.{block}"
            shapes |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
            shapes |= linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
            shapes |= linear(f"{name}.mlp.fc1", 4 * width, width) | linear(f"{name}.mlp.fc2", width, 4 * width)
            shapes[f"{name}.attn.relative_position_bias_table"] = (169, count)
            shapes[f"{name}.attn.relative_position_index"] = (49, 49)
            if block % 2 and stage < 3:
                shapes[f"{name}.attn_mask"] = ((side // 7) ** 2, 49, 49)
        if stage < 3:
            down = f"{at}.layers.{stage}.downsample"
            shapes |= norm(f"{down}.norm", 4 * width) | {f"{down}.reduction.weight": (2 * width, 4 * width)}
    return shapes


def beit(depth: int, width: int) -> Shapes:
    at = "vision_encoder"
    shapes: Shapes = {f"{at}.cls_token": (1, 1, width), f"{at}.patch_embed.proj.weight": (width, 3, 16, 16)}
    shapes |= {f"{at}.patch_embed.proj.bias": (width,)} | norm(f"{at}.fc_norm", width)
    for block in range(depth):
        name = f"{at}.blocks.{block}"
        shapes |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
        shapes |= {f"{name}.gamma_1": (width,), f"{name}.gamma_2": (width,)}
        shapes |= {f"{name}.attn.q_bias": (width,), f"{name}.attn.v_bias": (width,)}
        shapes |= {f"{name}.attn.qkv.weight": (3 * width, width)} | linear(f"{name}.attn.proj", width, width)
        shapes |= linear(f"{name}.mlp.fc1", 4 * width, width) | linear(f"{name}.mlp.fc2", width, 4 * width)
        shapes[f"{name}.attn.relative_position_bias_table"] = (732, width // 64)
        shapes[f"{name}.attn.relative_position_index"] = (197, 197)
    return shapes


def cclm() -> Shapes:
    shapes = embeddings("text_encoder.bert.embeddings", 1024) | vocabulary("text_encoder.cls", 1024)
    for index in range(12):
        shapes |= layer(f"text_encoder.bert.encoder.layer.{index}", 1024, cross=index >= 6)
    return swin() | shapes | heads(1024)


def x2vlm(depth: int, width: int) -> Shapes:
    shapes = embeddings("text_encoder.embeddings", width) | vocabulary("mlm_head", width)
    for index in range(depth):
        shapes |= layer(f"text_encoder.encoder.layer.{index}", width, cross=False)
    for index in range(6):
        shapes |= layer(f"cross_encoder.encoder.layer.{index}", width, cross=True)
    return beit(depth, width) | shapes | heads(width)


# name -> family, what reference/cclm.md section 6 lists, and how many tensors it counts there
PUBLISHED = {
    "cclm_3m": (SWIN, cclm(), 644),
    "cclm_4m": (SWIN, cclm(), 644),
    "cclm_x2vlm_base": (X2VLM, x2vlm(12, 768), 587),
    "cclm_x2vlm_large": (X2VLM, x2vlm(24, 1024), 983),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes(name: str) -> None:
    family, wanted, count = PUBLISHED[name]
    _, weights = released(name)
    assert {theirs: tuple(value.shape) for theirs, value in weights.items()} == wanted and len(wanted) == count
    assert recognise(weights) == family
    if family == SWIN:
        starts = [theirs.split(".")[0] for theirs in weights]
        parts = (starts.count("vision_encoder"), starts.count("text_encoder"))
        assert (*parts, len(weights) - sum(parts)) == (362, 265, 17)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_checkpoint_of_this_size_becomes_this_model(name: str) -> None:
    """The geometry that shapes tell is the configs', number of heads included, whether or not it is told by name."""
    config, weights = released(name)
    weights["temp"] = torch.tensor(config.temperature)
    for told in ({}, {"text_encoder": "data/xlm-roberta-large"}):
        found = geometry(PUBLISHED[name][0], weights, told, None)
        assert bool(found.guessed) == (not told or config.hidden_size != 1024)
        got, want = found.naming.config.to_dict(), config.to_dict()
        assert got.pop("temperature") == pytest.approx(want.pop("temperature"), rel=1e-6)
        options = got.pop("backbone_options")
        assert want.pop("backbone_options").items() <= options.items()
        assert got.pop("backbone").split("_")[0] == want.pop("backbone").split("_")[0]
        assert got == want
        with torch.device("meta"):
            ours = CCLMModel(found.naming.config).state_dict()
            theirs = CCLMModel(config).state_dict()
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
