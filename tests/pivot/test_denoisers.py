"""One call for every network of diffusers: what is masked changes nothing, what does not fit is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cclm.pivot.averaging import Average
from cclm.pivot.denoisers import Denoiser, DenoiserSettings
from cclm.pivot.fingerprints import agree
from cclm.pivot.noise import NoiseSettings
from cclm.pivot.spaces import PixelSpace, SpaceSettings
from tests.pivot.tiny_diffusion import PIXART, SANA, UNET, pixart, sana, stable_diffusion

KINDS = {"UNet2DConditionModel": UNET, "PixArtTransformer2DModel": PIXART, "SanaTransformer2DModel": SANA}
FOLDERS = {"UNet2DConditionModel": stable_diffusion, "PixArtTransformer2DModel": pixart, "SanaTransformer2DModel": sana}


def new(kind: str) -> Denoiser:
    torch.manual_seed(0)
    return DenoiserSettings(kind=kind, config=KINDS[kind]).build(PixelSpace(2), 16)


def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    return torch.randn(2, 12, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 24), mask


@pytest.mark.parametrize("kind", KINDS)
def test_masked_states_change_nothing_and_others_do(kind: str) -> None:
    denoiser, (noisy, times, states, mask) = new(kind), inputs()
    told = denoiser(noisy, times, states, mask)
    assert told.shape == noisy.shape and denoiser.width == 24
    other = states.masked_fill(~mask.unsqueeze(-1), 9.0)
    assert torch.equal(denoiser(noisy, times, other, mask), told)
    cut = denoiser(noisy[1:], times[1:], states[1:, :2], mask[1:, :2])
    torch.testing.assert_close(cut, told[1:], atol=1e-5, rtol=1e-4)
    assert not torch.equal(denoiser(noisy, times, states + 1, mask), told)
    assert not torch.equal(denoiser(noisy, times, other, torch.ones_like(mask)), told)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipelines_folder_is_read_and_recognised(kind: str, tmp_path: Path) -> None:
    make: Callable[[Path], Path] = FOLDERS[kind]
    folder = str(make(tmp_path))
    space = SpaceSettings(folder).build()
    first, again = (DenoiserSettings(folder).build(space, 16) for _ in range(2))
    assert first.kind == kind and first.channels == 4
    assert first.fingerprint() == again.fingerprint()
    for layer in (False, True):
        again = DenoiserSettings(folder).build(space, 16)
        with torch.no_grad():
            next(value for value in again.parameters() if (value.dim() > 1) == layer)[0] += 0.1
        assert not agree(first.fingerprint(), again.fingerprint())


def test_the_variance_that_pixart_predicts_too_is_left_out(tmp_path: Path) -> None:
    folder = str(pixart(tmp_path))
    denoiser = DenoiserSettings(folder).build(SpaceSettings(folder).build(), 16)
    assert denoiser.model.config.out_channels == 8
    assert denoiser(torch.randn(2, 4, 8, 8), *inputs()[1:]).shape == (2, 4, 8, 8)


def test_large_pixart_is_told_the_size_of_the_picture() -> None:
    denoiser = DenoiserSettings(
        kind="PixArtTransformer2DModel",
        config=PIXART | {"use_additional_conditions": True, "num_attention_heads": 3, "cross_attention_dim": 24},
    ).build(PixelSpace(2), 16)
    seen = []
    denoiser.model.adaln_single.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    denoiser(*inputs())
    assert seen[0]["resolution"].tolist() == [[16, 16]] * 2 and seen[0]["aspect_ratio"].tolist() == [[1], [1]]


@pytest.mark.parametrize(
    "work",
    [
        lambda: new("UNet2DConditionModel"),
        lambda: NoiseSettings({"prediction_type": "sample"}).build(None, True),
        lambda: Average(torch.nn.Linear(1, 1), 0.9),
    ],
)
def test_without_diffusers_it_is_asked_for(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"needs the package diffusers, which is not here; pip install 'cclm\[pivot]'"):
        work()


def test_what_does_not_fit_is_told_in_one_line(tmp_path: Path) -> None:
    noisy, times, states, mask = inputs()
    with pytest.raises(ValueError, match=r"text states are 20 wide, the UNet2DConditionModel reads 24 \(cross_att"):
        new("UNet2DConditionModel")(noisy, times, states[..., :20], mask)
    with pytest.raises(ValueError, match="denoiser.kind is 'UNet'; choose one of UNet2DConditionModel"):
        DenoiserSettings(kind="UNet")
    with pytest.raises(ValueError, match="leave denoiser.config out"):
        DenoiserSettings("somewhere", config={"sample_size": 8})
    for config, told in (
        (
            UNET
            | {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 8,
            },
            "SDXL",
        ),
        (UNET | {"cross_attention_dim": (24, 16)}, "one width for all its blocks"),
        (UNET | {"block_out_channels": (16,)}, "denoiser.config makes no UNet2DConditionModel"),
        (UNET | {"blocks": 3}, "denoiser.config makes no UNet2DConditionModel"),
        (UNET | {"in_channels": 4}, "denoises 4 channels, the space has 12"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            DenoiserSettings(config=config).build(PixelSpace(2), 16)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no whole patches of 2 .* multiple of 4"):
        DenoiserSettings(kind="PixArtTransformer2DModel", config=PIXART).build(PixelSpace(2), 18)
    with pytest.raises(ValueError, match="no unet or transformer in"):
        DenoiserSettings(str(tmp_path)).build(PixelSpace(2), 16)
    folder = stable_diffusion(tmp_path)
    with pytest.raises(ValueError, match="denoises 4 channels, the space has 12; set space.vae"):
        DenoiserSettings(str(folder)).build(PixelSpace(2), 16)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="its unet cannot be loaded"):
        DenoiserSettings(str(folder)).build(SpaceSettings(str(folder)).build(), 16)
