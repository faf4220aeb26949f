"""The networks of diffusers that remove noise from a picture in the light of a text, behind one call.

Shapes: B pictures of C channels and h x w cells, N states of each one's text, D the width that they must have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from cclm.errors import first_line
from cclm.pivot.diffusers_parts import diffusers, has_part, part_config, read_part
from cclm.pivot.fingerprints import fingerprint_of

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from cclm.pivot.spaces import Space


@dataclass(frozen=True)
class DenoiserSettings:
    """`pretrained`: the folder of a diffusers pipeline (Stable Diffusion 1.x or 2.x, PixArt, Sana), whose `unet` or
    `transformer` it is. Else a new one: `kind` is its diffusers class, `config` that class's options, of which
    channels and `sample_size` are set to what the space needs.
    """

    pretrained: str | None = None
    kind: str = "UNet2DConditionModel"
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in DENOISERS:
            raise ValueError(f"denoiser.kind is {self.kind!r}; choose one of {', '.join(DENOISERS)}")
        if self.pretrained and self.config:
            raise ValueError("denoiser.pretrained brings its config; leave denoiser.config out")

    def build(self, space: Space, image_size: int) -> Denoiser:
        """Errors: ValueError, one line, for a folder without one and for one that does not fit the space."""
        side = space.side(image_size)
        if self.pretrained is None:
            wanted = {"in_channels": space.channels, "out_channels": space.channels, "sample_size": side} | self.config
            return _fitting(DENOISERS[self.kind](_new(self.kind, wanted), space.factor), space, side)
        part = next((each.part for each in DENOISERS.values() if has_part(self.pretrained, each.part)), None)
        if part is None:
            raise ValueError(f"no unet or transformer in {self.pretrained}; give the folder of a diffusers pipeline")
        kind = part_config(self.pretrained, part).get("_class_name")
        if kind not in DENOISERS:
            raise ValueError(f"{self.pretrained}: its {part} is a {kind}; allowed: {', '.join(DENOISERS)}")
        return _fitting(DENOISERS[kind](read_part(self.pretrained, part, kind), space.factor), space, side)


def _new(kind: str, config: dict[str, Any]) -> ModelMixin:
    network = getattr(diffusers(), kind)
    try:
        return network(**config)
    except (TypeError, ValueError, RuntimeError, AssertionError, LookupError, ArithmeticError) as error:
        raise ValueError(f"denoiser.config makes no {kind}: {first_line(error)}; mend it") from None


class Denoiser(nn.Module, ABC):
    """A network of diffusers. `width` D of text states, `channels` C; `part` and `pipeline` are diffusers' names."""

    kind: ClassVar[str]
    part: ClassVar[str]
    pipeline: ClassVar[str]
    width_option: ClassVar[str]

    def __init__(self, model: ModelMixin, factor: int) -> None:
        """`factor`: pixels a side of a cell."""
        super().__init__()
        self.model, self.factor = model, factor
        self.width = _single(model.config[self.width_option], self.width_option)
        self.channels = model.config.in_channels

    def forward(self, noisy: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Noisy cells (B, C, h, w) at timesteps (B,), text states (B, N, D) of which `mask` (B, N) bool are read ->
        what the scheduler's prediction type names (B, C, h, w). Errors: ValueError for states of another width.
        """
        if states.shape[-1] != self.width:
            raise ValueError(
                f"text states are {states.shape[-1]} wide, the {self.kind} reads {self.width} ({self.width_option}); "
                "train a bridge to that width"
            )
        predicted = self.predict(noisy, timesteps, states, mask)
        return predicted[:, : self.channels]  # the rest, where there is one, is a variance that nobody here asks for

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor) -> Tensor: ...

    def check(self, side: int) -> None:
        """Errors: ValueError where pictures of so many cells a side do not fit."""
        patch = self.model.config.get("patch_size") or 1
        if side % patch:
            raise ValueError(
                f"pictures of {side} cells a side are no whole patches of {patch} for the {self.kind}; change "
                f"image_size to a multiple of {patch * self.factor}"
            )

    def fingerprint(self) -> str:
        """Tells which network it was before training: of its geometry and weights."""
        return fingerprint_of(self.model)


class UNet(Denoiser):
    """Stable Diffusion's U-Net; masked states get no attention."""

    kind, part, pipeline = "UNet2DConditionModel", "unet", "StableDiffusionPipeline"
    width_option = "cross_attention_dim"

    def __init__(self, model: ModelMixin, factor: int) -> None:
        super().__init__(model, factor)
        for option in ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type"):
            if (wanted := model.config.get(option)) is not None:
                raise ValueError(
                    f"the U-Net also asks for conditions that no text gives ({option}: {wanted}), as SDXL's does; use "
                    "one of the Stable Diffusion 1.x or 2.x kind"
                )

    def predict(self, noisy: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return self.model(noisy, timesteps, states, encoder_attention_mask=mask).sample


class PixArt(Denoiser):
    """PixArt-alpha's and -sigma's transformer; large ones are told the picture's size in pixels."""

    kind, part, pipeline = "PixArtTransformer2DModel", "transformer", "PixArtAlphaPipeline"
    width_option = "caption_channels"

    def predict(self, noisy: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        told: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.model.use_additional_conditions:
            height, width = (self.factor * cells for cells in noisy.shape[-2:])
            told["resolution"] = noisy.new_tensor([[height, width]]).expand(len(noisy), 2)
            told["aspect_ratio"] = noisy.new_tensor([[height / width]]).expand(len(noisy), 1)
        return self.model(
            noisy, states, timesteps, added_cond_kwargs=told, encoder_attention_mask=mask, return_dict=False
        )[0]


class Sana(Denoiser):
    """Sana's transformer of linear attention."""

    kind, part, pipeline = "SanaTransformer2DModel", "transformer", "SanaPipeline"
    width_option = "caption_channels"

    def predict(self, noisy: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        scaled = timesteps * self.model.config.timestep_scale
        return self.model(noisy, states, scaled, encoder_attention_mask=mask, return_dict=False)[0]


DENOISERS: dict[str, type[Denoiser]] = {each.kind: each for each in (UNet, PixArt, Sana)}


def _single(width: int | list[int] | tuple[int, ...] | None, option: str) -> int:
    widths = set(width) if isinstance(width, list | tuple) else {width}
    if len(widths) != 1 or not all(widths):
        raise ValueError(f"the denoiser's {option} is {width}; one width for all its blocks is needed")
    return int(widths.pop())


def _fitting(denoiser: Denoiser, space: Space, side: int) -> Denoiser:
    if denoiser.channels != space.channels:
        raise ValueError(
            f"the {denoiser.kind} denoises {denoiser.channels} channels, the space has {space.channels}; set space.vae "
            "to the autoencoder that it was trained with, or space.patch to fit"
        )
    denoiser.check(side)
    return denoiser
