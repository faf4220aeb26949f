"""Pixels and latents: what goes in comes out, and what an autoencoder breaks is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cclm.cli import main
from cclm.pivot.fingerprints import agree
from cclm.pivot.spaces import LatentSpace, PixelSpace, SpaceSettings
from tests.pivot.tiny_diffusion import another_autoencoder, sana, stable_diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("sd"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pixels_become_cells_and_back() -> None:
    space, pixels = SpaceSettings(patch=4).build(), torch.rand(2, 3, 16, 16)
    cells = space.encode(pixels, generator())
    assert cells.shape == (2, 48, 4, 4) and space.channels == 48 and space.side(16) == 4
    assert torch.equal(cells[0, :, 1, 2].view(3, 4, 4), pixels[0, :, 4:8, 8:12])
    assert torch.equal(space.decode(cells), pixels)
    assert isinstance(space, PixelSpace) and not list(space.parameters())


def test_a_shrunk_picture_comes_back_softer() -> None:
    rows = torch.linspace(-1, 1, 64).view(1, 1, 64, 1)
    smooth = torch.cat([torch.sin(3 * rows * factor).expand(1, 1, 64, 64) for factor in (1, 2, 3)], 1)
    space = SpaceSettings(patch=8, shrink=2).build()
    cells = space.encode(smooth, generator())
    assert cells.shape == (1, 192, 4, 4) and (space.channels, space.factor, space.side(64)) == (192, 16, 4)
    back = space.decode(cells)
    assert back.shape == smooth.shape and (back - smooth)[:, :, 2:-2].abs().max() < 0.05
    edge = torch.ones(1, 3, 64, 64)
    edge[..., 31:] = -1.0  # in the middle of a pixel of the small picture
    lost = (space.decode(space.encode(edge, generator())) - edge).abs()
    assert lost[..., 28:35].max() > 0.3 and lost[..., :24].max() < 0.02


def test_latents_are_scaled_and_drawn_from_the_generator(folder: Path) -> None:
    space, pixels = SpaceSettings(str(folder)).build(), torch.rand(2, 3, 16, 16) * 2 - 1
    assert isinstance(space, LatentSpace) and (space.channels, space.factor) == (4, 2)
    cells = space.encode(pixels, generator())
    assert cells.shape == (2, 4, 8, 8) and not cells.requires_grad
    assert torch.equal(cells, space.encode(pixels, generator())) and not torch.equal(
        cells, space.encode(pixels, generator(1))
    )
    found = space.vae.encode(pixels).latent_dist
    noise = torch.randn(found.mean.shape, generator=generator())
    torch.testing.assert_close(cells, 0.18215 * (found.mean + found.std * noise))
    torch.testing.assert_close(space.decode(cells), space.vae.decode(cells / 0.18215).sample)


def test_the_folder_may_be_the_autoencoders_own(folder: Path) -> None:
    whole, own = SpaceSettings(str(folder)).build(), SpaceSettings(str(folder / "vae")).build()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), own.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in own.parameters())


def test_a_fingerprint_tells_autoencoders_apart_but_not_their_precision(folder: Path, tmp_path: Path) -> None:
    made = SpaceSettings(str(folder)).build().fingerprint()
    assert made == SpaceSettings(str(folder / "vae"), dtype="bfloat16").build().fingerprint()
    others = [another_autoencoder(stable_diffusion(tmp_path / "sd")), sana(tmp_path / "sana")]
    assert len({made, *(SpaceSettings(str(other)).build().fingerprint() for other in others)}) == 3
    tuned = SpaceSettings(str(folder)).build()
    with torch.no_grad():
        tuned.vae.encoder.conv_in.weight.add_(0.1)
    assert not agree(tuned.fingerprint(), made) and PixelSpace(2).fingerprint() == ""


def test_sanas_autoencoder_is_one_too(tmp_path: Path) -> None:
    space = SpaceSettings(str(sana(tmp_path))).build()
    cells = space.encode(torch.rand(1, 3, 8, 8), generator())
    assert cells.shape == (1, 4, 4, 4) and space.decode(cells).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(("dtype", "cure"), [("float16", "float32 or bfloat16"), ("bfloat16", "to float32")])
def test_what_overflows_in_the_autoencoder_names_the_precision_and_the_cure(
    folder: Path, dtype: str, cure: str
) -> None:
    space = SpaceSettings(str(folder), dtype=dtype).build()
    with torch.no_grad():
        space.vae.encoder.conv_out.weight.fill_(torch.finfo(space.vae.dtype).max)
        space.vae.decoder.conv_out.weight.fill_(torch.finfo(space.vae.dtype).max)
    told = rf"\(VAE\) gave NaN or infinity in {dtype}: .*set space.dtype .*{cure}"
    with pytest.raises(ValueError, match=told):
        space.encode(torch.rand(1, 3, 16, 16), generator())
    with pytest.raises(ValueError, match=told):
        space.decode(torch.rand(1, 4, 8, 8))


def test_mixed_precision_does_not_reach_the_autoencoder(folder: Path) -> None:
    space, pixels = SpaceSettings(str(folder)).build(), torch.rand(1, 3, 16, 16)
    plain = space.encode(pixels, generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(space.encode(pixels, generator()), plain)


def test_what_is_wrong_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    for settings, told in (
        ({"patch": 0}, "space.patch is 0; give 1 or more"),
        ({"vae": str(folder), "patch": 2}, "space.patch is 2, but an autoencoder makes cells of its own; leave it out"),
        ({"shrink": 0}, "space.shrink is 0; give 1 or more"),
        ({"vae": str(folder), "shrink": 2}, "space.shrink is 2, but an autoencoder"),
        ({"dtype": "half"}, "choose one of float32"),
        ({"vae": str(tmp_path)}, "no vae in .*; give a diffusers pipeline's folder"),
        ({"vae": "data/nowhere"}, "no vae in data/nowhere"),
        ({"vae": str(folder / "unet")}, "of class UNet2DConditionModel; allowed: AutoencoderKL"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            SpaceSettings(**settings).build()
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="change image_size to a multiple of 4"):
        SpaceSettings(patch=4).build().side(30)


def test_a_config_with_such_a_space_is_one_line_of_ours(capsys: pytest.CaptureFixture) -> None:
    config = Path(__file__).parents[2] / "configs" / "pivot" / "emoji_paint.yaml"
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), "--model.network.space.shrink", "0"])
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "space.shrink is 0; give 1 or more" in told and "Union" not in told
