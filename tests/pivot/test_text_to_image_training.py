"""`cclm fit` of a model that paints: what a preset names moves, all else stays to the bit; averages, resuming."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from cclm.cli import main
from cclm.data.shards import read_records, write_shards
from cclm.pivot.sampling import SamplingOptions
from cclm.pivot.text_to_image import TextToImage
from cclm.types import PairBatch
from tests.data.conftest import image_records
from tests.pivot.cards import checked
from tests.pivot.tiny_diffusion import UNET, pixart, sana, stable_diffusion
from tests.pivot.watcher import moved
from tests.training.conftest import changed

Config = dict[str, Any]
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    write_shards(image_records(48), folder, samples_per_shard=16)
    return folder


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """What a network's config says of its denoiser, by kind."""
    folder = tmp_path_factory.mktemp("backbones")
    made = {"sd": stable_diffusion, "pixart": pixart, "sana": sana}
    found: dict[str, Config] = {name: {"pretrained": str(make(folder / name))} for name, make in made.items()}
    config = {name: list(value) if isinstance(value, tuple) else value for name, value in UNET.items()}
    return found | {"pixels": {"config": config}}


@pytest.fixture
def config(
    data: Path, tmp_path: Path, language_models: Callable[..., Path], backbones: dict[str, Config]
) -> Callable[..., Config]:
    def made(backbone: str = "pixels", family: str = "llama", **changes: Any) -> Config:
        callbacks = {
            "cclm.training.export.ExportFolder": {"folder": str(tmp_path / "model")},
            "tests.training.recorder.Recorder": {"file": str(tmp_path / "steps.jsonl")},
            "tests.pivot.watcher.Watcher": {"folder": str(tmp_path)},
        }
        stream = {
            "shards": str(data),
            "batch_size": 6,
            "pairs": {"class_path": "cclm.data.pairs.ImageCaption", "init_args": {"languages": ["en"]}},
        }
        network = {
            "text_encoder": {"pretrained": str(language_models(family)), "layer": 1},
            "denoiser": backbones[backbone],
            "bridge": {"kind": "resampler", "states": 4, "depth": 1, "heads": 2},
        }
        if backbone == "pixels":
            network["space"] = {"patch": 2}
        whole = {
            "system": "text_to_image",
            "seed_everything": 3,
            "trainer": {
                "max_steps": 2,
                "accelerator": "cpu",
                "default_root_dir": str(tmp_path),
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "callbacks": [{"class_path": name, "init_args": given} for name, given in callbacks.items()],
            },
            "processor": {"image_size": 16, "max_tokens": 24},
            "model": {
                "network": network,
                "streams": ["photos"],
                "average": 0.0,
                "optimizer": {"lr": 1e-2, "warmup_steps": 0, "schedule": "constant"},
            },
            "data": {"streams": {"photos": stream}},
        }
        return changed(whole, **changes)

    return made


@pytest.fixture
def fit(config: Callable[..., Config], tmp_path: Path) -> Run:
    def run(*arguments: str, backbone: str = "pixels", family: str = "llama", **changes: Any) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config(backbone, family, **changes)))
        main(["fit", "--config", str(file), *arguments])
        return tmp_path

    return run


def steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def state(folder: Path, when: str = "after") -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{when}.pt", weights_only=True)


def painted(model: TextToImage) -> np.ndarray:
    pictures = model.generate(["a red ball"], SamplingOptions(steps=2), torch.Generator().manual_seed(0))
    return np.asarray(pictures[0])


PRESETS = {  # parts of the names of what trains
    "paint_bridge": ("bridge.",),
    "paint_cross_attention": ("bridge.", ".attn2."),
    "paint_full": ("bridge.", "denoiser."),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("backbone", "family"),
    [("sd", "llama"), ("sd", "bloom"), ("pixart", "qwen3"), ("sana", "llama"), ("pixels", "llama")],
)
def test_two_steps_move_what_the_preset_names_and_nothing_else(
    fit: Run, backbone: str, family: str, preset: str
) -> None:
    folder = fit(backbone=backbone, family=family, model__preset=preset)
    moving, still = moved(folder)
    named = {name for name in moving | still if any(part in name for part in PRESETS[preset])}
    named = {name for name in named if not name.startswith("text_encoder.")}
    assert moving <= named
    left = {name for name in named - moving if not _idle(name)}
    assert not left, left
    kept, after = load_file(folder / "model" / "model.safetensors"), state(folder)
    elsewhere = set() if backbone == "pixels" else {name for name in after if name.startswith("denoiser.")} - named
    assert set(kept) == {name for name in after if name.startswith(("bridge.", "denoiser."))} - elsewhere
    assert all(torch.equal(value, after[name]) for name, value in kept.items())
    model = TextToImage.from_pretrained(folder / "model")
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items() if name in after)
    assert painted(model).shape == (16, 16, 3)
    told = json.loads((folder / "model" / "config.json").read_text())
    assert (told["presets"], told["languages"]) == ([preset], ["en"])
    first = next(float.fromhex(value) for value in steps(folder)[0]["losses"].values())
    assert 0 < first < 10


def test_steadiness_holds_a_bridge_to_what_it_said(fit: Run, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        fit(model__steadiness={}, model__preset="paint_bridge")
    assert "model.steadiness holds a bridge to what it says when training begins; name" in capsys.readouterr().err
    mean = {"model__network__bridge": {"kind": "mean", "states": 2, "width": 64}}
    folder = fit(**mean)
    shutil.copytree(folder / "model", folder / "first")
    with pytest.raises(SystemExit):
        fit(**mean, model__steadiness={}, model__preset="paint_full")
    assert "model.preset is paint_full, but steadiness is the bridge's; set it to" in capsys.readouterr().err
    both = mean | {
        "model__steadiness": {},
        "model__preset": "paint_bridge",
        "model__network__pretrained": str(folder / "first"),
    }
    fit(**both, trainer__max_steps=30, model__optimizer__lr=2e-3)
    assert not any("train/photos/denoising" in step["losses"] for step in steps(folder)[-30:])
    lost = [float.fromhex(step["losses"]["train/photos/steadiness"]) for step in steps(folder)[-30:]]
    assert 0 < sum(lost[-5:]) < 0.7 * sum(lost[:5])
    moving, _ = moved(folder)
    assert moving and all(name.startswith("bridge.") for name in moving)
    first, model = TextToImage.from_pretrained(folder / "first"), TextToImage.from_pretrained(folder / "model")
    said, now = (each.states(["a red ball", "ein hund"]).states for each in (first, model))
    assert (now - said).square().mean() < 0.5 * (said[0] - said[1]).square().mean()  # texts stay apart


@pytest.mark.parametrize(
    ("steadiness", "told"),
    [
        ({"noise": 0}, "model.steadiness.noise is 0.0; give more than 0, or set steadiness to null"),
        ({"draws": 0}, "model.steadiness.draws is 0; give 1 or more"),
    ],
)
def test_a_steadiness_out_of_range_is_one_line(
    fit: Run, capsys: pytest.CaptureFixture, steadiness: dict[str, float], told: str
) -> None:
    with pytest.raises(SystemExit):
        fit(model__steadiness=steadiness)
    assert told in capsys.readouterr().err


def _idle(name: str) -> bool:
    """Biases of keys move no attention; what diffusers holds for positions and unused heads has no gradient."""
    return name.endswith(("to_k.bias", "key.bias")) or "pos_embed" in name or "caption_projection.y_embedding" in name


@pytest.mark.parametrize("backbone", ["pixels", "sd"])
def test_its_card_tells_what_it_is_and_how_it_is_used(fit: Run, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = "paint_full" if backbone == "pixels" else "paint_cross_attention"
    folder = fit(backbone=backbone, model__preset=preset)
    card, names = checked(folder / "model", monkeypatch)
    assert (card.data.language, card.data.pipeline_tag) == (["de", "en", "fr"], "text-to-image")
    assert names["picture"].size == (16, 16) and (folder / "elsewhere" / "ball.png").is_file()
    assert (folder / "elsewhere" / "pipeline" / "model_index.json").is_file()
    assert "| de | no | zero-shot |" in card.text and "| en | yes | supervised |" in card.text
    assert "| text encoder | layer 1 of a language model: llama, 2 layers of width 32 | `../../" in card.text
    if backbone == "pixels":
        assert "| denoiser | diffusers' UNet2DConditionModel | in this folder |" in card.text
        assert "| space |" not in card.text
    else:
        assert "sd`, seen from here; what trained: in this folder |" in card.text
        assert "| space | latents, 2 pixels a side of a cell | `../" in card.text


def test_the_average_of_the_weights_is_exported(fit: Run) -> None:
    folder = fit(model__average=0.9, trainer__max_steps=3)
    before, after = state(folder, "before"), state(folder)
    kept = load_file(folder / "model" / "model.safetensors")
    name = "bridge.output.weight"
    assert not torch.equal(kept[name], after[name]) and not torch.equal(kept[name], before[name])
    drift = (kept[name] - after[name]).abs().mean()
    assert drift < (before[name] - after[name]).abs().mean()


def test_a_resumed_run_repeats_an_uninterrupted_one(fit: Run, config: Callable[..., Config], tmp_path: Path) -> None:
    keep = {"dirpath": str(tmp_path / "checkpoints"), "every_n_train_steps": 2, "save_top_k": -1}
    saving = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": keep}
    changes = {
        "trainer__callbacks": [*config()["trainer"]["callbacks"], saving],
        "trainer__enable_checkpointing": True,
        "trainer__max_steps": 6,
        "model__average": 0.9,
    }
    fit(**changes)
    whole, after, kept = steps(tmp_path), state(tmp_path), load_file(tmp_path / "model" / "model.safetensors")
    (checkpoint,) = (tmp_path / "checkpoints").glob("*step=2*")
    (tmp_path / "steps.jsonl").unlink()
    fit("--ckpt_path", str(checkpoint), **changes)
    assert steps(tmp_path) == whole[2:]
    assert all(torch.equal(value, after[name]) for name, value in state(tmp_path).items())
    again = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in kept.items())
    held = torch.load(checkpoint, weights_only=True)
    assert held["state_dict"] and not any("text_encoder" in name for name in held["state_dict"])
    del held["average"]
    torch.save(held, checkpoint)
    with pytest.raises(SystemExit):
        fit("--ckpt_path", str(checkpoint), **changes)


def test_resuming_with_another_language_model_is_refused(
    fit: Run,
    config: Callable[..., Config],
    tmp_path: Path,
    language_models: Callable[..., Path],
    capsys: pytest.CaptureFixture,
) -> None:
    keep = {"dirpath": str(tmp_path / "checkpoints"), "save_last": True}
    saving = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": keep}
    changes = {"trainer__callbacks": [*config()["trainer"]["callbacks"], saving], "trainer__enable_checkpointing": True}
    fit(**changes, trainer__max_steps=1)
    for other in ({"pretrained": str(language_models("llama", seed=7))}, {"layer": 0}):
        encoder = {f"model__network__text_encoder__{name}": value for name, value in other.items()}
        with pytest.raises(SystemExit):
            fit("--ckpt_path", str(tmp_path / "checkpoints" / "last.ckpt"), **changes, **encoder)
        assert "the checkpoint was made with another text encoder than the config's" in capsys.readouterr().err


def test_an_autoencoder_that_gives_nan_is_one_line(
    fit: Run, backbones: dict[str, Config], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In training, and in painting with a folder of before."""
    sd = shutil.copytree(backbones["sd"]["pretrained"], tmp_path / "sd")
    own = {"model__network__denoiser": {"pretrained": str(sd)}, "model__preset": "paint_bridge"}
    fit(backbone="sd", **own)
    (weights,) = (sd / "vae").glob("*.safetensors")
    broken = load_file(weights)
    for value in broken.values():
        if value.dim() > 1:
            value[1:] = math.nan  # behind what a fingerprint reads, by which the autoencoder would be another
    save_file(broken, weights, {"format": "pt"})
    capsys.readouterr()
    told = "the autoencoder (VAE) gave NaN or infinity in float32: its weights are damaged"
    paint = ["generate", str(tmp_path / "model"), "--prompt", "ball", "--output", str(tmp_path / "x.png")]
    for run in (lambda: fit(backbone="sd", **own), lambda: main([*paint, "--steps", "2"])):
        with pytest.raises(SystemExit) as stop:
            run()
        error = capsys.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2 and told in error
    assert not (tmp_path / "x.png").exists()


def test_gradients_that_are_gathered_are_one_update_of_the_average(fit: Run) -> None:
    folder = fit(model__average=0.0, trainer__accumulate_grad_batches=2, trainer__max_steps=1)
    after, kept = state(folder), load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in kept.items())


def test_a_second_stage_starts_from_the_first(fit: Run, tmp_path: Path) -> None:
    fit(backbone="sd", model__preset="paint_bridge")
    (tmp_path / "model").rename(tmp_path / "first")
    first = load_file(tmp_path / "first" / "model.safetensors")
    fit(backbone="sd", model__preset="paint_cross_attention", model__network__pretrained=str(tmp_path / "first"))
    before = state(tmp_path, "before")
    assert first and all(torch.equal(value, before[name]) for name, value in first.items())
    told = json.loads((tmp_path / "model" / "config.json").read_text())
    assert told["presets"] == ["paint_bridge", "paint_cross_attention"] and "pretrained" not in told


def test_pictures_are_squeezed_but_neither_cropped_nor_mirrored(fit: Run, data: Path, tmp_path: Path) -> None:
    """What a step trains on is what the processor makes of the whole picture."""
    seen: dict[str, torch.Tensor] = {}
    forward = TextToImage.forward

    def watched(self: TextToImage, batch: PairBatch, generator: torch.Generator) -> torch.Tensor:
        seen.update(zip(batch.keys, batch.context.pixel_values, strict=True))
        return forward(self, batch, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextToImage, "forward", watched)
        fit()
    processor = TextToImage.from_pretrained(tmp_path / "model").processor
    pictures = {record.key: Image.open(io.BytesIO(record.image)) for record in read_records(str(data))}
    assert len(seen) == 12
    for key, pixels in seen.items():
        assert torch.equal(pixels, processor.images([pictures[key]])[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__preset": "paint"}, "preset is 'paint'; choose one of"),
        ({"model__preset": "chat_s2"}, "preset is 'chat_s2'; choose one of paint_bridge, "),
        ({"model__average": 1.0}, "average is 1.0; give a share from 0 (none) to below 1"),
        ({"data__streams__photos__prompt": "<image><2{code}>"}, "has a prompt, but pictures are painted from captions"),
        ({"data__loader": {"cache": "somewhere"}}, "data.loader.cache keeps states of an image encoder"),
        ({"processor__image_size": 15}, "pictures of 15 pixels a side are no whole cells of 2"),
        ({"model__network__bridge__width": 2048}, "paint_bridge is for at most 20 million parameters"),
        ({"model__network__text_encoder__layer": 9}, "layer 9: this language model has 0"),
        (
            {"data__streams__photos__pairs": {"class_path": "cclm.data.pairs.Translation", "init_args": {}}},
            "data.streams.photos: Translation draws no captions to paint from; give ImageCaption",
        ),
        ({"model__network__denoiser__config__cross_attention_dim": 0}, "cross_attention_dim is 0; one width"),
        ({"processor__max_tokens": 97}, "max_tokens is 97, but the language model"),
        ({"data__streams__photos__pairs__init_args__languages": ["xx"]}, "no text in language xx; there are de, en"),
        ({"model__network__denoiser__config__cross_attention_dim": [24, 16]}, "one width for all its blocks is needed"),
        (
            {"model__network__noise": {"scheduler": {"prediction_type": "x0"}}},
            "prediction_type is 'x0'; known: epsilon",
        ),
    ],
)
def test_what_cannot_be_trained_is_told_in_one_line(
    fit: Run, changes: Config, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        fit(**({"model__preset": "paint_bridge"} | changes))
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("cclm: ") and message in last
