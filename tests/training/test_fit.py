"""`cclm fit` end to end on a tiny model: what a run writes, what its options do, what a wrong config says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cclm.data.tokenizer import train_tokenizer
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.objectives.base import EncodedPair, Objective
from tests.data.conftest import sentence
from tests.training.conftest import Config, Run, objective


def steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def losses(folder: Path, name: str) -> list[float]:
    return [float.fromhex(step["losses"][f"train/{name}"]) for step in steps(folder)]


def test_a_run_ends_in_a_pretrained_folder(fit: Run) -> None:
    folder = fit()
    model, processor = CCLMModel.from_pretrained(folder / "model"), CCLMProcessor.from_pretrained(folder / "model")
    view = model.eval().encode_text(*vars(processor.texts(["ein Hund läuft"])).values())
    assert view.states.shape[2] == 32 and model.config.vocab_size == len(processor.tokenizer)
    names = {
        f"train/{stream}/{name}" for stream in ("image", "text") for name in ("contrastive", "matching", "masked_lm")
    }
    assert names < set(steps(folder)[0]["losses"]) and len(steps(folder)) == 4


def test_the_same_config_gives_the_same_losses(fit: Run) -> None:
    first = steps(fit())
    fit()
    assert steps(fit())[4:8] == first


class TestOptionsKeepTheFunction:
    """How a step is computed changes nothing but rounding."""

    exact = {"model__network__config__dropout": 0.0, "model__network__config__attention_dropout": 0.0}

    @pytest.fixture
    def expected(self, fit: Run) -> list[float]:
        folder = fit(**self.exact)
        values = losses(folder, "image/contrastive") + losses(folder, "text/masked_lm")
        (folder / "steps.jsonl").unlink()
        return values

    @pytest.mark.parametrize(
        ("changes", "tolerance"),
        [
            ({"model__compute": {"checkpoint_activations": True}}, 1e-5),
            ({"model__compute": {"compile": True, "compile_backend": "aot_eager"}}, 1e-4),
            ({"trainer__precision": "bf16-mixed"}, 0.1),  # eight bits of mantissa, four updates
        ],
        ids=["checkpointing", "compile", "bf16"],
    )
    def test_option(self, fit: Run, expected: list[float], changes: Config, tolerance: float) -> None:
        folder = fit(**self.exact, **changes)
        got = losses(folder, "image/contrastive") + losses(folder, "text/masked_lm")
        assert got == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_a_checkpoint_is_scored_without_training(
    fit: Run, data: Path, capsys: pytest.CaptureFixture, verb: str
) -> None:
    sets = {"own": {"shards": str(data / "photos"), "languages": ["en", "de"], "rerank": 4}}
    (checkpoint,) = fit(trainer__enable_checkpointing=True).glob("checkpoints/*.ckpt")
    capsys.readouterr()
    folder = fit("--ckpt_path", str(checkpoint), verb=verb, data__validation=sets, trainer__limit_val_batches=1)
    shown = capsys.readouterr().out
    for metric in ("own/en/text_to_image/R@10", "own/others/image_to_text/R@1", "own/de/text_to_image_rerank/R@1"):
        assert metric in shown
    assert len(steps(folder)) == 4  # those of the fit


def told_losses(caplog: pytest.LogCaptureFixture) -> dict[int, float]:
    """What the lines on screen say, by step."""
    found = re.findall(r"step (\d+) of \d+, loss ([\d.]+), \d+ samples/s, \d+ s left", caplog.text)
    return {int(step): float(loss) for step, loss in found}


def summed_losses(folder: Path) -> list[float]:
    names = [f"{stream}/{name}" for stream in ("image", "text") for name in ("contrastive", "matching", "masked_lm")]
    return [sum(values) for values in zip(*(losses(folder, name) for name in names), strict=True)]


def test_the_bar_and_the_log_show_loss_recall_and_speed(
    fit: Run, data: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    fit(
        trainer__enable_progress_bar=True,
        trainer__max_steps=20,
        trainer__val_check_interval=10,
        trainer__check_val_every_n_epoch=None,
        trainer__limit_val_batches=1,
        data__validation={"own": {"shards": str(data / "photos"), "languages": ["en", "de"]}},
    )
    assert re.search(r"step 10: own/en/text_to_image/R@10 [\d.]+, own/others/text_to_image/R@10 [\d.]+", caplog.text)
    shown = capsys.readouterr()
    last = (shown.out + shown.err).split("20/20")[-1]
    assert re.search(r"loss=[\d.]+, own/en/R@10=[\d.]+, own/others/R@10=[\d.]+, wait=[\d.]+, samples/s=\d", last), last


def test_accumulation_updates_less_often(fit: Run, caplog: pytest.LogCaptureFixture) -> None:
    folder = fit(trainer__accumulate_grad_batches=2, trainer__max_steps=20)
    assert [step["step"] for step in steps(folder)][:6] == [0, 1, 1, 2, 2, 3]
    assert told_losses(caplog)[20] == pytest.approx(summed_losses(folder)[-1], abs=2e-3)


def test_alternate_updates_once_per_stream(fit: Run, caplog: pytest.LogCaptureFixture) -> None:
    folder = fit(model__alternate=True, trainer__max_steps=40)
    assert told_losses(caplog)[40] == pytest.approx(summed_losses(folder)[-1], abs=2e-3)
    assert [step["step"] for step in steps(folder)] == [*range(2, 41, 2)]
    assert all(math.isfinite(value) for value in losses(folder, "text/matching"))


def test_frozen_parts_stay_and_their_states_come_from_a_cache(fit: Run, tmp_path: Path) -> None:
    folder = fit(
        model__optimizer__frozen=["image_encoder"],
        data__loader={"cache": str(tmp_path / "cache"), "versions": 2},
        trainer__callbacks=[
            {
                "class_path": "cclm.training.callbacks.Export",
                "init_args": {"folder": str(tmp_path / "model"), "initial": str(tmp_path / "initial")},
            }
        ],
    )
    before, after = (load_file(folder / name / "model.safetensors") for name in ("initial", "model"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("image_encoder")} <= same
    assert not any(name.startswith(("text_encoder", "fusion")) and name.endswith("query.weight") for name in same)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_of_a_part_that_trains_is_refused(fit: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        fit(data__loader={"cache": str(tmp_path / "cache")})
    assert "add image_encoder to model.optimizer.frozen" in capsys.readouterr().err


def test_ema_is_what_is_exported(fit: Run, config: Config) -> None:
    average = {"class_path": "pytorch_lightning.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.0}}
    plain = load_file(fit() / "model" / "model.safetensors")
    callbacks = [*config["trainer"]["callbacks"], average]
    averaged = load_file(fit(trainer__callbacks=callbacks) / "model" / "model.safetensors")
    assert all(torch.equal(plain[name], averaged[name]) for name in plain)  # decay 0: the average is the last
    average["init_args"]["decay"] = 0.9
    averaged = load_file(fit(trainer__callbacks=callbacks) / "model" / "model.safetensors")
    assert not torch.equal(plain["fusion.blocks.0.expand.weight"], averaged["fusion.blocks.0.expand.weight"])


def test_sixty_four_pairs_are_learned_by_heart(fit: Run, data: Path) -> None:
    """All objectives together must be able to reach their floor, which no broken label, mask or gradient does."""
    folder = fit(
        trainer__max_steps=330,
        model__network__config__dropout=0.0,
        model__network__config__attention_dropout=0.0,
        model__optimizer={"lr": 4e-3, "warmup_steps": 10},
        data__streams={
            "image": {
                "shards": str(data / "photos"),
                "batch_size": 32,
                "pairs": {"class_path": "cclm.data.pairs.ImageCaption", "init_args": {"languages": ["de"]}},
            }
        },
        model__objectives={
            "image": {
                "contrastive": objective("contrastive", "Contrastive"),
                "matching": objective("matching", "Matching"),
                "masked_lm": objective("masked_lm", "MaskedLM"),
            }
        },
        processor__image={"image_size": 32, "crop_scale": [0.99, 1.0], "flip": 0.0},
    )

    def last(name: str) -> float:
        return sum(losses(folder, f"image/{name}")[-10:]) / 10

    reached = {name: last(name) for name in ("contrastive", "matching", "masked_lm")}
    floors = {"contrastive": 0.2, "matching": 0.4, "masked_lm": 3.2}  # from about 3.5, 0.64 and 4.5
    assert all(reached[name] < floor for name, floor in floors.items()), reached


def test_a_stream_is_changed_on_the_command_line(fit: Run) -> None:
    folder = fit("--data.streams.image.batch_size", "5", "--data.streams.text.pairs.anchor", "de")
    assert [[len(keys) for keys in step["keys"].values()] for step in steps(folder)] == [[5, 8]] * 4


class Diverging(Objective):
    """Goes to infinity at the third step."""

    seen = 0

    def forward(self, pair: EncodedPair, draft: None = None, view: None = None) -> torch.Tensor:
        self.seen += 1
        loss = pair.target.embedding.sum()
        return loss * (float("inf") if self.seen == 3 else 1.0)


def test_a_loss_that_is_not_finite_stops_before_the_update(fit: Run, capsys: pytest.CaptureFixture) -> None:
    bad = {"contrastive": objective("contrastive", "Contrastive"), "bad": {"class_path": f"{__name__}.Diverging"}}
    with pytest.raises(SystemExit):
        fit(model__objectives__text=bad)
    error = capsys.readouterr().err
    assert "step 2, stream text: the bad loss is" in error and "weights are still those before this step" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.max_step", "3"], "max_step"),
        (["--model.optimizer.learning_rate", "3"], "learning_rate"),
        (["--model.optimizer.schedule", "square"], "choose one of linear, cosine, constant"),
        (["--model.optimizer.frozen", "[vision]"], "no such part of the model; parts: embeddings"),
        (["--model.weights", "{image/itc: 2}"], "there are image/contrastive"),
        (["--model.network.config.hidden_sizes", "3"], "did you mean 'hidden_size'?"),
        (["--model.network.config.hidden_size", "big"], "network.config.hidden_size is 'big'; give a value like 768"),
        (["--model.network.config.pre_norm", "3"], "network.config.pre_norm is 3; give a value like False"),
        (["--processor.tokenizer", "./nowhere"], "no tokenizer at ./nowhere"),
        (["--ckpt_path", "./nowhere.ckpt"], "nowhere.ckpt"),
        (
            ["--model.network.config", "{}", "--model.network.pretrained", "./nowhere"],
            "no pretrained folder at ./nowhere",
        ),
        (["--model.network.backbone_weights", "./nowhere.pth"], "no weight file at nowhere.pth"),
        (["--data.streams.image.batchsize", "3"], "did you mean batch_size?"),
        (["--model.objectives.image.matching.init_args.rows", "3"], "model.objectives cannot be changed in part on"),
        (
            ["--data.streams.pictures.batch_size", "3"],
            "a new entry lacks shards, pairs; give it, or is its name misspelt?",
        ),
        (["--data.streams", "[{name: image}]"], "data.streams is a mapping of name to settings"),
        (["--data.streams.image.pairs.languages", "en"], "data.streams.pairs.languages is en; write a list: [en]"),
        (["--data.validation", "{own: {shards: nowhere}}"], "validation set own: no shard at nowhere"),
        (["--data.loader.prefetch", "0"], "data.loader.prefetch is 0; give 1 or more"),
        (["--model.network.config.hidden_size", "0"], "hidden_size is 0; give 1 or more"),
        (["--model.network.config.dropout", "1.5"], "dropout is 1.5; it is a share"),
        (["--model.network.pretrained", "."], "no config.json in .; train one with"),
        (["--model.optimizer.warmup_steps", "-5"], "warmup_steps is -5"),
        (["--processor.image.image_size", "0"], "image_size is 0"),
        (["--processor.image.crop_scale", "[1.0, 0.5]"], "crop_scale is (1.0, 0.5)"),
        (["--processor.max_tokens", "1"], "max_tokens is 1; a text has at least 3"),
        (["--processor.max_tokens", "400"], "max_tokens is 400, the model holds 38"),
        (["--ckpt_path", "last"], "no checkpoint at last; leave --ckpt_path out"),
        (["--trainer.max_steps", "-1"], "trainer.max_steps is not set"),
        (["--trainer.accelerator", "tpu"], "trainer: "),
    ],
)
def test_a_wrong_setting_is_one_line(
    fit: Run, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(*arguments)
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(error) == 1 and error[0].startswith("cclm: ") and message in error[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.md", "mine", "model holds notes.md, which is not replaced"),
        ("tokenizer_notes/thesis.txt", "mine", "model holds tokenizer_notes/thesis.txt, which is not replaced"),
        ("word2vec.model", "mine", "model holds word2vec.model, which is not replaced"),
        ("config.json", '{"model_type": "bert"}', "holds a model of another kind, which is not replaced"),
    ],
)
def test_an_export_never_replaces_other_things(
    fit: Run, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, content: str, message: str
) -> None:
    file = tmp_path / "model" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(SystemExit):
        fit()
    assert message in capsys.readouterr().err
    assert [path for path in (tmp_path / "model").rglob("*") if path.is_file()] == [file]
    assert file.read_text() == content
    assert not (tmp_path / "steps.jsonl").exists()  # told before the training


def test_a_run_that_diverges_names_the_loss(fit: Run, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        fit(model__optimizer={"lr": 1e38, "warmup_steps": 0, "schedule": "constant"})
    error = capsys.readouterr().err
    assert "stream image: the contrastive loss is nan" in error and "weights are still those before this step" in error


def test_an_export_that_cannot_be_written_is_told_first(
    fit: Run, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").touch()
    config["trainer"]["callbacks"][0]["init_args"]["folder"] = str(tmp_path / "file" / "model")
    with pytest.raises(SystemExit):
        fit()
    assert "file is no folder that you may write to; choose another" in capsys.readouterr().err
    assert not (tmp_path / "steps.jsonl").exists()


def test_a_model_of_another_tokenizer_is_refused(
    fit: Run, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train_tokenizer([sentence("fr", n) for n in range(200)], tmp_path / "other", 60)
    folder = fit()
    config["model"]["network"] = {"pretrained": str(folder / "model")}
    config["trainer"]["callbacks"][0]["init_args"]["folder"] = str(tmp_path / "second")
    with pytest.raises(SystemExit):
        fit(processor__tokenizer=str(tmp_path / "other"))
    assert "use the tokenizer that the model was trained with" in capsys.readouterr().err
    fit()
    assert (tmp_path / "second" / "model.safetensors").is_file()


def test_text_weights_that_fill_nothing_are_refused(fit: Run, capsys: pytest.CaptureFixture) -> None:
    folder = fit()
    with pytest.raises(SystemExit):
        fit(model__network__text_weights=str(folder / "model"))
    assert "which XLM-R has not; give XLM-R's own file" in capsys.readouterr().err


@pytest.mark.parametrize("objectives", [{}, {"con.trastive": objective("contrastive", "Contrastive")}])
def test_objectives_without_a_proper_name_are_refused(
    fit: Run, capsys: pytest.CaptureFixture, objectives: Config
) -> None:
    with pytest.raises(SystemExit):
        fit(model__objectives={"image": objectives, "text": objectives})
    assert "cclm: model.objectives" in capsys.readouterr().err


def test_the_config_given_stays_as_it_is(fit: Run, tmp_path: Path) -> None:
    given = (fit() / "config.yaml").read_text()
    fit()
    assert (tmp_path / "config.yaml").read_text() == given
    assert yaml.safe_load((tmp_path / "config_of_run.yaml").read_text())["trainer"]["max_steps"] == 4


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_nothing_to_measure_is_an_error(fit: Run, capsys: pytest.CaptureFixture, verb: str) -> None:
    with pytest.raises(SystemExit):
        fit(verb=verb)
    assert f"{verb}: data.validation is empty" in capsys.readouterr().err


def test_streams_and_objectives_must_agree(fit: Run, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        fit(model__objectives={"pictures": {"contrastive": objective("contrastive", "Contrastive")}})
    assert "are for streams ['pictures'], data.streams are ['image', 'text']" in capsys.readouterr().err
