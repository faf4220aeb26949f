"""Where pictures are denoised: the pixels themselves, or the latents of a frozen autoencoder.

Shapes: B pictures of H x W pixels, C channels of h x w cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cclm.pivot.diffusers_parts import part_config, read_part
from cclm.pivot.fingerprints import fingerprint_of

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, AutoencoderKL

AUTOENCODERS = ("AutoencoderKL", "AutoencoderDC")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class SpaceSettings:
    """Pixels, where `vae` is null: `patch` x `patch` of them are one cell of 3 * patch^2 channels, so that a picture of
    64 pixels is denoised as 16 x 16 x 48. With `shrink` the picture is made as many times smaller before, and enlarged
    when it is painted: soft, and cheaper by the square. Else the latents of a diffusers autoencoder: its folder, or a
    pipeline's.

    `dtype` of the autoencoder, which is frozen: float32, bfloat16 or float16.
    """

    vae: str | None = None
    patch: int = 1
    shrink: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, value in (("patch", self.patch), ("shrink", self.shrink)):
            if value < 1:
                raise ValueError(f"space.{name} is {value}; give 1 or more")
            if self.vae is not None and value != 1:
                raise ValueError(f"space.{name} is {value}, but an autoencoder makes cells of its own; leave it out")
        if self.dtype not in DTYPES:
            raise ValueError(f"space.dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")

    def build(self) -> Space:
        """Errors: ValueError where there is no such autoencoder."""
        if self.vae is None:
            return PixelSpace(self.patch, self.shrink)
        kind = part_config(self.vae, "vae").get("_class_name")
        if kind not in AUTOENCODERS:
            raise ValueError(f"{self.vae}: the autoencoder is of class {kind}; allowed: {', '.join(AUTOENCODERS)}")
        return LatentSpace(read_part(self.vae, "vae", kind, DTYPES[self.dtype]))


class Space(nn.Module, ABC):
    """`channels` C of a cell, `factor` pixels a side of it."""

    channels: int
    factor: int

    def side(self, image_size: int) -> int:
        """Cells a side of a picture of so many pixels a side. Errors: ValueError where they do not fit."""
        if image_size % self.factor:
            raise ValueError(
                f"pictures of {image_size} pixels a side are no whole cells of {self.factor}; change image_size to a "
                f"multiple of {self.factor}"
            )
        return image_size // self.factor

    @abstractmethod
    def encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> (B, C, h, w), of a deviation of about 1."""

    @abstractmethod
    def decode(self, cells: Tensor) -> Tensor:
        """(B, C, h, w) -> pixels (B, 3, H, W), about in [-1, 1]."""

    def fingerprint(self) -> str:
        """Tells which learned space it is; nothing where none is learned, as its settings say all."""
        return ""


class PixelSpace(Space):
    """Nothing is learned: pixels, or squares of them side by side as channels. Only shrinking loses something."""

    def __init__(self, patch: int, shrink: int = 1) -> None:
        super().__init__()
        self.patch, self.shrink = patch, shrink
        self.channels, self.factor = 3 * patch**2, patch * shrink

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return F.pixel_unshuffle(self._resized(pixels, 1 / self.shrink), self.patch)

    def decode(self, cells: Tensor) -> Tensor:
        return self._resized(F.pixel_shuffle(cells, self.patch), self.shrink)

    def _resized(self, pixels: Tensor, scale: float) -> Tensor:
        if self.shrink == 1:
            return pixels
        return F.interpolate(pixels, scale_factor=scale, mode="bicubic", antialias=scale < 1)


class LatentSpace(Space):
    """What a frozen autoencoder makes of pictures, scaled as its config says."""

    def __init__(self, vae: AutoencoderKL | AutoencoderDC) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        blocks = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
        self.channels, self.factor = vae.config.latent_channels, 2 ** (len(blocks) - 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Errors: ValueError for NaN."""
        with self._own_precision(pixels):
            found = self.vae.encode(pixels.to(self.vae.dtype))
            drawn = _drawn(found, generator) if hasattr(found, "latent_dist") else found.latent
        config = self.vae.config
        return self._checked((drawn.float() - (config.get("shift_factor") or 0.0)) * config.scaling_factor)

    @torch.no_grad()
    def decode(self, cells: Tensor) -> Tensor:
        """Errors: ValueError for NaN."""
        config = self.vae.config
        scaled = cells / config.scaling_factor + (config.get("shift_factor") or 0.0)
        with self._own_precision(cells):
            return self._checked(self.vae.decode(scaled.to(self.vae.dtype)).sample.float())

    def fingerprint(self) -> str:
        """Of the autoencoder's geometry, scaling and weights."""
        return fingerprint_of(self.vae)

    def _own_precision(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, enabled=False)  # mixed precision is for what trains

    def _checked(self, values: Tensor) -> Tensor:
        if not values.isfinite().all():
            kind = str(self.vae.dtype).removeprefix("torch.")
            cure = {
                "float16": "fp16 overflows in many autoencoders; set space.dtype to float32 or bfloat16",
                "bfloat16": "set space.dtype to float32",
            }.get(kind, "its weights are damaged, or made for other pictures; use another one (fp16 is not the cause)")
            raise ValueError(f"the autoencoder (VAE) gave NaN or infinity in {kind}: {cure}")
        return values


def _drawn(found: Any, generator: torch.Generator) -> Tensor:
    """A sample of the encoder's distribution: the noise comes from `generator`, wherever that lives."""
    mean, deviation = found.latent_dist.mean, found.latent_dist.std
    noise = torch.randn(mean.shape, generator=generator, device=generator.device)
    return mean + deviation * noise.to(mean)
