"""Plain diffusers paints what we paint: the exported folder, the states of prompts, and the README that tells how."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cclm.models.processor import ImageSettings
from cclm.pivot.bridges import BridgeSettings
from cclm.pivot.denoisers import DenoiserSettings
from cclm.pivot.noise import NoiseSettings
from cclm.pivot.pipeline import export_pipeline, write_states
from cclm.pivot.sampling import SamplingOptions
from cclm.pivot.spaces import SpaceSettings
from cclm.pivot.text_encoders import TextEncoderSettings
from cclm.pivot.text_to_image import TextToImage, TextToImageSettings
from tests.pivot.tiny_diffusion import PIXART, SANA, UNET, pixart, sana, stable_diffusion

FOLDERS = {"sd": stable_diffusion, "pixart": pixart, "sana": sana}
NEW = {
    "unet": DenoiserSettings(config=UNET),
    "pixart": DenoiserSettings(kind="PixArtTransformer2DModel", config=PIXART),
    "sana": DenoiserSettings(kind="SanaTransformer2DModel", config=SANA),
}
Made = Callable[..., TextToImage]


@pytest.fixture
def made(language_models: Callable[..., Path], tmp_path: Path) -> Made:
    def build(
        folder: str | None = None, new: str = "unet", bridge: str = "resampler", shrink: int = 1, **noise: object
    ) -> TextToImage:
        flows = new == "sana" and not folder
        settings = TextToImageSettings(
            TextEncoderSettings(str(language_models("llama")), layer=1),
            DenoiserSettings(str(FOLDERS[folder](tmp_path / folder))) if folder else NEW[new],
            BridgeSettings(bridge, states=5, depth=1, heads=2),
            None if folder else SpaceSettings(patch=2, shrink=shrink),
            NoiseSettings({"prediction_type": "flow_prediction"} if flows else noise),
        )
        torch.manual_seed(1)
        side = 32 if folder == "sana" else 16 * shrink  # its pipeline takes no smaller ones
        image = ImageSettings(side, (0.5,) * 3, (0.5,) * 3)
        return settings.build(settings.text_encoder.processor(image, 24)).model.eval()

    return build


def ours(model: TextToImage, prompt: str, **options: object) -> torch.Tensor:
    (pixels,) = model.paint([prompt], SamplingOptions(steps=3, **options), torch.Generator().manual_seed(7))
    return pixels


def theirs(model: TextToImage, folder: Path, states: Path, **options: object) -> torch.Tensor:
    import diffusers

    kind = getattr(diffusers, model.denoiser.pipeline)
    pixels = not hasattr(model.space, "vae")
    without = {"text_encoder": None, "tokenizer": None} | ({"vae": None} if pixels else {})
    pipeline = kind.from_pretrained(folder, **without)
    pipeline.set_progress_bar_config(disable=True)
    cell = (32 if "Sana" in kind.__name__ else 8) if pixels else model.space.factor
    size = {"height": model.side * cell, "width": model.side * cell}
    size |= {} if "Stable" in kind.__name__ else {"use_resolution_binning": False, "negative_prompt": None}
    found = pipeline(
        **load_file(states),
        **size,
        **options,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(7),
        output_type="latent" if pixels else "pt",
    ).images
    return model.space.decode(found) if pixels else found * 2 - 1


@pytest.mark.parametrize(
    ("options", "bridge"),
    [({"folder": "sd"}, "resampler"), ({"folder": "sd"}, "linear"), ({"folder": "pixart"}, "linear")]
    + [({"folder": "sana"}, "mlp"), ({"new": "unet"}, "mlp"), ({"new": "pixart"}, "linear"), ({"new": "sana"}, "mlp")],
)
def test_the_plain_pipeline_paints_what_we_paint(made: Made, options: dict, bridge: str, tmp_path: Path) -> None:
    model = made(**options, bridge=bridge)
    export_pipeline(model, tmp_path / "pipeline")
    write_states(model, ["a red ball"], "", tmp_path / "states.safetensors")
    mine = ours(model, "a red ball", guidance=4.0).clamp(-1, 1)
    their = theirs(model, tmp_path / "pipeline", tmp_path / "states.safetensors", guidance_scale=4.0).clamp(-1, 1)
    assert mine.std() > 0.01
    torch.testing.assert_close(their, mine, atol=2e-3, rtol=1e-3)


def test_states_of_several_lengths_say_the_same_without_a_mask(made: Made, tmp_path: Path) -> None:
    """Each prompt of the file, taken alone, is the prompt: repeated to a common length with the negative one."""
    model = made(folder="sd", bridge="linear")
    prompts = ["a red ball and a dog", "un chat"]
    write_states(model, prompts, "ball", tmp_path / "states.safetensors")
    stored = load_file(tmp_path / "states.safetensors")
    assert set(stored) == {"prompt_embeds", "negative_prompt_embeds"}
    noisy, times = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    texts = model.states(prompts)
    assert not texts.mask.all() and stored["prompt_embeds"].shape[1] > texts.states.shape[1]
    wanted = model.denoiser(noisy, times, texts.states, texts.mask)
    plain = model.denoiser.model(noisy, times, stored["prompt_embeds"]).sample
    torch.testing.assert_close(plain, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="have no common multiple up to 1024, .* train a bridge of kind resampler"):
        write_states(model, ["a " * n for n in range(1, 12)], "", tmp_path / "states.safetensors")


def test_masks_go_along_where_the_pipeline_takes_them(made: Made, tmp_path: Path) -> None:
    model = made(folder="pixart", bridge="linear")
    write_states(model, ["a red ball and a dog", "un chat"], "", tmp_path / "states.safetensors")
    stored = load_file(tmp_path / "states.safetensors")
    lengths = [len(row) for row in model.processor.tokens(["a red ball and a dog", "un chat", ""])]
    assert stored["prompt_attention_mask"].sum(1).tolist() == lengths[:2]
    assert stored["negative_prompt_attention_mask"].sum(1).tolist() == lengths[2:] * 2


def test_the_readme_runs_without_us(made: Made, tmp_path: Path) -> None:
    """Of a pipeline with an autoencoder and those without."""
    models = {"latents": made(folder="pixart"), "pixels": made(), "shrunk": made(shrink=2)}
    programs = ["import os"]
    for name, model in models.items():
        export_pipeline(model, tmp_path / name / "pipeline")
        write_states(model, ["a red ball"], "", tmp_path / name / "states.safetensors")
        readme = (tmp_path / name / "pipeline" / "README.md").read_text()
        programs += [f"os.chdir({str(tmp_path / name)!r})", re.search("```python\n(.*?)```", readme, re.DOTALL)[1]]
    programs.append("import sys; assert not any(name.startswith('cclm') for name in sys.modules)")
    subprocess.run([sys.executable, "-c", "\n".join(programs)], check=True, env=os.environ | {"PYTHONPATH": ""})
    for name, model in models.items():
        with Image.open(tmp_path / name / "picture.png") as picture:
            found = np.asarray(picture.convert("RGB")).astype(int)
        mine = model.generate(["a red ball"], SamplingOptions(), torch.Generator().manual_seed(0))[0]
        assert np.abs(found - np.asarray(mine)).max() <= 2


def test_nothing_but_a_former_export_is_replaced(made: Made, tmp_path: Path) -> None:
    model = made()
    for _ in range(2):
        export_pipeline(model, tmp_path / "pipeline")
    (tmp_path / "pipeline" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds notes.txt, which is not replaced"):
        export_pipeline(model, tmp_path / "pipeline")
    with pytest.raises(ValueError, match="holds a pipeline that is no export of ours; choose a new or empty folder"):
        export_pipeline(model, stable_diffusion(tmp_path / "theirs"))


def test_what_the_model_is_made_of_is_not_replaced(made: Made, tmp_path: Path) -> None:
    """Not even if it is a former export."""
    base = made(folder="sd")
    export_pipeline(base, tmp_path / "base")
    parts = {
        "denoiser": DenoiserSettings(str(tmp_path / "base")),
        "space": SpaceSettings(str(tmp_path / "base" / "vae")),
    }
    for part, settings in parts.items():
        base.settings = replace(made(folder="sd").settings, **{part: settings})
        with pytest.raises(ValueError, match="is where the model has .*/base.* from; choose a new or empty folder"):
            export_pipeline(base, tmp_path / "base")
