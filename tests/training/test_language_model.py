"""`cclm fit` of a language model: new or adapted, aligned or not, resumed, exported as a plain transformers folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.data.tokenizer import train_tokenizer
from cclm.pivot.generation import GenerationOptions
from cclm.pivot.language_model import LanguageModelSettings
from cclm.pivot.processor import PivotProcessor, PivotProcessorSettings
from cclm.training.language_model import LanguageModelSystem
from cclm.types import PromptBatch
from tests.data.conftest import WORDS, sentence, text_records
from tests.pivot.cards import arguments, block, checked
from tests.training.conftest import changed

Config = dict[str, Any]
PROMPT = "{text}<2{code}>"
GEOMETRIES = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "qwen3": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    | {"num_key_value_heads": 2},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}
ALIGNED = {
    "model__alignment": {"streams": ["pairs"], "layers": [1, 2]},
    "model__weights": {"pairs/contrastive": 0.5},
}


CONFIGS = Path(__file__).parents[2] / "configs" / "pivot"
PARAMETERS = {"scenes_lm": (240, 865_408), "photos_lm": (6000, 6_285_568)}  # by the tokenizers that their heads name


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*_lm*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configs_are_understood(file: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(file), "--print_config"])
    assert stop.value.code == 0
    understood = yaml.safe_load(capsys.readouterr().out)
    root, model = understood["trainer"]["default_root_dir"], understood["model"]
    assert root == f"runs/{file.stem}"
    assert understood["trainer"]["callbacks"][0]["init_args"]["folder"] == f"{root}/pretrained"
    aligned = (model["alignment"] or {"streams": []})["streams"]
    assert {*model["streams"], *aligned} == set(understood["data"]["streams"])
    assert f"cclm fit --config configs/pivot/{file.name}" in file.read_text()


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_models_from_scratch_have_the_size_they_tell(name: str) -> None:
    network = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["network"]
    vocabulary, parameters = PARAMETERS[name]
    model = LanguageModelSettings(**network).build(vocabulary, 0, 2, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shards(text_records(40), folder / "texts", samples_per_shard=20, rows_per_member=8)
    sentences = [sentence(language, n) for language in WORDS for n in range(200)]
    train_tokenizer(sentences, folder / "tokenizer", 90, languages=sorted(WORDS))
    return folder


@pytest.fixture
def fit(data: Path, tmp_path: Path) -> Callable[..., Path]:
    """Two steps of a new llama by default; what it logged is in steps.jsonl."""

    def run(*arguments: str, kind: str = "llama", aligned: bool = False, verb: str = "fit", **changes: Any) -> Path:
        callbacks = {
            "cclm.training.export.ExportFolder": {"folder": str(tmp_path / "model")},
            "tests.training.recorder.Recorder": {"file": str(tmp_path / "steps.jsonl")},
        }
        drawer = {"class_path": "cclm.data.pairs.Translation", "init_args": {"copy": 0.2}}
        captions = {"shards": str(data / "texts"), "batch_size": 6, "prompt": PROMPT, "pairs": drawer}
        pairs = {"shards": str(data / "texts"), "batch_size": 8, "pairs": {"class_path": "cclm.data.pairs.Translation"}}
        whole = {
            "system": "language_model",
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
            "processor": {"tokenizer": str(data / "tokenizer"), "max_tokens": 24},
            "model": {
                "network": {"config": {"model_type": kind} | GEOMETRIES[kind]},
                "streams": ["captions"],
                "optimizer": {"lr": 1e-2, "warmup_steps": 0, "schedule": "constant"},
            },
            "data": {"streams": {"captions": captions} | ({"pairs": pairs} if aligned else {})},
        }
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(changed(whole, **(deepcopy(ALIGNED) if aligned else {}), **changes)))
        main([verb, "--config", str(file), *arguments])
        return tmp_path

    return run


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_a_new_model_learns_to_translate_and_is_a_plain_folder(fit: Callable[..., Path], kind: str) -> None:
    folder = fit(kind=kind, trainer__max_steps=40, model__optimizer__lr=4e-3)
    losses = [float.fromhex(step["losses"]["train/captions/answers"]) for step in logged(folder)]
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert model.config.languages == sorted(WORDS)
    tags = tokenizer.convert_tokens_to_ids([f"<2{code}>" for code in WORDS])
    assert set(model.generation_config.eos_token_id) == {tokenizer.eos_token_id, *tags}, "a tag begins another answer"
    said = [{"role": "user", "content": f"{sentence('en', 3)}<2de>"}]
    ids = tokenizer.apply_chat_template(said, return_tensors="pt", return_dict=True)["input_ids"]
    assert ids.tolist()[0] == PivotProcessor.from_pretrained(folder / "model").prompt(PROMPT, "de", sentence("en", 3))
    written = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    ours = LanguageModelSettings(str(folder / "model")).build(len(tokenizer), 0, 2, 1).eval()
    (again,) = ours.generate(ours.embed(ids), torch.ones_like(ids).bool(), GenerationOptions(max_tokens=8))
    assert again == written[: len(again)]


@pytest.mark.parametrize("whole", [False, True])
def test_prompts_are_learned_where_they_are_to_be(data: Path, whole: bool) -> None:
    """Beside transformers' own loss, of the answers or of all that is no padding."""
    network = LanguageModelSettings(config={"model_type": "llama"} | GEOMETRIES["llama"])
    system = LanguageModelSystem(PivotProcessorSettings(str(data / "tokenizer")), network, ["captions"], whole=whole)
    processor = system.processor
    asked = [processor.prompt(PROMPT, "de", sentence("en", number)) for number in (3, 14)]
    answers = processor.answers([sentence("de", 3), f"{sentence('de', 14)} {sentence('de', 5)}"])
    prompts = processor.prompts(asked, answers)
    learned = prompts.input_ids.where(prompts.attention_mask, -100) if whole else prompts.labels
    assert (learned == -100).any() and int((learned != -100).sum()) == sum(map(len, answers + whole * asked))
    batch = PromptBatch("captions", prompts, ("3", "14"))
    (loss,) = system.stream_losses("captions", batch, torch.Generator()).values()
    wanted = system.model.plain(prompts.input_ids, attention_mask=prompts.attention_mask.long(), labels=learned).loss
    assert torch.allclose(loss, wanted, atol=1e-5)


def test_alignment_brings_states_of_translations_together(fit: Callable[..., Path]) -> None:
    folder = fit(aligned=True, trainer__max_steps=20, model__optimizer__lr=3e-3)
    first, *_, last = (float.fromhex(step["losses"]["train/pairs/contrastive"]) for step in logged(folder))
    assert last < 0.8 * first
    assert {name for name in logged(folder)[0]["losses"] if "/" in name} >= {
        "train/captions/answers",
        "train/pairs/contrastive",
    }


@pytest.mark.parametrize("chat_template", ["own", "plain"])
def test_its_card_tells_what_it_is_and_how_it_is_used(
    fit: Callable[..., Path], data: Path, tmp_path: Path, chat_template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fit(aligned=chat_template == "own", processor__chat_template=chat_template)
    card, names = checked(folder / "model", monkeypatch)
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert card.data.language == sorted(WORDS)
    asked = PivotProcessor.from_pretrained(folder / "model").prompt(PROMPT, "de", "a red ball")
    assert names["given"].input_ids[0].tolist() == asked
    assert "starting from random weights." in card.text and "llama, 2 layers of width 32, " in card.text
    assert "answers were in de, en, fr. It has met no pictures." in card.text
    assert ("| aligned layers | 1, 2 |" in card.text) == (chat_template == "own")
    command = block(card, "bash").replace("a split of sentence pairs", str(data / "texts"))
    main([*arguments(command, folder / "model"), "--sentences", "8"])
    assert (folder / "elsewhere" / "alignment.json").is_file()


def test_adapters_of_a_pretrained_model_train_alone(fit: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    fit(trainer__max_steps=3)
    (tmp_path / "model").rename(tmp_path / "first")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    keep = {"dirpath": str(tmp_path / "checkpoints")}
    network = {"pretrained": str(tmp_path / "first"), "lora": {"rank": 2}}
    fit(
        aligned=True,
        model__network=network,
        trainer__enable_checkpointing=True,
        trainer__callbacks=[
            {"class_path": "cclm.training.export.ExportFolder", "init_args": {"folder": str(tmp_path / "model")}},
            {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": keep},
        ],
    )
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.ckpt")
    held = set(torch.load(checkpoint, weights_only=True)["state_dict"])
    assert {name for name in held if "lora_" not in name} == {"logit_scale"} and len(held) > 1
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "model")  # merged
    moved = {
        name
        for (name, value), other in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(value, other)
    }
    assert moved and all("_proj" in name for name in moved)


def test_a_resumed_run_repeats_an_uninterrupted_one(fit: Callable[..., Path], tmp_path: Path) -> None:
    keep = {"dirpath": str(tmp_path / "checkpoints"), "every_n_train_steps": 2, "save_top_k": -1}
    callbacks = [
        {"class_path": "cclm.training.export.ExportFolder", "init_args": {"folder": str(tmp_path / "model")}},
        {"class_path": "tests.training.recorder.Recorder", "init_args": {"file": str(tmp_path / "steps.jsonl")}},
        {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": keep},
    ]
    changes = {"trainer__callbacks": callbacks, "trainer__enable_checkpointing": True, "trainer__max_steps": 5}
    fit(aligned=True, **changes)
    whole = logged(tmp_path)
    (checkpoint,) = (tmp_path / "checkpoints").glob("*step=2*")
    (tmp_path / "steps.jsonl").unlink()
    fit("--ckpt_path", str(checkpoint), aligned=True, **changes)
    assert logged(tmp_path) == whole[2:]


def test_the_loss_of_translations_is_measured_per_language(
    fit: Callable[..., Path], data: Path, capsys: pytest.CaptureFixture
) -> None:
    measured = {"shards": str(data / "texts"), "prompt": PROMPT, "languages": ["de"], "limit": 10, "batch_size": 4}
    fit(verb="validate", data__validation={"dev": measured})
    table = capsys.readouterr().out
    found = dict(re.findall(r"dev/(\w+)/answers/loss\W+([\d.]+)", table))
    assert set(found) == {"de", "en", "others"} and found["de"] == found["others"]
    assert all(2 < float(loss) < 9 for loss in found.values())


def test_a_tokenizer_without_chat_template_and_tags_is_one_line(
    fit: Callable[..., Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = tmp_path / "bare"
    train_tokenizer([sentence(language, n) for language in WORDS for n in range(200)], bare, 90)
    told = {
        "own": f"the tokenizer at {bare} has no chat template, as base models have none; set processor.chat_template",
        "plain": "data.streams.captions: language 'de' is unknown to this model; it has tags for none: train it",
    }
    drawer = {"languages": ["de"], "anchor": "en", "swap": 0.0}
    for chat_template, message in told.items():
        with pytest.raises(SystemExit):
            fit(
                processor__tokenizer=str(bare),
                processor__chat_template=chat_template,
                data__streams__captions__pairs__init_args=drawer,
            )
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("aligned", "changes", "message"),
    [
        (False, {"data__streams__captions__prompt": None}, "data.streams.captions has no prompt; give one"),
        (True, {"data__streams__pairs__prompt": PROMPT}, "its sentences are to be aligned; remove it"),
        (True, {"model__alignment__layers": [3]}, "layer 3: this language model has 0 (its embeddings) to 2"),
        (True, {"model__alignment__layers": []}, "model.alignment needs streams and layers"),
        (True, {"model__alignment__temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        (True, {"model__streams": ["captions", "pairs"]}, "both have 'pairs'; name it once"),
        (False, {"model__streams": ["sentences"]}, "streams ['sentences'], data.streams are ['captions']"),
        (False, {"data__streams__captions__prompt": "<image><2{code}>"}, "1 mark(s) <image> for 0 picture(s)"),
        (
            False,
            {"data__streams__captions__pairs__init_args": {"languages": ["xx"]}},
            "no text in language xx; there are",
        ),
        (
            False,
            {"model__network__config__max_position_embeddings": 8},
            "data.streams.captions: a prompt of 26 tokens and an answer of up to 25, but the language model holds 8; "
            "shorten the prompt, give a picture fewer states or lower max_tokens",
        ),
        (
            True,
            {"data__streams__pairs__max_tokens": 5000},
            "data.streams.pairs: a prompt of 5000 tokens, but the language model holds ",
        ),
        (False, {"model__network__config__hidden_size": 30}, "language_model.config: no llama comes out of it"),
        (
            False,
            {"data__validation": {"dev": {"shards": "{texts}", "prompt": "<image>{text}<2{code}>"}}},
            "validation set dev: prompt '<image>{text}<2{code}>' has 1 mark(s) <image> for 0 picture(s)",
        ),
        (False, {"data__validation": {"dev": {"shards": "nowhere", "prompt": PROMPT}}}, "validation set dev"),
    ],
)
def test_what_does_not_fit_is_one_line(
    fit: Callable[..., Path], capsys: pytest.CaptureFixture, data: Path, aligned: bool, changes: Config, message: str
) -> None:
    if "{texts}" in str(changes):
        changes["data__validation"]["dev"]["shards"] = str(data / "texts")
    with pytest.raises(SystemExit):
        fit(aligned=aligned, **changes)
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
