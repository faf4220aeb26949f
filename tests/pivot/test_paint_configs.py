"""The shipped configs of models that paint: all parse; those of real backbones run, tiny, in all their stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.pivot.text_to_image import TextToImage
from tests.data.conftest import image_records
from tests.pivot.tiny_diffusion import sana, stable_diffusion
from tests.pivot.watcher import moved

Config = dict[str, Any]
CONFIGS = Path(__file__).parents[2] / "configs" / "pivot"
SD, SECOND, DIT = (CONFIGS / f"paint_{name}.yaml" for name in ("sd", "sd_cross_attention", "dit"))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*paint*.yaml")), ids=lambda file: file.stem)
def test_every_config_parses(file: Path, capsys: pytest.CaptureFixture) -> None:
    files = [SD, file] if file == SECOND else [file]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *(word for each in files for word in ("--config", str(each))), "--print_config"])
    understood = yaml.safe_load(capsys.readouterr().out)
    assert stop.value.code == 0
    assert set(understood["model"]["streams"]) == set(understood["data"]["streams"]) > set()
    root = understood["trainer"]["default_root_dir"]
    assert root == f"runs/{file.stem}"
    assert understood["trainer"]["callbacks"][0]["init_args"]["folder"] == f"{root}/pretrained"
    for stream in understood["data"]["streams"].values():
        assert stream["pairs"]["init_args"]["languages"] == ["en"]  # no other language meets a picture


@pytest.fixture
def tiny(tmp_path: Path, language_models: Callable[..., Path]) -> Callable[..., list[str]]:
    """A shipped config on tiny networks of the same classes and drawn pictures, two steps on one CPU."""
    write_shards(image_records(16), tmp_path / "pictures", samples_per_shard=8)

    def written(file: Path, folder: Path, backbone: Path) -> str:
        config: Config = yaml.safe_load(file.read_text())
        network = config["model"]["network"]
        if file == SECOND:
            network["pretrained"] = str(tmp_path / "first" / "pretrained")
        else:
            config["trainer"] |= {"accelerator": "cpu", "precision": "32-true", "logger": False}
            config["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
            network["text_encoder"] |= {"pretrained": str(language_models("qwen3")), "layer": 1}
            network["bridge"] |= {"states": 6, "heads": 2, "width": 16}
            network["denoiser"]["pretrained"] = network["space"]["vae"] = str(backbone)
            config["processor"] |= {"image_size": 16, "max_tokens": 24}
            config["data"]["loader"] = {"workers": 0}
            config["data"]["streams"]["pictures"] |= {"shards": str(tmp_path / "pictures"), "batch_size": 2}
        watcher = {"class_path": "tests.pivot.watcher.Watcher", "init_args": {"folder": str(folder)}}
        if "callbacks" in config["trainer"]:
            config["trainer"]["callbacks"][1:] = [watcher]
        config["trainer"] |= {"max_steps": 2, "default_root_dir": str(folder), "enable_checkpointing": False}
        folder.mkdir(exist_ok=True)
        place = folder / f"{file.stem}.yaml"
        place.write_text(yaml.safe_dump(config))
        return str(place)

    return written


def test_both_stages_of_stable_diffusion_run(tiny: Callable[..., str], tmp_path: Path) -> None:
    backbone, first, second = stable_diffusion(tmp_path / "sd"), tmp_path / "first", tmp_path / "second"
    main(["fit", "--config", tiny(SD, first, backbone)])
    moving, _ = moved(first)
    assert moving and all(name.startswith("bridge.") for name in moving)
    main(["fit", "--config", tiny(SD, second, backbone), "--config", tiny(SECOND, second, backbone)])
    moving, _ = moved(second)
    assert {name.partition(".")[0] for name in moving} == {"bridge", "denoiser"}
    assert all(".attn2." in name for name in moving if name.startswith("denoiser."))
    told = json.loads((second / "pretrained" / "config.json").read_text())
    assert (told["presets"], told["languages"]) == (["paint_bridge", "paint_cross_attention"], ["en"])
    assert TextToImage.from_pretrained(second / "pretrained").noise.settings.min_snr == 5.0


def test_the_transformer_runs(tiny: Callable[..., str], tmp_path: Path) -> None:
    main(["fit", "--config", tiny(DIT, tmp_path / "first", sana(tmp_path / "sana"))])
    moving, _ = moved(tmp_path / "first")
    assert moving and all(name.startswith("bridge.") for name in moving)
    model = TextToImage.from_pretrained(tmp_path / "first" / "pretrained")
    assert model.noise.prediction == "flow_prediction" and model.noise.settings.density == "logit_normal"
