"""What fine-tuning rests on: which parameters train, on one process and on two; what a run starts from; how the best
step is chosen."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings, load_tokenizer
from cclm.training.settings import NetworkSettings
from tests.finetune.conftest import CONFIGS, TINY, Bench, read

WHOLE = sorted(file.stem for file in CONFIGS.glob("*.yaml") if file.stem != "few_shot")
NEW = {"retrieval": set(), "xgqa_answer": set(), "nlvr2_domain": {"assign_head"}}  # else the classifier
FAMILIES = {"cclm_3m_384": "cclm_3m_epoch_29", "cclm_x2vlm_base_384": "cclm_x2vlm_base"}


def starts(name: str) -> list[str]:
    """The families that a config fine-tunes: interleaved blocks are the form of CCLM-3M and CCLM-4M alone."""
    interleaved = read(name)["model"]["network"]["config"].get("several_images") == "interleaved"
    return list(FAMILIES)[: 1 if interleaved else None]


class Gradients(pl.Callback):
    """Writes which parameters wait for a gradient in vain, and the rates there are."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_before_optimizer_step(self, trainer: pl.Trainer, system: pl.LightningModule, optimizer: Any) -> None:
        named = system.model.named_parameters()
        unused = [name for name, value in named if value.requires_grad and value.grad is None]
        rates = {name: group["initial_lr"] for group in optimizer.param_groups for name in group["names"]}
        self.file.write_text(json.dumps({"unused": unused, "rates": rates}))


def start(clone: Bench, folder: str) -> str:
    """A converted checkpoint of either family."""
    if not Path(f"weights/{folder}").exists():
        name = f"weights/{FAMILIES[folder]}.th"
        clone.run(["convert", name, f"weights/{folder}", "--tokenizer", "xlm-roberta-large", "--image-size", "384"])
    return f"weights/{folder}"


@pytest.mark.parametrize(("name", "folder"), [(name, folder) for name in WHOLE for folder in starts(name)])
def test_every_parameter_trains(clone: Bench, name: str, folder: str) -> None:
    """As strategy ddp requires; what no weights filled at twice the rate. Each config starts from either family."""
    config = read(name)
    if name != "nlvr2_domain":
        clone.prepare(name)
    callbacks = [{"class_path": f"{__name__}.Gradients", "init_args": {"file": "gradients.json"}}]
    changes = {"trainer__callbacks": callbacks, "trainer__default_root_dir": "runs/gradients"}
    if name == "nlvr2_domain":
        changes |= domain_data(clone)
    clone.fit(name, "--model.network.pretrained", start(clone, folder), steps=1, **changes)
    found = json.loads(Path("gradients.json").read_text())
    assert config["trainer"]["strategy"] == "ddp" and found["unused"] == []
    lr = TINY["model__optimizer__lr"]
    twice = {parameter for parameter, rate in found["rates"].items() if rate == pytest.approx(2 * lr)}
    assert {parameter.split(".")[0] for parameter in twice} == NEW.get(name, {"class_head"})
    assert {round(rate / lr, 6) for rate in found["rates"].values()} <= {1.0, 2.0}


def domain_data(clone: Bench) -> dict[str, Any]:
    """Captions for the domain pre-training, of which the real recipe would need an archive of the web."""
    if not Path("data/flickr30k").exists():
        clone.run(["data", "build", "captions", "--source", "raw/flickr30k", "--output", "data/flickr30k"])
    return {
        "data__streams__captions__shards": "data/flickr30k/train",
        "data__streams__captions__pairs__init_args__languages": ["en"],
    }


def test_marvl_starts_from_the_domain_run(clone: Bench) -> None:
    """Its interleaved blocks, by now different from each other, go over as they are, to a larger image as well."""
    clone.fit("nlvr2_domain", "--model.network.pretrained", start(clone, "cclm_3m_384"), steps=6, **domain_data(clone))
    folder = "runs/nlvr2_domain/pretrained"
    before = CCLMModel.from_pretrained(folder)
    kept, other = (before.fusion.blocks[index].attention.query.weight for index in (0, 1))
    assert not torch.equal(kept, other)
    settings = read("marvl")["model"]["network"] | {"pretrained": folder}
    processor = CCLMProcessor(load_tokenizer(folder), ImageSettings(image_size=128))
    model, new = NetworkSettings(**settings).build(processor)
    assert {name.split(".")[0] for name in new} == {"class_head"}
    ours, theirs = model.state_dict(), before.state_dict()
    same = {name for name in ours.keys() & theirs.keys() if torch.equal(ours[name], theirs[name])}
    tables = {name for name in ours if name.endswith("relative_position_bias_table")}
    assert set(ours) - same == tables | {name for name in ours if name.startswith("class_head")}
    assert {len(ours[name]) for name in tables} == {49} and {len(theirs[name]) for name in tables} == {9}
    clone.prepare("marvl")
    clone.fit("marvl", "--model.network.pretrained", folder, steps=2)  # as the head says


def test_few_shots_go_on_from_the_english_model(clone: Bench) -> None:
    """The second file alone makes a few-shot run of an English one: other weights, shards, rate and language."""
    clone.prepare("xvnli")
    clone.fit("xvnli", steps=2)
    before = CCLMModel.from_pretrained("runs/xvnli/pretrained")
    few = yaml.safe_load((CONFIGS / "few_shot.yaml").read_text())
    few["trainer"]["max_steps"], few["data"]["loader"]["workers"] = 1, 0
    Path("few.yaml").write_text(yaml.safe_dump(few))
    clone.fit("xvnli", "--config", "few.yaml", steps=2)
    after = CCLMModel.from_pretrained("runs/few_shot/pretrained")
    with torch.no_grad():
        moved = max(float((a - b).abs().max()) for a, b in zip(after.parameters(), before.parameters(), strict=True))
    assert 0 < moved < 2e-6  # one step at half of 1e-6, not a new classifier
    assert not Path("runs/few_shot/pretrained/choice.json").exists()
    report = clone.evaluate("few_shot")
    assert list(report["languages"]) == ["ar"] and report["languages"]["ar"]["statements"]["statements"] == 163


def best_on_test(clone: Bench, choose_on_test: bool) -> None:
    sets = {"xvnli_test": {"shards": "data/xvnli/test", "head": "classify", "languages": ["en"]}}
    export = {"folder": "runs/on_test/pretrained", "best": "xvnli_test/en/statements/accuracy"}
    callbacks = [
        {
            "class_path": "cclm.training.callbacks.Export",
            "init_args": export | {"choose_on_test": choose_on_test},
        }
    ]
    clone.fit("xvnli", steps=2, data__statements=sets, trainer__callbacks=callbacks)


def test_a_test_split_chooses_only_if_asked(clone: Bench, capsys: pytest.CaptureFixture) -> None:
    clone.prepare("xvnli")
    with pytest.raises(SystemExit):
        best_on_test(clone, choose_on_test=False)
    error = capsys.readouterr().err
    assert re.fullmatch(r"cclm: export: best would choose the model on data/xvnli/test, a test split; .*\n", error)
    assert not Path("runs/on_test").exists()
    best_on_test(clone, choose_on_test=True)
    choice = json.loads(Path("runs/on_test/pretrained/choice.json").read_text())
    assert choice["test"] and choice["step"] in (1, 2)
    command = "evaluate statements --model runs/on_test/pretrained --data data/xvnli/test --output runs/on_test/r.json"
    clone.run(command.split())
    assert "data/xvnli/test, A TEST SPLIT" in " ".join(capsys.readouterr().out.split())
    assert "A TEST SPLIT" in Path("runs/on_test/r.json").read_text()
    assert "A TEST SPLIT" in Path("runs/on_test/pretrained/README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best": "xvnli_dev/en/statements/acuracy"}, "measures 'acuracy'; name one of .* (did you mean accuracy?)"),
        ({"best": "xvnli_dev/fr/statements/accuracy"}, "the set xvnli_dev measures en alone"),
    ],
)
def test_a_metric_that_nothing_measures_is_told_at_once(
    clone: Bench, capsys: pytest.CaptureFixture, changes: dict[str, str], message: str
) -> None:
    clone.prepare("xvnli")
    export = {"folder": "runs/typo/pretrained"} | changes
    callbacks = [{"class_path": "cclm.training.callbacks.Export", "init_args": export}]
    with pytest.raises(SystemExit):
        clone.fit("xvnli", steps=2, trainer__callbacks=callbacks)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message.replace("(", r"\(").replace("?)", r"\?\)"), error)
    assert not Path("runs/typo").exists()


def test_labels_in_another_order_are_refused(clone: Bench, capsys: pytest.CaptureFixture) -> None:
    """Over a head that knows them in its own order, every class would change its meaning."""
    clone.prepare("xvnli")
    start(clone, "cclm_3m_384")
    clone.fit("xvnli", steps=2)
    mixed = {"pretrained": "runs/xvnli/pretrained", "labels": ["neutral", "contradiction", "entailment"]}
    with pytest.raises(SystemExit):
        clone.fit("xvnli", steps=2, **{f"model__network__{name}": value for name, value in mixed.items()})
    assert "in another order (contradiction, entailment, neutral ..)" in capsys.readouterr().err


def test_the_best_step_is_kept_not_the_last(clone: Bench) -> None:
    """Of a run whose model is ruined before the last of three validations."""
    clone.prepare("xvnli")
    start(clone, "cclm_3m_384")
    ruin = {"class_path": f"{__name__}.Ruin", "init_args": {"after": 40}}
    callbacks = [*read("xvnli")["trainer"]["callbacks"], ruin]
    clone.fit("xvnli", steps=42, data__loader__steps_per_epoch=14, trainer__callbacks=callbacks)
    choice = json.loads(Path("runs/xvnli/pretrained/choice.json").read_text())
    assert choice["step"] in (14, 28)
    report = clone.evaluate("xvnli")
    assert report["languages"]["en"]["statements"]["accuracy"] == pytest.approx(choice["value"])
    assert f"step {choice['step']}, the best by xvnli_dev" in json.dumps(report)


class Ruin(pl.Callback):
    """Sets every weight of the head to 0 after a step: from there on it says the same of everything."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: pl.Trainer, system: pl.LightningModule, *rest: Any) -> None:
        if trainer.global_step >= self.after:
            for value in system.model.class_head.parameters():
                value.data.zero_()


def test_two_processes_train_validate_and_export(clone: Bench) -> None:
    """Every process runs all validation sets, and all agree on what is the best."""
    clone.prepare("xvnli")
    sets = {name: {"shards": f"data/xvnli/{name}", "head": "classify", "languages": ["en"]} for name in ("dev", "test")}
    export = {"folder": "runs/two/pretrained", "best": "dev/en/statements/accuracy"}
    changes = {
        "trainer__devices": 2,
        "trainer__strategy": "ddp",
        "trainer__max_steps": 4,
        "trainer__default_root_dir": "runs/two",
        "trainer__callbacks": [{"class_path": "cclm.training.callbacks.Export", "init_args": export}],
        "data__loader__steps_per_epoch": 2,
        "data__streams__statements__batch_size": 4,
        "data__statements": sets,
    }
    file = clone.write("xvnli", TINY | changes)
    # A script of its own: the first process starts the second with the same command.
    Path("two.py").write_text("from cclm.cli import main\nif __name__ == '__main__':\n    main()\n")
    places = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "two.py", "fit", "--config", file],
        env=os.environ | {"PYTHONPATH": places},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # two processes that wait for each other hear nothing softer
        raise
    assert process.returncode == 0, errors
    assert errors.count("dev/en/statements/accuracy") == errors.count("test/en/statements/accuracy") == 4
    assert json.loads(Path("runs/two/pretrained/choice.json").read_text())["step"] in (2, 4)
