"""The card of a run says what the run was: data, recipe, last validation, licence."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from huggingface_hub import ModelCard

from cclm.models.model import CCLMModel
from cclm.training.facts import CONFIG_OF_RUN, start_of
from cclm.training.settings import NetworkSettings
from tests.training.conftest import Run


def test_the_card_of_a_run(fit: Run, data: Path, tmp_path: Path) -> None:
    export = {"folder": str(tmp_path / "model"), "initial": str(tmp_path / "first"), "licence": "cc-by-4.0"}
    folder = fit(
        trainer__callbacks=[{"class_path": "cclm.training.callbacks.Export", "init_args": export}],
        trainer__val_check_interval=4,
        trainer__check_val_every_n_epoch=None,
        trainer__limit_val_batches=1,
        data__validation={"own": {"shards": str(data / "photos"), "languages": ["en", "de"]}},
    )
    card = ModelCard.load(folder / "model" / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.language == ["de", "en", "fr"]
    photos, texts = (os.path.relpath(data / name, folder / "model") for name in ("photos", "texts"))
    assert f"| image | `{photos}` | 64 | " in card.text and f"| text | `{texts}` | 60 | " in card.text
    assert re.search(r"\| code \| cclm [\d.]+(, commit [0-9a-f]+\+?)? \|", card.text)
    assert "| contrastive, masked_lm, matching | 8 |" in card.text
    assert "| updates | 4 of 4 |" in card.text and "rate 0.001," in card.text and "2 steps of warm-up" in card.text
    assert "| own | de | image → text |" in card.text
    place = next(line for line in card.text.splitlines() if line.startswith("| whole configuration")).split("`")[1]
    assert (folder / "model" / place).name == CONFIG_OF_RUN and (folder / "model" / place).is_file()
    first = ModelCard.load(folder / "first" / "README.md").text
    assert "nothing learned yet" in first and "Last validation" not in first
    assert "SentenceTransformer" in card.text and not list((folder / "model").glob(".*"))


def test_a_run_from_other_weights_names_them_and_trains_in_float32(fit: Run, tmp_path: Path) -> None:
    def origin(folder: Path) -> str:
        return (folder / "README.md").read_text(encoding="utf-8").split("# ")[1]

    export = {"folder": str(tmp_path / "model"), "initial": str(tmp_path / "first")}
    callbacks = [{"class_path": "cclm.training.callbacks.Export", "init_args": export}]
    fit(trainer__callbacks=callbacks, trainer__max_steps=1)
    assert "Trained by `cclm fit`, starting from random weights." in origin(tmp_path / "model")
    CCLMModel.from_pretrained(tmp_path / "model").half().save_pretrained(tmp_path / "half")
    fit(trainer__callbacks=callbacks, model__network={"pretrained": str(tmp_path / "half")})
    assert "Trained by `cclm fit`, starting from `../half`." in origin(tmp_path / "model")
    assert "The start of a training from `../half`: nothing learned yet." in origin(tmp_path / "first")
    trained = CCLMModel.from_pretrained(tmp_path / "model").state_dict()
    assert {value.dtype for value in trained.values() if value.is_floating_point()} == {torch.float32}
    first = CCLMModel.from_pretrained(tmp_path / "first").state_dict()
    half = CCLMModel.from_pretrained(tmp_path / "half").state_dict()
    assert all(torch.equal(value, half[name].to(value.dtype)) for name, value in first.items())
    assert not all(torch.equal(value, half[name].to(value.dtype)) for name, value in trained.items())


def test_halves_that_were_given_are_named(tmp_path: Path) -> None:
    halves = NetworkSettings(backbone_weights="package:swin", text_weights="xlmr.safetensors")
    told = "the image encoder of `package:swin` and the text layers of `xlmr.safetensors`"
    assert start_of(halves, tmp_path) == told
    one = NetworkSettings(text_weights=str(tmp_path / "x"))
    assert start_of(one, tmp_path / "model") == "the text layers of `../x`"
    assert start_of(NetworkSettings(), tmp_path) == ""
