"""The shipped configs of models that see: all parse; the one of real backbones runs, tiny, in both its stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.models.vision import ImageEncoder
from cclm.pivot.generation import GenerationOptions
from cclm.pivot.image_to_text import ImageToText, Prompt
from tests.data.conftest import image_records
from tests.pivot.conftest import picture
from tests.pivot.watcher import moved

Config = dict[str, Any]
CONFIGS = Path(__file__).parents[2] / "configs" / "pivot"
REAL, SECOND = CONFIGS / "chat_siglip_qwen.yaml", CONFIGS / "chat_siglip_qwen_s2.yaml"
TINY = {"embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*chat*.yaml")), ids=lambda file: file.stem)
def test_every_config_parses(file: Path, capsys: pytest.CaptureFixture) -> None:
    files = [REAL, file] if file == SECOND else [file]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *(word for each in files for word in ("--config", str(each))), "--print_config"])
    understood = yaml.safe_load(capsys.readouterr().out)
    assert stop.value.code == 0
    assert set(understood["model"]["streams"]) == set(understood["data"]["streams"]) > set()
    assert understood["processor"]["tokenizer"] == understood["model"]["network"]["language_model"]["pretrained"]
    root = understood["trainer"]["default_root_dir"]
    assert root == f"runs/{file.stem}"
    assert understood["trainer"]["callbacks"][0]["init_args"]["folder"] == f"{root}/pretrained"


def test_a_control_differs_from_its_run_in_the_language_model_alone() -> None:
    for name in ("photos", "scenes"):
        run, control = ((CONFIGS / f"{name}_chat{end}.yaml").read_text() for end in ("", "_control"))
        body = run[run.index("system:") :].replace(f"runs/{name}_lm_aligned/", f"runs/{name}_lm_english/")
        body = body.replace(f"runs/{name}_chat", f"runs/{name}_chat_control")
        assert yaml.safe_load(body) == yaml.safe_load(control)


def test_quasi_zero_shot_adds_translations_of_a_twentieth_and_nothing_else() -> None:
    run, quasi = (yaml.safe_load((CONFIGS / f"photos_chat{end}.yaml").read_text()) for end in ("", "_quasi"))
    added = quasi["data"]["streams"].pop("translated")
    assert added["pairs"]["init_args"] == {"languages": ["de", "fr", "cs", "pt"], "texts": "parallel", "share": 0.05}
    assert quasi["model"]["weights"].pop("translated/answers") == 0.5
    assert quasi["model"]["streams"].pop() == "translated"
    quasi["trainer"]["default_root_dir"] = run["trainer"]["default_root_dir"]
    assert quasi == run


@pytest.fixture
def tiny(tmp_path: Path, language_models: Callable[..., Path]) -> Callable[..., Path]:
    """A shipped config at a width of 32 on drawn pictures, two steps on one CPU: all else as it is in the file."""
    torch.manual_seed(0)
    encoder = ImageEncoder("vit_base_patch16_siglip_224", 224, TINY)
    save_file(encoder.backbone.state_dict(), tmp_path / "siglip.safetensors")
    write_shards(image_records(16), tmp_path / "pictures", samples_per_shard=8)

    def written(file: Path, family: str, folder: Path) -> Path:
        config: Config = yaml.safe_load(file.read_text())
        if file == REAL:
            config["trainer"] |= {"accelerator": "cpu", "precision": "32-true", "logger": False}
            config["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
            config["trainer"]["callbacks"] = [
                config["trainer"]["callbacks"][0],
                {"class_path": "tests.pivot.watcher.Watcher", "init_args": {"folder": str(folder)}},
            ]
            network = config["model"]["network"]
            network["language_model"]["pretrained"] = str(language_models(family))
            network["image_encoder"] |= {"weights": str(tmp_path / "siglip.safetensors"), "options": TINY}
            network["bridge"] |= {"states": 4, "heads": 2, "width": 32}
            config["processor"]["max_tokens"] = 24  # the tiny ones hold 96
            config["data"]["loader"] = {"workers": 0}
        else:
            config["model"]["network"]["pretrained"] = str(tmp_path / "first" / "pretrained")
        config["trainer"] |= {"max_steps": 2, "default_root_dir": str(folder), "enable_checkpointing": False}
        for stream in config["data"]["streams"].values():
            stream |= {"batch_size": 2}
            if "shards" in stream:
                stream["shards"] = str(tmp_path / "pictures")
        if "translated" in config["data"]["streams"]:
            config["data"]["streams"]["translated"]["pairs"]["init_args"] |= {"languages": ["de"], "share": 0.5}
        place = folder / f"{file.stem}.yaml"
        folder.mkdir(exist_ok=True)
        place.write_text(yaml.safe_dump(config))
        return place

    return written


@pytest.mark.parametrize("family", ["qwen3", "llama", "bloom"])
def test_both_stages_of_the_real_config_run(tiny: Callable[..., Path], tmp_path: Path, family: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    main(["fit", "--config", str(tiny(REAL, family, first))])
    moving, _ = moved(first)
    assert moving and all(name.startswith("bridge.") for name in moving)
    files = tiny(REAL, family, second), tiny(SECOND, family, second)
    main(["fit", *(word for file in files for word in ("--config", str(file)))])
    moving, _ = moved(second)
    assert {name.partition(".")[0] for name in moving} == {"bridge", "language_model"}
    assert all("lora_" in name for name in moving if name.startswith("language_model."))
    told = json.loads((second / "pretrained" / "config.json").read_text())
    assert (told["presets"], told["languages"]) == (["chat_s1", "chat_s2"], ["de", "en"])
    model = ImageToText.from_pretrained(second / "pretrained")
    assert model.processor.template == "<image>\nDescribe the picture in {language}."
    assert len(model.answer([Prompt((picture(0),), "pt")], GenerationOptions(max_tokens=3))) == 1
