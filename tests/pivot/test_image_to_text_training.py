"""`cclm fit` of a model that sees: what a preset names moves, all else stays to the bit; cache, resuming, export."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from cclm.cli import main
from cclm.data.seeding import random_of
from cclm.data.shards import write_shards
from cclm.pivot.generation import GenerationOptions
from cclm.pivot.image_to_text import ImageToText, Prompt
from cclm.types import Record
from tests.data.conftest import image_records, sentence, text_records
from tests.pivot.cards import arguments, block, checked
from tests.pivot.conftest import FAMILIES, picture
from tests.pivot.watcher import moved
from tests.training.conftest import changed

Config = dict[str, Any]
Run = Callable[..., Path]
PROMPT = "<image><2{code}>"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    parallel = [{language: sentence(language, n) for language in ("en", "de", "fr")} for n in range(48)]
    records = [
        Record(record.key, record.image, {"en": record.captions["en"]}, told)
        for record, told in zip(image_records(48), parallel, strict=True)
    ]
    write_shards(records, folder / "photos", samples_per_shard=16)
    write_shards(text_records(30), folder / "texts", samples_per_shard=20, rows_per_member=8)
    return folder


@pytest.fixture
def config(
    data: Path, tmp_path: Path, language_models: Callable[..., Path], encoder_weights: Path
) -> Callable[..., Config]:
    def made(family: str = "llama", **changes: Any) -> Config:
        callbacks = {
            "cclm.training.export.ExportFolder": {"folder": str(tmp_path / "model")},
            "tests.training.recorder.Recorder": {"file": str(tmp_path / "steps.jsonl")},
            "tests.pivot.watcher.Watcher": {"folder": str(tmp_path)},
        }
        stream = {
            "shards": str(data / "photos"),
            "batch_size": 6,
            "prompt": PROMPT,
            "pairs": {"class_path": "cclm.data.pairs.ImageCaption", "init_args": {"languages": ["en"]}},
        }
        whole = {
            "system": "image_to_text",
            "seed_everything": 3,
            "trainer": {
                "max_steps": 2,
                "accelerator": "cpu",
                "default_root_dir": str(tmp_path),
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "callbacks": [{"class_path": name, "init_args": given} for name, given in callbacks.items()],
            },
            "processor": {
                "tokenizer": str(language_models(family)),
                "max_tokens": 24,
                "image": {"image_size": 32},
            },
            "model": {
                "network": {
                    "language_model": {"pretrained": str(language_models(family))},
                    "image_encoder": {"backbone": "test_resnet", "weights": str(encoder_weights)},
                    "bridge": {"kind": "resampler", "states": 4, "depth": 1, "heads": 2},
                },
                "streams": ["photos"],
                "optimizer": {"lr": 1e-2, "warmup_steps": 0, "schedule": "constant"},
            },
            "data": {"streams": {"photos": stream}},
        }
        return changed(whole, **changes)

    return made


@pytest.fixture
def fit(config: Callable[..., Config], tmp_path: Path) -> Run:
    def run(*arguments: str, family: str = "llama", verb: str = "fit", **changes: Any) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config(family, **changes)))
        main([verb, "--config", str(file), *arguments])
        return tmp_path

    return run


def steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


LORA = {"model__network__language_model__lora": {"rank": 2}}
STAGES = {  # what trains by name
    "chat_s1": ({"model__preset": "chat_s1"}, ("bridge.",)),
    "chat_s1_image_encoder": ({"model__preset": "chat_s1_image_encoder"}, ("bridge.", "image_encoder.")),
    "chat_s2_lora": ({"model__preset": "chat_s2"} | LORA, ("bridge.", "lora_")),
    "chat_s2_full": ({"model__preset": "chat_s2"}, ("bridge.", "language_model.")),
}


@pytest.mark.parametrize(
    ("stage", "family"),
    [*((stage, family) for stage in STAGES if "image" not in stage for family in FAMILIES)]
    + [("chat_s1_image_encoder", "llama")],
)
def test_two_steps_move_what_the_preset_names_and_nothing_else(fit: Run, stage: str, family: str) -> None:
    changes, parts = STAGES[stage]
    folder = fit(family=family, **changes)
    moving, still = moved(folder)
    named = {name for name in moving | still if any(part in name for part in parts)}
    assert moving <= named
    left = {name for name in named - moving if "key.bias" not in name}  # a bias of keys moves no attention
    assert not left, left
    kept = load_file(folder / "model" / "model.safetensors")
    assert set(kept) == named
    after = torch.load(folder / "after.pt", weights_only=True)
    assert all(torch.equal(value, after[name]) for name, value in kept.items())
    training = (folder / "training.txt").read_text().splitlines()
    assert any(name.startswith("image_encoder") for name in training) == (stage == "chat_s1_image_encoder")
    assert any(name.startswith("language_model") for name in training) == stage.startswith("chat_s2")
    model = ImageToText.from_pretrained(folder / "model")
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items() if name in after)


def test_the_export_answers_and_tells_what_it_met(fit: Run) -> None:
    folder = fit()
    model = ImageToText.from_pretrained(folder / "model")
    assert model.processor.template == PROMPT
    assert len(model.answer([Prompt((picture(0),), "de")], GenerationOptions(max_tokens=4))) == 1
    told = json.loads((folder / "model" / "config.json").read_text())
    assert (told["presets"], told["languages"], told["translated"]) == (["chat_s1"], ["en"], {})
    assert all(value < 10 for value in map(float.fromhex, steps(folder)[0]["losses"].values()))


def test_its_card_tells_what_it_is_and_how_it_is_used(
    fit: Run, data: Path, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"shards": str(data / "photos"), "prompt": PROMPT, "languages": ["en", "de"], "limit": 10}
    callbacks = config()["trainer"]["callbacks"]
    callbacks[0]["init_args"] |= {"licence": "apache-2.0", "lowest": "dev/en/answers/loss"}
    folder = fit(
        trainer__callbacks=callbacks,
        trainer__val_check_interval=2,
        trainer__check_val_every_n_epoch=None,
        data__validation={"dev": measured},
        model__alignment={"streams": ["photos"], "layers": [1, 2]},
    )
    card, names = checked(folder / "model", monkeypatch)
    assert card.data.to_dict() == {
        "language": ["de", "en", "fr"],
        "license": "apache-2.0",
        "library_name": "cclm",
        "pipeline_tag": "image-to-text",
        "tags": ["cclm", "multilingual", "pivot", "image-captioning"],
    }
    assert len(names["answers"]) == 1
    for line in (
        "| de | no | zero-shot |",
        "| en | yes | supervised |",
        "| bridge | resampler, 4 states of a picture | in this folder |",
        "| preset | chat_s1: the bridge; language model and image encoder frozen |",
        "| aligned layers | 1, 2 |",
        "| updates | 2 of 2 |",
        "| dev | others | ",
        "Trained with the prompt `<image><2{code}>`",
    ):
        assert line in card.text
    assert "language_models" in card.text and "llama0`, seen from here |" in card.text
    assert "step 2, the lowest dev/en/answers/loss (" in card.text
    photos = os.path.relpath(data / "photos", folder / "model")
    assert f"| photos | `{photos}` | 48 | en 48 | answers, alignment | 6 |" in card.text
    report = folder / "report.json"
    words = arguments(block(card, "bash").splitlines()[1], folder / "model")
    words[words.index("a split")] = str(data / "photos")
    words[words.index("report.json")] = str(report)
    main([*words, "--draws", "0"])
    again = ModelCard.load(folder / "model" / "README.md").text
    assert "None yet: `cclm evaluate captions`" in card.text and "None yet" not in again
    assert f"`report.json`: captions on `{photos}`" in again and "| de | parallel |" in again


def test_the_card_of_translations_and_of_a_second_stage(
    fit: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit()
    (tmp_path / "model").rename(tmp_path / "first")
    parallel = {"texts": "parallel", "share": 0.5, "languages": ["de"]}
    translated = {
        "shards": str(data / "photos"),
        "batch_size": 4,
        "prompt": PROMPT,
        "pairs": {"class_path": "cclm.data.pairs.ImageCaption", "init_args": parallel},
    }
    later = {"model__preset": "chat_s2", "model__network__pretrained": str(tmp_path / "first")} | LORA
    folder = fit(**later, model__streams=["translated"], data__streams={"translated": translated})
    card, _ = checked(folder / "model", monkeypatch)
    assert "starting from `../first`." in card.text and "what trained: in this folder |" in card.text
    assert "| de | as translations, with 50% of the pictures | quasi-zero-shot |" in card.text
    assert "| en | yes | supervised |" in card.text and "| fr | no | zero-shot |" in card.text
    assert "--language fr" in block(card, "bash")


def test_cached_states_train_as_the_pictures_do(fit: Run, data: Path, tmp_path: Path) -> None:
    """A second stream over the same pictures brings translations of a part of them, and a third texts alone."""
    photos = {"shards": str(data / "photos"), "batch_size": 4, "prompt": PROMPT}
    kind = "cclm.data.pairs.ImageCaption"
    parallel = {"texts": "parallel", "share": 0.5, "languages": ["de", "fr"]}
    translation = {"class_path": "cclm.data.pairs.Translation", "init_args": {"anchor": "en"}}
    streams = {
        "photos": photos | {"pairs": {"class_path": kind, "init_args": {"languages": ["en"]}}},
        "translated": photos | {"pairs": {"class_path": kind, "init_args": parallel}},
        "texts": photos | {"shards": str(data / "texts"), "prompt": "{text}<2{code}>", "pairs": translation},
    }
    changes = {
        "model__streams": list(streams),
        "model__weights": {"translated/answers": 0.5},
        "data__streams": streams,
        "data__loader": {"cache": str(tmp_path / "cache"), "versions": 2},
        "data__validation": {"dev": {"shards": str(data / "photos"), "prompt": PROMPT, "limit": 10, "batch_size": 4}},
        "trainer__max_steps": 3,
        "trainer__val_check_interval": 3,
        "trainer__check_val_every_n_epoch": None,
    }
    folder = fit(**changes)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # in two versions for training, in one for the dev set
    last = steps(folder)[-1]
    assert {"train/photos/answers", "train/translated/answers", "train/texts/answers"} <= set(last["losses"])
    keys = {key for step in steps(folder) for key in step["keys"]["translated"]}
    assert keys and all(random_of("share", key).random() < 0.5 for key in keys)
    told = json.loads((folder / "model" / "config.json").read_text())
    assert told["languages"] == ["de", "en", "fr"] and told["translated"] == {"de": 0.5, "fr": 0.5}


def test_the_loss_of_answers_is_measured_per_language(
    fit: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    measured = {"shards": str(data / "photos"), "prompt": PROMPT, "languages": ["en", "de"], "limit": 10}
    found = {}
    for cache in (None, str(tmp_path / "cache")):
        fit(verb="validate", data__validation={"dev": measured}, data__loader={"cache": cache})
        table = capsys.readouterr().out
        found[cache] = [line.split()[-2] for line in table.splitlines() if "answers/loss" in line]
    assert len(found[None]) == 3  # en, de, and the mean of the others
    first, second = ([float(value) for value in values] for values in found.values())
    assert first == pytest.approx(second, abs=2e-3)  # the cache is in half precision


def test_the_best_by_a_loss_is_exported(fit: Run, data: Path, config: Callable[..., Config], tmp_path: Path) -> None:
    """A rate that ruins the model after the first validation: the folder is of that one."""
    measured = {"shards": str(data / "photos"), "prompt": PROMPT, "languages": ["en"], "limit": 10}
    callbacks = config()["trainer"]["callbacks"]
    callbacks[0]["init_args"]["lowest"] = "dev/en/answers/loss"
    changes = {
        "trainer__callbacks": callbacks,
        "trainer__max_steps": 6,
        "trainer__val_check_interval": 1,
        "trainer__check_val_every_n_epoch": None,
        "model__preset": "chat_s2",
        "model__optimizer__lr": 3.0,
        "data__validation": {"dev": measured},
    }
    folder = fit(**changes)
    kept, after = load_file(folder / "model" / "model.safetensors"), torch.load(folder / "after.pt", weights_only=True)
    assert any(not torch.equal(value, after[name]) for name, value in kept.items())


def test_a_resumed_run_repeats_an_uninterrupted_one(
    fit: Run,
    config: Callable[..., Config],
    tmp_path: Path,
    language_models: Callable[..., Path],
    capsys: pytest.CaptureFixture,
) -> None:
    keep = {"dirpath": str(tmp_path / "checkpoints"), "every_n_train_steps": 2, "save_top_k": -1}
    saving = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": keep}
    changes = {
        "trainer__callbacks": [*config()["trainer"]["callbacks"], saving],
        "trainer__enable_checkpointing": True,
        "trainer__max_steps": 6,
        "model__preset": "chat_s2",
        **LORA,
    }
    fit(**changes)
    whole, after = steps(tmp_path), torch.load(tmp_path / "after.pt", weights_only=True)
    (checkpoint,) = (tmp_path / "checkpoints").glob("*step=2*")
    (tmp_path / "steps.jsonl").unlink()
    fit("--ckpt_path", str(checkpoint), **changes)
    assert steps(tmp_path) == whole[2:]
    again = torch.load(tmp_path / "after.pt", weights_only=True)
    assert all(torch.equal(value, again[name]) for name, value in after.items())
    held = set(torch.load(checkpoint, weights_only=True)["state_dict"])
    assert held and all(name.startswith("model.bridge.") or "lora_" in name for name in held)
    changes["model__network__language_model__pretrained"] = str(language_models("llama", seed=7))
    with pytest.raises(SystemExit):
        fit("--ckpt_path", str(checkpoint), **changes)
    told = "the checkpoint was made with another language model than the config's; resume with the one that it was made"
    assert told in capsys.readouterr().err


def test_pictures_are_aligned_with_their_captions(fit: Run, config: Callable[..., Config], tmp_path: Path) -> None:
    """Its temperature learns with the bridge, and a run resumed in the middle goes on to the bit."""
    keep = {"dirpath": str(tmp_path / "checkpoints"), "every_n_train_steps": 2, "save_top_k": -1}
    saving = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": keep}
    changes = {
        "model__alignment": {"streams": ["photos"], "layers": [1, 2]},
        "model__weights": {"photos/alignment": 0.5},
        "trainer__callbacks": [*config()["trainer"]["callbacks"], saving],
        "trainer__enable_checkpointing": True,
        "trainer__max_steps": 4,
    }
    fit(**changes)
    whole = steps(tmp_path)
    moving, _ = moved(tmp_path)
    assert {"train/photos/answers", "train/photos/alignment"} <= set(whole[0]["losses"])
    assert moving and all(name.startswith("bridge.") for name in moving)
    (checkpoint,) = (tmp_path / "checkpoints").glob("*step=2*")
    held = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in held} == {"model", "logit_scale"}
    assert float(held["logit_scale"]) != pytest.approx(math.log(1 / 0.07), abs=1e-6)
    (tmp_path / "steps.jsonl").unlink()
    fit("--ckpt_path", str(checkpoint), **changes)
    assert steps(tmp_path) == whole[2:]


def test_a_second_stage_starts_from_the_first(fit: Run, tmp_path: Path) -> None:
    fit()
    (tmp_path / "model").rename(tmp_path / "first")
    later = {"model__preset": "chat_s2", "model__network__pretrained": str(tmp_path / "first")} | LORA
    fit(**later)
    before = torch.load(tmp_path / "before.pt", weights_only=True)
    first = load_file(tmp_path / "first" / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in first.items())
    told = json.loads((tmp_path / "model" / "config.json").read_text())
    assert told["presets"] == ["chat_s1", "chat_s2"] and told["languages"] == ["en"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__preset": "chat_s9"}, "preset is 'chat_s9'; choose one of chat_s1,"),
        ({"model__streams": ["pictures"]}, "streams ['pictures'], data.streams are ['photos']"),
        ({"data__streams__photos__prompt": None}, "data.streams.photos has no prompt; give one"),
        ({"data__streams__photos__prompt": "<2{code}>"}, "stream photos: prompt '<2{code}>' has 0 mark(s) <image> for"),
        (
            {"data__validation": {"dev": {"shards": "{photos}", "prompt": "<2{code}>"}}},
            "validation set dev: prompt '<2{code}>' has 0 mark(s) <image> for 1 picture(s)",
        ),
        ({"data__streams__photos__prompt": "<image><image><2{code}>"}, "has 2 mark(s) <image> for 1 picture(s)"),
        ({"data__streams__photos__prompt": "<image>{word}"}, "has a field {word}; there are {text}"),
        ({"data__streams__photos__pairs__init_args__languages": ["xx"]}, "no text in language xx; there are de, en"),
        (
            {"model__network__bridge__states": 70},
            "data.streams.photos: a prompt of 72 tokens and an answer of up to 25, but the language model holds 96",
        ),
        ({"model__preset": "chat_s1_image_encoder", "data__loader__cache": "x"}, "an image encoder that still trains"),
        ({"model__optimizer__frozen": ["bridge"]}, "optimizer.frozen leaves nothing to train"),
        ({"model__alignment": {"streams": ["photos"], "layers": []}}, "model.alignment needs streams and layers"),
        ({"model__alignment": {"streams": ["x"], "layers": [1]}}, "names 'x', which is not among model.streams"),
        ({"model__alignment": {"streams": ["photos"], "layers": [9]}}, "layer 9: this language model has 0"),
        ({"model__network__bridge__heads": 3}, "bridge.heads is 3, which does not divide its width 32"),
        ({"model__network__language_model__pretrained": "runs/none"}, "no language model at runs/none"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    fit: Run, capsys: pytest.CaptureFixture, data: Path, changes: Config, message: str
) -> None:
    if "data__validation" in changes:
        changes["data__validation"]["dev"]["shards"] = str(data / "photos")
    with pytest.raises(SystemExit) as stop:
        fit(**changes)
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and message in error[-1] and error[-1].startswith("cclm: ")


def test_a_folder_of_another_kind_is_not_replaced(fit: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "cclm"}')
    with pytest.raises(SystemExit):
        fit()
    assert "holds a model of another kind, which is not replaced" in capsys.readouterr().err
