"""Presets: what of a model trains in a stage, by the names of its parameters; everything else is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn


@dataclass(frozen=True)
class Preset:
    """`trains`: groups of patterns of parameter names. Of each group the first that matches something trains, and one
    must, so that a preset never trains less than it says. `most`: of parameters, None for as many as there are.
    """

    trains: tuple[tuple[str, ...], ...]
    meaning: str
    most: int | None = None

    def names(self, model: nn.Module) -> list[str]:
        """Of the parameters that train.

        Errors: ValueError, not naming the preset, for a group that matches nothing and for more than `most`.
        """
        known = dict(model.named_parameters())
        chosen: set[str] = set()
        for group in self.trains:
            matched = next(filter(None, ([n for n in known if fnmatchcase(n, one)] for one in group)), None)
            if matched is None:
                parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in known)) or "none"
                raise ValueError(f"trains {' or '.join(group)}, of which this model has nothing (its parts: {parts})")
            chosen.update(matched)
        count = sum(known[name].numel() for name in chosen)
        if self.most is not None and count > self.most:
            raise ValueError(
                f"is for at most {self.most / 1e6:.0f} million parameters and here {count / 1e6:.1f} would train; make "
                "the bridge smaller (bridge.width, depth)"
            )
        return [name for name in known if name in chosen]


CHAT = {
    "chat_s1": Preset((("bridge.*",),), "the bridge; language model and image encoder frozen"),
    "chat_s1_image_encoder": Preset(
        (("bridge.*",), ("image_encoder.*",)), "bridge and image encoder; the language model frozen"
    ),
    "chat_s2": Preset(
        (("bridge.*",), ("language_model.*.lora_*", "language_model.*")),
        "the bridge and the language model's LoRA, or all of it where it has none; the image encoder frozen",
    ),
}
PAINT = {
    "paint_bridge": Preset((("bridge.*",),), "the bridge alone; text encoder and denoiser frozen", most=20_000_000),
    "paint_cross_attention": Preset(
        (("bridge.*",), ("denoiser.*.attn2.*",)),
        "the bridge, and of the denoiser the attention to texts; the rest frozen",
    ),
    "paint_full": Preset((("bridge.*",), ("denoiser.*",)), "bridge and denoiser; the text encoder frozen"),
}


def apply_preset(name: str, presets: Mapping[str, Preset], model: nn.Module) -> list[str]:
    """Freeze all of `model` but what one of its kind's presets trains; the names of what does, in the model's order.

    Errors: ValueError for no such preset, and for one of which the model has nothing.
    """
    if name not in presets:
        raise ValueError(f"preset is {name!r}; choose one of {', '.join(presets)}")
    try:
        names = presets[name].names(model)
    except ValueError as error:
        raise ValueError(f"preset {name} {error}; choose one of {', '.join(presets)}") from None
    for parameter_name, parameter in model.named_parameters():
        trains = parameter_name in names
        if trains and not parameter.is_floating_point():
            raise ValueError(
                f"preset {name} trains {parameter_name}, which is quantised; give the model LoRA, or load it whole"
            )
        parameter.requires_grad_(trains)
    return names
