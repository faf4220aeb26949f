"""A tiny run: real config, real shards of drawn pictures and sentences, a model of a few thousand parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.data.tokenizer import train_tokenizer
from tests.data.conftest import WORDS, image_records, sentence, text_records

Config = dict[str, Any]
Run = Callable[..., Path]


def objective(name: str, kind: str, **options: Any) -> Config:
    return {"class_path": f"cclm.objectives.{name}.{kind}", "init_args": options}


def all_objectives() -> Config:
    return {
        "contrastive": objective("contrastive", "Contrastive"),
        "matching": objective("matching", "Matching", rows=6),
        "masked_lm": objective("masked_lm", "MaskedLM", rows=6),
    }


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shards(image_records(64), folder / "photos", samples_per_shard=16)
    write_shards(text_records(60), folder / "texts", samples_per_shard=20, rows_per_member=8)
    train_tokenizer([sentence(lang, n) for lang in WORDS for n in range(200)], folder / "tokenizer", 90)
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Config:
    """Four steps over both kinds of pair with all three objectives."""
    return {
        "seed_everything": 3,
        "trainer": {
            "max_steps": 4,
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path),
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "callbacks": [
                {"class_path": "cclm.training.callbacks.Export", "init_args": {"folder": str(tmp_path / "model")}},
                {
                    "class_path": "tests.training.recorder.Recorder",
                    "init_args": {"file": str(tmp_path / "steps.jsonl")},
                },
            ],
        },
        "processor": {"tokenizer": str(data / "tokenizer"), "max_tokens": 24, "image": {"image_size": 32}},
        "model": {
            "network": {
                "config": {
                    "backbone": "test_resnet",
                    "hidden_size": 32,
                    "text_layers": 1,
                    "fusion_layers": 1,
                    "num_heads": 2,
                    "intermediate_size": 64,
                    "embedding_size": 16,
                    "max_positions": 40,
                    "pre_norm": True,
                    "pooling": "mean",
                }
            },
            "optimizer": {"lr": 1e-3, "warmup_steps": 2},
            "objectives": {"image": all_objectives(), "text": all_objectives()},
        },
        "data": {
            "streams": {
                "image": {
                    "shards": str(data / "photos"),
                    "batch_size": 8,
                    "pairs": {"class_path": "cclm.data.pairs.ImageCaption", "init_args": {"languages": ["en"]}},
                },
                "text": {
                    "shards": str(data / "texts"),
                    "batch_size": 8,
                    "pairs": {"class_path": "cclm.data.pairs.Translation", "init_args": {"anchor": "en"}},
                },
            },
        },
    }


def changed(config: Config, **changes: Any) -> Config:
    """`trainer__max_steps=9` sets config["trainer"]["max_steps"]; None removes."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return config


@pytest.fixture
def fit(config: Config, tmp_path: Path) -> Run:
    """Run `cclm fit`, or another verb, with changes to the tiny config; returns the run's folder."""

    def run(*arguments: str, verb: str = "fit", **changes: Any) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(changed(config, **changes)))
        main([verb, "--config", str(file), *arguments])
        return tmp_path

    return run
