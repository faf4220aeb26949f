"""The configuration of a fine-tuning run: a shipped one of its task, on one device, with the user's changes on top."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from cclm.evaluation.task import RetrievalTask, Task

Config: TypeAlias = dict[str, Any]

CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"
_SHIPPED = {"xvnli": "xvnli", "xgqa": "xgqa_answer", "marvl": "marvl", "nlvr2": "marvl"}


@dataclass(frozen=True)
class Recipe:
    """How a task is fine-tuned. `epochs`: passes over the examples; `user`: what was changed of the shipped config."""

    task: Task
    config: Config
    user: Config
    epochs: float
    warmup: float  # share of the steps

    @classmethod
    def of(cls, task: Task, files: Sequence[str]) -> Recipe:
        """The shipped config of a task and the changes of `files`: a YAML file, TASK=FILE, or a folder of TASK.yaml.

        A file with objectives is a whole config, which takes the shipped one's place below all changes.
        Errors: ValueError for a file that is missing or no YAML, and where no config fits the task.
        """
        shipped = "retrieval" if isinstance(task, RetrievalTask) else _SHIPPED.get(task.name)
        base: Config = read(CONFIGS / f"{shipped}.yaml") if shipped is not None else {}
        user: Config = {}
        for content in map(read, _own(task, files)):
            if _says(content, "model", "objectives"):
                base = content
            else:
                user = merged(user, content)
        try:
            ((name, stream),) = base["data"]["streams"].items()
            trainer, steps = base["trainer"], base["trainer"]["max_steps"]
            epochs = steps / base["data"]["loader"]["steps_per_epoch"]
            warmup = base["model"]["optimizer"]["warmup_steps"] / steps
            batch = stream["batch_size"] * _devices(trainer)  # what several devices do together, done by one
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
            raise ValueError(
                f"task {task.name} has no fine-tuning config of its own; give a whole one with one stream, such as "
                "configs/finetune/xvnli.yaml, with --config"
            ) from None
        alone: Config = {
            "trainer": {"devices": 1, "strategy": "auto"},
            "data": {"streams": {name: {"batch_size": batch}}},
        }
        config = merged(merged(base, alone), user)
        if len(config["data"]["streams"]) != 1:
            there = ", ".join(config["data"]["streams"])
            raise ValueError(f"--config: data.streams are {there}; a task is fine-tuned on one, so change {name}")
        return cls(task, config, user, epochs, warmup)

    def english(self, examples: int) -> Config:
        """For the first training, of so many examples: the shipped number of epochs, or the user's own steps."""
        return self._timed(examples, self.epochs, own=True)

    def few_shot(self, examples: int, rate: float, epochs: int) -> Config:
        """For going on from a fine-tuned model with few examples: no more of them in a batch than there are."""
        config = self._timed(examples, epochs, own=False)
        config["model"]["optimizer"]["lr"] = rate
        config["model"]["network"]["labels"] = None  # the model has them
        if every := config["trainer"].get("check_val_every_n_epoch"):
            config["trainer"]["check_val_every_n_epoch"] = min(every, epochs)  # else nothing could be chosen
        config["data"]["loader"]["workers"] = min(2, config["data"]["loader"].get("workers", 0))
        return config

    def _timed(self, examples: int, epochs: float, own: bool) -> Config:
        config = copy.deepcopy(self.config)
        (stream,) = config["data"]["streams"].values()
        trainer, loader, optimizer = config["trainer"], config["data"]["loader"], config["model"]["optimizer"]
        stream["batch_size"] = min(stream["batch_size"], examples)
        every = math.ceil(examples / (stream["batch_size"] * _devices(trainer)))  # batches, not updates
        updates = math.ceil(every / trainer.get("accumulate_grad_batches", 1))
        if not (own and _says(self.user, "trainer", "max_steps")):
            trainer["max_steps"] = max(1, round(epochs * updates))
        if not (own and _says(self.user, "data", "loader", "steps_per_epoch")):
            loader["steps_per_epoch"] = every
        if not (own and _says(self.user, "model", "optimizer", "warmup_steps")):
            optimizer["warmup_steps"] = round(self.warmup * trainer["max_steps"])
        stream["bucket"] = min(stream.get("bucket", 8), loader["steps_per_epoch"])
        return config


def _says(config: Config, *names: str) -> bool:
    for name in names:
        if not isinstance(config, dict) or name not in config:
            return False
        config = config[name]
    return True


def _devices(trainer: Config) -> int:
    devices = trainer.get("devices", 1)
    return devices if isinstance(devices, int) and devices > 0 else 1


def read(path: Path) -> Config:
    """Errors: ValueError naming a file that is missing, no YAML or no mapping."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"no config in {path} ({' '.join(str(error).split())}); see configs/finetune") from None
    if not isinstance(found, dict):
        raise ValueError(f"config {path} is empty or holds no keys; see configs/finetune")
    return found


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """`base` with the changes, key by key; lists and values are replaced whole."""
    found = dict(base)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = merged(found[name], value) if both else copy.deepcopy(value)
    return found


def _own(task: Task, files: Sequence[str]) -> list[Path]:
    """Those of the files that are about the task, in their order."""
    found = []
    for given in files:
        name, equals, path = given.partition("=")
        if equals and not Path(given).exists():
            found += [Path(path)] if name == task.name else []
        elif Path(given).is_dir():
            path = Path(given) / f"{task.name}.yaml"
            found += [path] if path.is_file() else []
        else:
            found.append(Path(given))
    return found
