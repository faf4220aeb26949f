"""Presets: what they train, what they freeze, and models that they are not made for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cclm.pivot.presets import CHAT, PAINT, apply_preset


class Attention(nn.Module):
    def __init__(self, lora: bool) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.lora_A = nn.Linear(4, 2, bias=False) if lora else None
        self.dropout = nn.Dropout(0.5)


def model(lora: bool) -> nn.Module:
    parts = {
        "language_model": nn.ModuleDict({"attention": Attention(lora), "head": nn.Linear(4, 8)}),
        "image_encoder": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        "bridge": nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
    }
    return nn.ModuleDict(parts)


@pytest.mark.parametrize(
    "preset, lora, parts",
    [
        ("chat_s1", False, {"bridge"}),
        ("chat_s1_image_encoder", False, {"bridge", "image_encoder"}),
        ("chat_s2", False, {"bridge", "language_model"}),
        ("chat_s2", True, {"bridge", "language_model.attention.lora_A"}),
    ],
)
def test_only_what_is_named_trains(preset: str, lora: bool, parts: set[str]) -> None:
    net = model(lora)
    names = apply_preset(preset, CHAT, net)
    assert names == [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert names == [name for name, _ in net.named_parameters() if any(name.startswith(f"{part}.") for part in parts)]


def test_applying_another_preset_takes_the_former_back() -> None:
    net = model(lora=True)
    full = apply_preset("chat_s2", CHAT, net)
    assert len(full) > len(apply_preset("chat_s1", CHAT, net)) and apply_preset("chat_s2", CHAT, net) == full


def test_presets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^preset is 'chat_s3'; choose one of chat_s1, [^\n]+$"):
        apply_preset("chat_s3", CHAT, model(lora=False))
    other = nn.ModuleDict({"denoiser": nn.Linear(2, 2), "bridge": nn.Linear(2, 2)})
    message = r"^preset chat_s2 trains language_model.\*.lora_\* or language_model.\*, of which this model has nothing"
    with pytest.raises(ValueError, match=message + r" \(its parts: denoiser, bridge\); choose one of [^\n]+$"):
        apply_preset("chat_s2", CHAT, other)
    with pytest.raises(ValueError, match=r"^preset is 'chat_s1'; choose one of paint_bridge, [^\n]+$"):
        apply_preset("chat_s1", PAINT, other)
    with pytest.raises(ValueError, match="preset chat_s1 trains bridge.*, of which this model has nothing"):
        apply_preset("chat_s1", CHAT, nn.Identity())


def test_weights_that_are_quantised_do_not_train() -> None:
    net = model(lora=False)
    quantised = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    net["language_model"]["attention"].query.weight = quantised
    with pytest.raises(ValueError, match=r"chat_s2 trains language_model.attention.query.weight, which is quantised;"):
        apply_preset("chat_s2", CHAT, net)
    assert apply_preset("chat_s1", CHAT, net)


def test_every_preset_says_what_it_trains() -> None:
    assert all(preset.trains and preset.meaning for preset in (CHAT | PAINT).values())
