"""`cclm iglue run` on the benchmarks' real files, with drawn pictures: every regime, caches, refusals, a killed run."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cclm.cli import main
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.task import find
from cclm.models.model import CCLMModel
from cclm.storage import folder_hash
from cclm.training.finetune_config import CONFIGS, Recipe
from tests.evaluation.iglue.start import changes, start_model

CLASSIFY = (
    f"xgqa={CONFIGS / 'xgqa_classify.yaml'}"  # the decoder of the published one takes a minute on 9,666 questions
)
XVNLI = ("--tasks", "xvnli", "--train", "xvnli=train_48", "--dev", "xvnli=train_5")

THREE = ("--regime", "zero-shot,few-shot,translate-test", "--languages", "ar", "--shots", "1,10")
THREE += ("--rates", "1e-3,1e-5", "--epochs", "5")
MAX = ("--regime", "max-shot", "--languages", "ar", "--rates", "1e-3", "--epochs", "2")


@dataclass
class Bench:
    folder: Path
    bundle: Path
    start: Path
    config: Path

    def arguments(self, *given: str, output: str = "run") -> list[str]:
        about = ("--model", str(self.start), "--data", str(self.bundle), "--output", str(self.folder / output))
        pictures = () if "--images" in given else ("--stand-in-images",)
        return ["iglue", "run", *about, *pictures, "--config", str(self.config), *given]

    def run(self, capsys: pytest.CaptureFixture[str], *given: str, output: str = "run") -> list[dict[str, Any]]:
        capsys.readouterr()
        main([*self.arguments(*given, output=output), "--json"])
        return json.loads(capsys.readouterr().out)

    def refused(self, capsys: pytest.CaptureFixture[str], *given: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(self.arguments(*given, output="refused"))
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1
        return error

    def files(self, pattern: str, output: str = "run") -> dict[str, int]:
        """When each was written."""
        root = self.folder / output
        found = (path for path in root.glob(pattern) if path.is_file())
        return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def bench(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("run")
    return Bench(folder, bundle, start_model(bundle, folder), changes(folder))


def test_xvnli_in_three_regimes(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench.run(capsys, *XVNLI, *THREE)
    assert [(each["regime"], each["shots"], each["split"]) for each in found] == [
        ("zero-shot", "", "test"),
        ("few-shot", "1", "test"),
        ("few-shot", "10", "test"),
        ("translate-test", "", "test_translated"),
    ]
    for each in found:
        assert (each["task"], each["language"], each["protocol"], each["items"]) == ("xvnli", "ar", "official", 1164)
        assert 0 < each["accuracy"] < 100
        assert each["system"] == str(bench.start)
        assert {
            "trained on train_48 in en, not the official train",
            "chosen on train_5 in en, not the official dev",
            StandIns.note,
        } <= set(each["notes"])
    training = found[2]["provenance"]["training"]
    assert training["train"] == "train_10 in ar" and training["english"]["train"] == "train_48 in en"
    assert training["examples"] == 38  # 39 rows, one of them without a label
    assert set(training["rates"]) == {"0.001", "1e-05"}
    assert training["value"] == max(training["rates"].values()) == training["rates"][f"{training['rate']:g}"]

    # The same again: nothing is trained, nothing is scored, the numbers are the same.
    before = bench.files("**/*")
    assert bench.run(capsys, *XVNLI, *THREE) == found
    assert bench.files("**/*") == before
    # Of the rates that were tried the best alone keeps its weights.
    kept = [path for path in before if path.startswith("models/xvnli-ar-10-") and path.endswith("model.safetensors")]
    assert len(kept) == 1 and len(bench.files("models/xvnli-ar-10-*/finished.json")) == 2

    # Another config is another model; the English one stays.
    other = bench.run(capsys, *XVNLI, *MAX)
    assert [(each["regime"], each["shots"]) for each in other] == [("max-shot", "48")]
    assert len(bench.files("models/xvnli-en-*/finished.json")) == 1
    assert before.items() <= bench.files("**/*").items()


def test_a_model_that_was_fine_tuned_before(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(capsys, *XVNLI, "--regime", "zero-shot", "--languages", "en")
    (english,) = (bench.folder / "run").glob("models/xvnli-en-*/pretrained")
    given = ("--finetuned", f"xvnli={english}", "--regime", "zero-shot", "--languages", "en", "--tasks", "xvnli")
    (found,) = bench.run(capsys, *given, "--system", "mine", output="finetuned")
    told = {f"fine-tuned before: {english}", "trained on train_48 in en, not the official train"}
    assert told <= set(found["notes"]) and found["system"] == "mine"
    assert not list((bench.folder / "finetuned").glob("models/*"))
    capsys.readouterr()
    given = ("--model", str(english), "--data", str(bench.bundle), "--tasks", "xvnli", "--languages", "en")
    main(["iglue", "evaluate", *given, "--stand-in-images", "--json"])
    (alone,) = json.loads(capsys.readouterr().out)
    assert set(alone["notes"]) == set(found["notes"]) - {f"fine-tuned before: {english}"}
    assert alone["accuracy"] == found["accuracy"]
    assert alone["provenance"]["training"] == found["provenance"]["training"]


def test_marvl_reads_two_pictures(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    splits = ("--train", "marvl=train_10x2:id", "--dev", "marvl=train_4:zh", "--rates", "1e-3", "--epochs", "5")
    found = bench.run(capsys, "--tasks", "marvl", "--regime", "few-shot", "--languages", "tr", "--shots", "2", *splits)
    assert [(each["items"], each["shots"]) for each in found] == [(1180, "2")]
    assert {"accuracy", "consistency"} <= set(found[0])


def test_xgqa_chooses_in_the_language_itself(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--train", "xgqa=train_10", "--dev", "xgqa=dev", "--rates", "1e-3", "--epochs", "5", "--config", CLASSIFY)
    shots = ("--regime", "few-shot", "--languages", "en", "--shots", "1")
    (found,) = bench.run(capsys, "--tasks", "xgqa", *shots, *given)
    assert (found["items"], found["provenance"]["training"]["dev"]) == (9666, "dev in en")
    assert "chosen on dev in en, not the official valid" in found["notes"]
    (model,) = (bench.folder / "run").glob("models/xgqa-en-1-*/pretrained")
    config = CCLMModel.from_pretrained(model).config
    assert (config.heads, len(config.labels)) == (["classify"], 1842)


def xflickrco(bench: Bench, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Translate-train, and then the other regimes on its model."""
    splits = ("--train", "xflickrco=train_50", "--dev", "xflickrco=train_25:de", "--rates", "1e-3", "--epochs", "2")
    found = bench.run(
        capsys, "--tasks", "xflickrco", "--regime", "translate-train", "--languages", "de", *splits, "--system", "tiny"
    )
    (english,) = (bench.folder / "run").glob("models/xflickrco-de-*/pretrained")
    ready = ("--finetuned", f"xflickrco={english}", "--regime", "few-shot,translate-test", "--languages", "ja")
    found += bench.run(
        capsys, "--tasks", "xflickrco", *ready, "--shots", "1,5", *splits, "--system", "tiny", output="run"
    )
    return found


def test_xflickrco_without_and_with_partners(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    found = xflickrco(bench, capsys)
    assert [(each["regime"], each["language"], each["shots"], each["items"]) for each in found] == [
        ("translate-train", "de", "", 2000),
        ("few-shot", "ja", "1", 2000),
        ("few-shot", "ja", "5", 2000),
        ("translate-test", "ja", "", 2000),
    ]
    assert "trained on train_50 in de, not the official train_translated" in found[0]["notes"]
    alone = "one image has no wrong partner to be told from: the English model as it is"
    assert [alone in each["notes"] for each in found] == [False, True, False, False]
    for each in found:
        for direction in ("text_to_image", "image_to_text"):
            assert each[direction]["queries"] == each[direction]["gallery"] == 2000


def test_the_report_says_of_every_number_what_it_is(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench.run(capsys, *XVNLI, *THREE) + xflickrco(bench, capsys)
    main(["iglue", "report", str(bench.folder / "run"), "--output", str(bench.folder / "report")])
    rows = csv.DictReader((bench.folder / "report" / "report.csv").read_text().splitlines())
    own = [row for row in rows if StandIns.note in row["notes"] and "not the official train" in row["notes"]]
    for each in found:
        about = {name: each[name] for name in ("task", "language", "protocol", "regime", "shots")}
        values = {float(row["value"]) for row in own if about.items() <= row.items()}
        value = each["accuracy"] if "accuracy" in each else each["text_to_image"]["R@1"]
        assert any(abs(value - shown) < 0.006 for shown in values), about
    text = (bench.folder / "report" / "report.md").read_text()
    assert StandIns.note in text and "few-shot" in text


def test_real_photographs_in_part_and_a_test_that_was_trained_on(
    bench: Bench, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = ("--images", str(shared / "photos"))
    given = ("--tasks", "multi30k", "--protocol", "dev-task1", "--languages", "cs", "--regime", "zero-shot")
    splits = ("--train", "multi30k=dev:fr", "--dev", "multi30k=none")
    assert "800 of 1,014 images cannot be used" in bench.refused(capsys, *given, *splits, *photos)
    (found,) = bench.run(capsys, *given, *splits, *photos, "--partial", "--rerank", "8")
    assert found["items"] == 214
    assert {
        "partial: 214 of 1,014 images",
        "of the training: partial: 214 of 1,014 images",
        "214 of its 214 images were in the training",
        "trained on dev in fr, not the official train",
        "no dev split: the last step is kept",
    } <= set(found["notes"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--tasks", "xvnli"),
            "no file XVNLI/annotations/en/train.jsonl for its official train in en; fetch it, or ta",
        ),
        (("--tasks", "xvnli"), "--train xvnli=train_48:en"),
        (
            ("--tasks", "xvnli", "--train", "xvnli=train_1"),
            "no file XVNLI/annotations/en/dev.jsonl for its official dev",
        ),
        (("--tasks", "xvnli", "--train", "xvnli=test"), "--train xvnli=test is what is tested; give another split"),
        (("--tasks", "xvnli", "--train", "xvnli=trian"), "xvnli has no split 'trian'; did you mean 'train'?"),
        (("--tasks", "xvnli", "--train", "xvnli=train_1:de"), "xvnli has no train_1 in language 'de'"),
        (
            ("--tasks", "xvnli", "--train", "train_1"),
            "--train is 'train_1'; give TASK=.. with a task of --tasks: xvnli",
        ),
        (
            ("--tasks", "xvnli", "--dev", "marvl=dev"),
            "--dev is 'marvl=dev'; give TASK=.. with a task of --tasks: xvnli",
        ),
        ((*XVNLI, "--languages", "de"), "xvnli has nothing for regime zero-shot in de; it has en, ar, es, fr, ru"),
        ((*XVNLI, "--languages", "ar,de"), "no test in language de; there are ar, en, es, fr, ru"),
        (
            (*XVNLI, "--tasks", " xvnli ,", "--languages", " ar, de"),
            "no test in language de; there are ar, en, es, fr,",
        ),
        (
            ("--tasks", "xflickrco", "--regime", "translate-train", "--languages", "ja"),
            "no file xFlickrCO/annotations/ja/train.jsonl for its official train_translated in ja; fetch it",
        ),
        (
            ("--tasks", "xflickrco", "--regime", "translate-train", "--languages", "es"),
            "xflickrco has nothing for regime translate-train in es; it has de, ja",
        ),
        ((*XVNLI, "--regime", "few-shoot"), "no regime 'few-shoot'; did you mean 'few-shot'?"),
        (
            (*XVNLI, "--regime", "translate-train"),
            "xvnli has nothing for regime translate-train; it has no language of it",
        ),
        (
            ("--tasks", "multi30k", "--regime", "translate-test", "--train", "multi30k=dev:fr"),
            "multi30k has nothing for regime translate-test; it has no language of it; name a translation model with",
        ),
        ((*XVNLI, "--rerank_score", "nope"), "rerank_score is 'nope'; choose log_odds or logit"),
        ((*XVNLI, "--regime", "few-shot", "--shots", "7"), "xvnli has no 7 shots; there are 1, 5, 10, 20, 25, 48"),
        (
            (*XVNLI, "--regime", "few-shot", "--rates", "fast"),
            "--rates is 'fast'; give learning rates as 1e-4,5e-5,1e-5",
        ),
        ((*XVNLI, "--regime", "few-shot", "--rates", "-1"), "give learning rates above 0"),
        ((*XVNLI[:4], "--dev", "xvnli=none", "--regime", "few-shot"), "leaves nothing to choose a rate by"),
        ((*XVNLI, "--config", "gone.yaml"), "no config in gone.yaml"),
        ((*XVNLI, "--finetuned", "xvnli=tests"), "model tests is none: it has no config.json"),
        ((*XVNLI, "--images", "tests"), "images cannot be used"),
        (("--tasks", "xgqa", "--languages", "de"), "xgqa in de: no texts are at hand, so no model can answer them"),
        (("--tasks", "tatoeba"), "tatoeba"),
    ],
)
def test_refused_before_the_work(
    bench: Bench, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], message: str
) -> None:
    regime = () if "--regime" in given else ("--regime", "zero-shot")
    assert message in bench.refused(capsys, *given, *regime)
    assert not bench.files("models/*", "refused")


def test_several_devices_are_left_to_fit(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "two.yaml").write_text("trainer: {devices: 2}\n")
    error = bench.refused(capsys, *XVNLI, "--regime", "zero-shot", "--config", str(tmp_path / "two.yaml"))
    assert "trainer.devices is 2, but here one process trains; run `cclm fit --config" in error
    (config,) = (bench.folder / "refused").glob("models/*/config.yaml")
    assert str(config) in error and yaml.safe_load(config.read_text())["trainer"]["devices"] == 2


# -- a run that is killed --------------------------------------------------------------------------------------------


def started(bench: Bench, arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from cclm.cli import main; main()", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed_once(run: subprocess.Popen[bytes], there: Callable[[], bool]) -> None:
    while not there():
        assert run.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()


@pytest.fixture(scope="module")
def long(bench: Bench) -> Iterator[Path]:
    """Forty epochs of a step, each with its checkpoint, every third with a validation."""
    path = bench.folder / "long.yaml"
    trainer = {"max_steps": 40, "check_val_every_n_epoch": 3}
    path.write_text(yaml.safe_dump({"trainer": trainer, "data": {"loader": {"steps_per_epoch": 1}}}))
    yield path


def test_a_killed_run_goes_on(bench: Bench, long: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--regime", "few-shot", "--languages", "ar", "--shots", "1,5", "--rates", "1e-3", "--epochs", "2")
    given = (*XVNLI, *few, "--config", str(long))
    whole = bench.run(capsys, *given, output="whole")
    (english,) = (bench.folder / "whole").glob("models/xvnli-en-*")

    arguments = bench.arguments(*given, output="killed")
    root = bench.folder / "killed"
    killed_once(started(bench, arguments), lambda: any(root.glob("models/xvnli-en-*/checkpoints/last.ckpt")))
    assert not any(root.glob("models/xvnli-en-*/finished.json"))
    killed_once(started(bench, arguments), lambda: any(root.glob("cells/*.json")))
    before = bench.files("cells/*.json", "killed") | bench.files("models/*/finished.json", "killed")
    assert len(bench.files("cells/*.json", "killed")) == 1
    main(arguments)
    told = capsys.readouterr().out
    assert "train xvnli-en" not in told and "train xvnli-ar-1-" not in told and "train xvnli-ar-5-" in told
    after = bench.files("cells/*.json", "killed") | bench.files("models/*/finished.json", "killed")
    assert before.items() <= after.items() and len(after) == len(before) + 2

    # What was interrupted is what was not, to the last bit of its weights.
    (resumed,) = root.glob("models/xvnli-en-*")
    model = [folder_hash(folder / "pretrained", ("*.safetensors",)) for folder in (english, resumed)]
    assert model[0] == model[1] and not (resumed / "checkpoints").exists()
    cells = [json.loads(path.read_text()) for path in sorted(root.glob("cells/*.json"))]
    assert sorted(each["accuracy"] for each in cells) == sorted(each["accuracy"] for each in whole)


def test_two_runs_into_one_folder_train_once(bench: Bench, long: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (*XVNLI, "--regime", "zero-shot", "--languages", "ar", "--config", str(long))
    arguments, root = bench.arguments(*given, output="both"), bench.folder / "both"
    first = started(bench, arguments)
    try:
        while not any(root.glob("models/xvnli-en-*/checkpoints/last.ckpt")):
            assert first.poll() is None, "the run ended before the second began"
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)  # it is alive, and holds what it holds, as long as the second needs to start
        second = subprocess.Popen(
            [sys.executable, "-c", "from cclm.cli import main; main()", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert second.stdout.readline() == "wait for xvnli-en, which another run trains\n"
    finally:
        first.send_signal(signal.SIGCONT)
    told = second.communicate()[0]
    assert (first.wait(), second.returncode) == (0, 0)
    assert "train xvnli-en" not in told and told.startswith("xvnli ar (official, zero-shot, 1,164 items): accuracy ")
    assert len(list(root.glob("models/*"))) == len(list(root.glob("cells/*.json"))) == 1


# -- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "examples"), [("xvnli", 541_000), ("xgqa", 943_000), ("marvl", 86_373), ("xflickrco", 145_000)]
)
def test_the_official_training_takes_the_published_steps(task: str, examples: int) -> None:
    recipe = Recipe.of(find(task), ())
    config, shipped = recipe.english(examples), Recipe.of(find(task), ()).config
    assert config["trainer"]["max_steps"] == shipped["trainer"]["max_steps"]
    assert config["data"]["loader"]["steps_per_epoch"] == shipped["data"]["loader"]["steps_per_epoch"]
    assert config["model"]["optimizer"]["warmup_steps"] == shipped["model"]["optimizer"]["warmup_steps"]
    ((name, stream),) = config["data"]["streams"].items()
    assert (stream["batch_size"], config["trainer"]["devices"]) == (128, 1), name


def test_few_shots_take_no_more_than_there_are(tmp_path: Path) -> None:
    (tmp_path / "xvnli.yaml").write_text(
        "data: {streams: {statements: {batch_size: 32}}}\nmodel: {optimizer: {lr: 1}}\n"
    )
    config = Recipe.of(find("xvnli"), [str(tmp_path)]).few_shot(90, 5e-5, 20)
    (stream,) = config["data"]["streams"].values()
    assert (stream["batch_size"], stream["bucket"], config["trainer"]["max_steps"]) == (32, 3, 60)
    assert (config["model"]["optimizer"]["lr"], config["model"]["optimizer"]["warmup_steps"]) == (5e-5, 6)
    config = Recipe.of(find("xvnli"), [f"marvl={tmp_path / 'xvnli.yaml'}"]).few_shot(3, 1e-5, 20)
    (stream,) = config["data"]["streams"].values()
    assert (stream["batch_size"], stream["bucket"], config["trainer"]["max_steps"]) == (3, 1, 20)


def test_a_whole_config_takes_the_shipped_one_s_place(tmp_path: Path) -> None:
    recipe = Recipe.of(find("xgqa"), [CLASSIFY])
    assert set(recipe.config["model"]["objectives"]["statements"]) == {"classification"}
    (tmp_path / "two.yaml").write_text("data: {streams: {more: {batch_size: 4}}}\n")
    with pytest.raises(ValueError, match="data.streams are statements, more; a task is fine-tuned on one"):
        Recipe.of(find("xgqa"), [str(tmp_path / "two.yaml")])
    with pytest.raises(ValueError, match="task tatoeba has no fine-tuning config of its own"):
        Recipe.of(find("tatoeba"), [])
