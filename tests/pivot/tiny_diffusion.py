"""Tiny random networks of the very architectures that real backbones have, and folders laid out as theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

UNET: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
PIXART: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "cross_attention_dim": 16,
    "caption_channels": 24,
    "patch_size": 2,
    "norm_num_groups": 4,
}
SANA: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 24,
    "mlp_ratio": 2.0,
}


def stable_diffusion(folder: Path, second: bool = False) -> Path:
    """A folder of Stable Diffusion 1.x: its U-Net and autoencoder with all kinds of their layers, a few units wide.

    `second`: of 2.x, with linear projections, heads by level, and a velocity that is predicted.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    options = UNET | ({"use_linear_projection": True, "attention_head_dim": (2, 4)} if second else {})
    UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, **options).save_pretrained(folder / "unet")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "vae")
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if second else "epsilon",
    ).save_pretrained(folder / "scheduler")
    return folder


def another_autoencoder(folder: Path) -> Path:
    """The same folder, its autoencoder of other weights."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "vae")
    torch.nn.init.normal_(vae.encoder.conv_in.bias)
    vae.save_pretrained(folder / "vae")
    return folder


def pixart(folder: Path) -> Path:
    """A folder of PixArt-alpha, which predicts the variance too."""
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    torch.manual_seed(0)
    network = PixArtTransformer2DModel(sample_size=8, in_channels=4, out_channels=8, **PIXART)
    network.save_pretrained(folder / "transformer")
    stable_diffusion(folder / "other")
    (folder / "other" / "vae").rename(folder / "vae")
    DPMSolverMultistepScheduler(beta_end=0.02).save_pretrained(folder / "scheduler")
    return folder


def sana(folder: Path) -> Path:
    """A folder of Sana: flow matching, an autoencoder of its own kind."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel

    torch.manual_seed(0)
    SanaTransformer2DModel(sample_size=4, in_channels=4, out_channels=4, **SANA).save_pretrained(folder / "transformer")
    AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    ).save_pretrained(folder / "vae")
    DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ).save_pretrained(folder / "scheduler")
    return folder
