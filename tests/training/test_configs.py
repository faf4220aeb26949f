"""The shipped configs parse; the published ones have the published sizes and run; a wrong key is told in one line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.training.optim import OptimizerSettings, parameter_groups
from cclm.training.settings import NetworkSettings, ProcessorSettings
from cclm.types import Region
from tests.data.conftest import image_records
from tests.models.test_convert_plain import english, xlm_roberta

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
FINETUNE = CONFIGS.parent / "finetune"
FEW_SHOT = FINETUNE / "few_shot.yaml"  # on top of another
PUBLISHED = ("cclm_3m", "cclm_4m", "cclm_x2vlm_base", "cclm_x2vlm_large")
Config = dict[str, Any]

# Parameters of the published models by part (reference/cclm.md 1.5, 1.6).
SWIN_PARTS = {
    "image_encoder": 86_743_224,
    "image_adapter": 0,
    "embeddings": 256_531_456,  # 250,002 words + 514 positions + 1 type of width 1,024, and a norm
    "text_encoder": 6 * 12_596_224,
    "fusion": 6 * 16_796_672,
    "image_projection": 262_400,
    "text_projection": 262_400,
    "match_head": 2_107_394,
    "box_head": 2_111_492,
    "mlm_head": 1_049_600 + 2_048 + 250_002,  # transform, norm and bias: the decoder's weight is the embeddings'
    "logit_scale": 1,
}
X2VLM_PARTS = {
    "image_encoder": 85_761_984,
    "image_adapter": 0,
    "embeddings": 192_398_592,
    "text_encoder": 12 * 7_087_872,
    "fusion": 6 * 9_451_776,
    "image_projection": 196_864,
    "text_projection": 196_864,
    "match_head": 1_187_330,
    "box_head": 1_190_404,
    "mlm_head": 590_592 + 1_536 + 250_002 + 250_002 * 768,
    "logit_scale": 1,
}
X2VLM_LARGE_PARTS = {
    "image_encoder": 303_405_568,
    "image_adapter": 0,
    "embeddings": 256_531_456,
    "text_encoder": 24 * 12_596_224,
    "fusion": 6 * 16_796_672,
    "image_projection": 262_400,
    "text_projection": 262_400,
    "match_head": 2_107_394,
    "box_head": 2_111_492,
    "mlm_head": 1_049_600 + 2_048 + 250_002 + 250_002 * 1024,
    "logit_scale": 1,
}
# name -> parts, and their total as published, in units of 0.1 M
SIZES = {
    "cclm_3m": (SWIN_PARTS, 5257),
    "cclm_4m": (SWIN_PARTS, 5257),
    "cclm_x2vlm_base": (X2VLM_PARTS, 6155),
    "cclm_x2vlm_large": (X2VLM_LARGE_PARTS, 12251),
}
# name -> rates of the image encoder, text layers, fusion and the rest; and of the decoder where nothing fills it
RATES = {
    "cclm_3m": (1e-4, 1e-4, 1e-4, 1e-4, None),
    "cclm_4m": (1e-4, 1e-4, 1e-4, 1e-4, None),
    "cclm_x2vlm_base": (2e-5, 8e-5, 4e-5, 4e-5, 8e-5),
    "cclm_x2vlm_large": (1e-5, 6e-5, 3e-5, 3e-5, 6e-5),
}


def read(name: str) -> Config:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def written(config: Config, folder: Path) -> str:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


@pytest.mark.parametrize(
    "file",
    sorted([*CONFIGS.glob("*.yaml"), *FINETUNE.glob("*.yaml")]),
    ids=lambda file: f"{file.parent.name}-{file.stem}",
)
def test_every_config_parses(file: Path, capsys: pytest.CaptureFixture) -> None:
    """The real parser reads it, checks every key and type, resolves references, and prints what it understood."""
    files = [FINETUNE / "xvnli.yaml", file] if file == FEW_SHOT else [file]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *(word for each in files for word in ("--config", str(each))), "--print_config"])
    understood = yaml.safe_load(capsys.readouterr().out)
    assert stop.value.code == 0
    root = understood["trainer"]["default_root_dir"]
    folders = [callback["init_args"]["folder"] for callback in understood["trainer"]["callbacks"][:1]]
    assert folders == [f"{root}/pretrained"]
    assert set(understood["model"]["objectives"]) == set(understood["data"]["streams"]) > set()


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> Any:
    return ProcessorSettings(str(data / "tokenizer")).build().tokenizer


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str, tokenizer: Any) -> None:
    config = read(name)
    processor = CCLMProcessor(tokenizer, ImageSettings(**config["processor"]["image"]))
    with torch.device("meta"):
        model, _ = NetworkSettings(config["model"]["network"]["config"]).build(processor)
    parts = {part: sum(p.numel() for p in child.parameters()) for part, child in model.named_children()}
    tied = model.config.tie_word_embeddings
    parts["mlm_head"] -= model.embeddings.word.weight.numel() if tied else 0
    parts["logit_scale"] = model.logit_scale.numel()
    expected, published = SIZES[name]
    assert parts == expected
    total = sum(p.numel() for p in model.parameters())
    assert total == sum(expected.values()) and round(total / 1e5) == published


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rates(name: str, tokenizer: Any) -> None:
    """Every part at its published rate; what no weights fill at twice that."""
    config = read(name)
    settings = OptimizerSettings(**config["model"]["optimizer"])
    processor = CCLMProcessor(tokenizer, ImageSettings(**config["processor"]["image"]))
    with torch.device("meta"):
        model, _ = NetworkSettings(config["model"]["network"]["config"]).build(processor)
    image, text, cross, rest, decoder = RATES[name]
    filled = decoder is not None  # all but the decoder comes from one folder
    new = {n for n, _ in model.named_parameters() if not filled and ("cross_attention" in n or "match_head" in n)}
    groups = parameter_groups(dict(model.named_parameters()), settings, new)
    rates = {parameter: group["lr"] for group in groups for parameter in group["names"]}
    factor = 1 if filled else 2
    assert {rate for parameter, rate in rates.items() if parameter.startswith("image_encoder.")} == {image}
    assert rates["embeddings.word.weight"] == rates["text_encoder.blocks.0.attention.key.bias"] == text
    assert rates["fusion.blocks.0.attention.key.weight"] == cross and rates["image_projection.weight"] == rest
    assert rates["fusion.blocks.0.cross_attention.key.weight"] == factor * cross
    assert rates["match_head.0.weight"] == factor * rest
    if filled:
        assert {rate for parameter, rate in rates.items() if parameter.startswith("mlm_head.decoder.")} == {decoder}
        assert rates["mlm_head.dense.weight"] == rest and decoder == pytest.approx(2 * rest)
    decays = {n: group["weight_decay"] for group in groups for n in group["names"]}
    assert decays["logit_scale"] == decays["match_head.1.weight"] == 0.01 and decays["fusion.blocks.0.expand.bias"] == 0


@pytest.mark.parametrize(
    ("name", "pictures", "batch", "epochs"),
    [
        ("cclm_3m", 2_838_361, 1024, 30),
        ("cclm_4m", 5_004_332, 1024, 30),
        ("cclm_x2vlm_base", 5_004_332, 480, 39),
        ("cclm_x2vlm_large", 5_004_332, 480, 39),
    ],
)
def test_published_lengths(name: str, pictures: int, batch: int, epochs: int) -> None:
    config = read(name)
    trainer, model, data = config["trainer"], config["model"], config["data"]
    streams = list(data["streams"])
    each = streams.count("text") + streams.count("text_again") if model["alternate"] else 1  # main steps in one of ours
    steps = math.ceil(pictures / batch)
    updates = len(streams) if model["alternate"] else 1
    assert data["loader"]["steps_per_epoch"] * each == steps
    assert trainer["max_steps"] * each == epochs * steps * updates
    processes = trainer["devices"] * trainer.get("num_nodes", 1)
    assert {stream["batch_size"] * processes for stream in data["streams"].values()} == {batch}
    assert streams[0] == ("text" if model["alternate"] else "image")
    assert model["optimizer"]["warmup_steps"] * each == (2500 if model["alternate"] else 1000)


def test_4m_updates_twice_on_texts_for_one_on_pictures_and_one_on_regions() -> None:
    streams = read("cclm_4m")["data"]["streams"]
    assert list(streams) == ["text", "image", "text_again", "region"] and streams["text"] == streams["text_again"]
    objectives = read("cclm_4m")["model"]["objectives"]
    assert objectives["text"] == objectives["text_again"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_objectives(name: str) -> None:
    """Regions learn boxes too; everything that differs from plain mathematics is as published."""
    objectives = read(name)["model"]["objectives"]
    for stream, named in objectives.items():
        assert list(named) == ["contrastive", "matching", "masked_lm", *["box"] * (stream == "region")]
        assert named["contrastive"]["init_args"] == {"as_published": True}
        masks = named["masked_lm"]["init_args"]
        small = "x2vlm" in name
        assert masks.pop("max_masks") == ((16 if small else 20) if "text" in stream else (10 if small else 12))
        assert masks == {"share": 0.4, "span_share": 0.2}
    assert ("region" in objectives) == (name != "cclm_3m")


@pytest.mark.parametrize(
    ("name", "items", "batch", "epochs"),
    [
        ("xvnli", 541_000, 128, 10),
        ("xgqa_classify", 943_000, 128, 5),
        ("xgqa_answer", 943_000, 128, 5),
        ("marvl", 86_373, 128, 10),
        ("marvl_x2vlm", 86_373, 128, 10),
        ("retrieval", 29_000 * 5, 128, 10),
        ("nlvr2_domain", 2_838_361, 1024, 2),
    ],
)
def test_fine_tuning_lengths(name: str, items: int, batch: int, epochs: int) -> None:
    """Steps of whole epochs, a tenth of them warm-up, batches shared out over the devices."""
    config = yaml.safe_load((FINETUNE / f"{name}.yaml").read_text())
    trainer, optimizer, data = config["trainer"], config["model"]["optimizer"], config["data"]
    steps = math.ceil(items / batch)
    (stream,) = data["streams"].values()
    assert stream["batch_size"] * trainer["devices"] == batch
    assert data["loader"]["steps_per_epoch"] == steps and trainer["max_steps"] == epochs * steps
    assert optimizer["warmup_steps"] == epochs * steps // 10 and optimizer["lr"] == 3e-5


def tiny(name: str, data: Path, folder: Path) -> Config:
    """The published run at a width of 32, on drawn pictures, in one process: all else as it is in the file."""
    config = read(name)
    updates = len(config["data"]["streams"]) if config["model"]["alternate"] else 1
    config["trainer"] |= {
        "max_steps": 2 * updates,
        "accelerator": "cpu",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "default_root_dir": str(folder),
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    recorder = {"class_path": "tests.training.recorder.Recorder", "init_args": {"file": str(folder / "steps.jsonl")}}
    config["trainer"]["callbacks"].append(recorder)
    config["processor"]["tokenizer"] = str(data / "tokenizer")
    config["processor"]["image"]["image_size"] = 32
    network = config["model"]["network"]
    network |= {"backbone_weights": None, "text_weights": None, "pretrained": None}
    network["config"] |= {"backbone": "test_vit", "hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
    network["config"] |= {"text_layers": 2, "fusion_layers": 2, "embedding_size": 16}
    network["config"]["backbone_options"] = {"drop_path_rate": 0.1}
    del network["config"]["vocab_size"]  # the tokenizer's
    config["data"]["loader"] |= {"workers": 0, "pin_memory": False}
    for name, stream in config["data"]["streams"].items():
        kinds = {"image": "photos", "text": "texts", "text_again": "texts", "region": "regions"}
        stream |= {"batch_size": 4, "shards": str(data / kinds[name])}
        if name == "image":
            stream["pairs"]["init_args"]["languages"] = ["de", "en"]
    return config


@pytest.fixture(scope="module")
def regions(data: Path) -> None:
    """Beside the other shards: the drawn pictures with a part of each told of."""
    told = [
        replace(record, regions=(Region((2.0, 4.0, 20.0, 16.0), record.captions),), size=(40, 40), captions={})
        for record in image_records(64)
    ]
    write_shards(told, data / "regions", samples_per_shard=16)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_run(name: str, data: Path, regions: None, tmp_path: Path) -> None:
    config = tiny(name, data, tmp_path)
    main(["fit", "--config", written(config, tmp_path)])
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    updates = len(config["data"]["streams"]) if config["model"]["alternate"] else 1
    assert [step["step"] for step in steps] == [updates, 2 * updates]
    names = {f"train/{stream}/{n}" for stream, named in config["model"]["objectives"].items() for n in named}
    for step in steps:
        assert names <= set(step["losses"])
        assert all(math.isfinite(float.fromhex(value)) for value in step["losses"].values())
    model = CCLMModel.from_pretrained(tmp_path / "pretrained")
    ours = config["model"]["network"]["config"]
    assert {key: getattr(model.config, key) for key in ours} == ours


def test_x2vlm_starts_from_a_converted_checkpoint(data: Path, regions: None, tokenizer: Any, tmp_path: Path) -> None:
    """As its head comment says. The first step's rate is 0 (`as_published`), so that what starts is what comes out."""
    _, file = english(tmp_path)
    xlm_roberta(12, vocabulary=len(tokenizer)).save_pretrained(tmp_path / "text")
    main(["convert", str(file), str(tmp_path / "start"), "--text", str(tmp_path / "text")])
    config = tiny("cclm_x2vlm_base", data, tmp_path)
    config["trainer"]["max_steps"] = 1
    config["processor"]["image"]["image_size"] = 64
    config["model"]["network"] = {"pretrained": str(tmp_path / "start")}
    main(["fit", "--config", written(config, tmp_path)])
    start, end = (CCLMModel.from_pretrained(tmp_path / name) for name in ("start", "pretrained"))
    losses = json.loads((tmp_path / "steps.jsonl").read_text())["losses"]
    assert {"train/region/box", "train/text/masked_lm"} <= set(losses)
    assert end.config.fusion_layers == 6 and end.config.heads == ["match", "mlm", "box"]
    for name, value in start.state_dict().items():
        assert torch.equal(end.state_dict()[name], value), name


@pytest.mark.parametrize(("alternate", "rates"), [(True, [1.0, 0.5]), (False, [1.0, 0.75, 0.5, 0.25])])
def test_the_rate_ends_with_the_run(data: Path, tmp_path: Path, alternate: bool, rates: list[float]) -> None:
    """Four updates are two alternating steps: the rate falls to 0 over the steps there are, not over the updates."""
    config = tiny("cclm_3m", data, tmp_path)
    config["trainer"] |= {"max_steps": 4, "precision": "32-true"}
    config["model"] |= {"alternate": alternate}
    config["model"]["optimizer"] |= {"lr": 1.0, "new_factor": 1.0, "warmup_steps": 0, "weight_decay": 0.0}
    config["trainer"]["callbacks"].append(
        {"class_path": f"{__name__}.Rates", "init_args": {"file": str(tmp_path / "r")}}
    )
    main(["fit", "--config", written(config, tmp_path)])
    assert [float(line) for line in (tmp_path / "r").read_text().split()] == rates


class Rates(pl.Callback):
    """Writes down the rate of every step."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_start(self, trainer: pl.Trainer, system: pl.LightningModule, batch: Any, index: int) -> None:
        with self.file.open("a") as lines:
            lines.write(f"{trainer.optimizers[0].param_groups[0]['lr']}\n")


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (
            ["model", "optimizer"],
            "learning_rate",
            "model.optimizer.learning_rate does not exist; did you mean model.optimizer.lr?",
        ),
        (["model", "network"], "weights", "model.network.weights does not exist; did you mean model.network."),
        (["trainer"], "max_step", "trainer.max_step does not exist; did you mean trainer.max_steps?"),
        (
            ["processor", "image"],
            "imagesize",
            "processor.image.imagesize does not exist; did you mean processor.image.image_size?",
        ),
        (["data", "streams", "image"], "batchsize", "batchsize does not exist; did you mean batch_size?"),
        (
            ["data", "streams", "image", "pairs", "init_args"],
            "language",
            "language does not exist; did you mean languages?",
        ),
        (["model", "objectives", "text", "matching", "init_args"], "row", "row does not exist; did you mean rows?"),
        ([], "modell", "modell does not exist; did you mean model?"),
        ([], "zzz", "zzz does not exist; --help lists all"),
    ],
)
def test_a_wrong_key_in_a_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, place: list[str], wrong: str, message: str
) -> None:
    config = read("cclm_3m")
    within: Any = config
    for key in place:
        within = within.setdefault(key, {})
    within[wrong] = 1
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", written(config, tmp_path)])
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(error) == 1
    assert error[0].startswith("cclm: ") and f"config key {message}" in error[0]
    assert len(place) < 3 or error[0].startswith(f"cclm: in {'.'.join(str(key) for key in place[:2])}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config at {}; those that come with cclm"),
        (b"", "config {} is empty or holds no keys"),
        (b"- trainer", "config {} is empty or holds no keys"),
        (b"trainer: [", "config {} is no YAML (while parsing"),
        (b"\xff\xfe", "config {} is no YAML ('utf-8' codec"),
    ],
)
@pytest.mark.parametrize("given", [["--config", "{}"], ["--config={}"], ["-c={}"]], ids=" ".join)
def test_a_config_that_is_not_whole_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes | None, message: str, given: list[str]
) -> None:
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(["fit", *(part.format(file) for part in given)])
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(error) == 1 and error[0].startswith("cclm: " + message.format(file))
