"""Fine-tunes models one after another in this process; each has a folder of its own, named by all that it comes from.

models/<name>-<key>/config.yaml     what `cclm fit` was given
models/<name>-<key>/pretrained      the model, the best by the dev split
models/<name>-<key>/finished.json   written last: a training that has it is not run again, one that lacks it goes on
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
import yaml
from filelock import FileLock, Timeout

from cclm.models.choice import Choice
from cclm.storage import file_hash, pretrained_hash, whole_file
from cclm.training.cli import run
from cclm.training.finetune_config import Config, merged
from cclm.training.finetune_data import ShardSet
from cclm.training.tuned import FINISHED, Tuned

log = logging.getLogger(__name__)

LAST, LOCK = "last.ckpt", ".lock"
_OWN_CALLBACKS = ("cclm.training.callbacks.Export", "pytorch_lightning.callbacks.ModelCheckpoint")
_ACCELERATORS = {"cuda": "gpu"}  # what Lightning calls otherwise than torch


@dataclass(frozen=True)
class Training:
    """One model to be trained: from the folder `start`, by a config without paths, the best step by `dev` (None: the
    last). `labels`: a list or a file of those that a new head chooses among, None where the model has them.
    `resumable`: long enough to keep a checkpoint after every epoch. `notes`: what is to be said of its numbers.
    """

    name: str
    config: Config
    start: Path
    train: ShardSet
    dev: ShardSet | None
    labels: list[str] | str | None = None
    resumable: bool = False
    notes: tuple[str, ...] = ()


@dataclass
class Models:
    """The trained models of a run's folder. `tell` gets a line before each training."""

    root: Path
    device: torch.device
    tell: Callable[[str], None] = log.info
    _hashes: dict[Path, str] = field(default_factory=dict)

    def train(self, training: Training) -> Tuned:
        """The model, trained unless it is there. Errors: ValueError, OSError as of `cclm fit`."""
        folder = self.root / "models" / f"{training.name}-{self._key(training)}"
        model, finished = folder / "pretrained", folder / FINISHED
        if not (finished.is_file() and model.is_dir()):
            with self._alone(training.name, folder):
                if not (finished.is_file() and model.is_dir()):  # else another run has made it meanwhile
                    self._fit(training, folder)
        return Tuned.of(model)

    @contextmanager
    def _alone(self, name: str, folder: Path) -> Iterator[None]:
        """No two runs train one model at once. The system lets go of the lock of a process that was killed."""
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            self.tell(f"wait for {name}, which another run trains")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def forget(self, tuned: Tuned) -> None:
        """Remove the weights of a model that was not chosen; its dev score stays."""
        shutil.rmtree(tuned.folder, ignore_errors=True)

    def known(self, training: Training) -> Tuned | None:
        """What is known of a model that was trained, perhaps without its weights."""
        folder = self.root / "models" / f"{training.name}-{self._key(training)}"
        return Tuned.of(folder / "pretrained") if (folder / FINISHED).is_file() else None

    def _fit(self, training: Training, folder: Path) -> None:
        config = _placed(training, folder, self.device)
        steps, examples = config["trainer"]["max_steps"], training.train.examples
        with whole_file(folder / "config.yaml") as partial:
            partial.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        if (devices := training.config["trainer"].get("devices", 1)) != 1:
            raise ValueError(
                f"trainer.devices is {devices}, but here one process trains; run `cclm fit "
                f"--config {folder / 'config.yaml'}` and give its model with --finetuned"
            )
        last = folder / "checkpoints" / LAST
        resumed = " from its last checkpoint" if last.is_file() else ""
        self.tell(f"train {training.name}: {training.train.split}, {examples:,} examples, {steps:,} steps{resumed}")
        started = time.monotonic()
        run(["fit", "--config", str(folder / "config.yaml"), *(["--ckpt_path", str(last)] if resumed else [])])
        choice = Choice.read(folder / "pretrained")
        about = {
            "value": choice.value if choice is not None else None,
            "chosen": f"step {choice.step:,} by {choice.metric}" if choice is not None else "the last step",
            "train": str(training.train.split),
            "examples": examples,
            "dev": str(training.dev.split) if training.dev is not None else "",
            "rate": config["model"]["optimizer"]["lr"],
            "steps": steps,
            "seconds": round(time.monotonic() - started, 1),
            "date": date.today().isoformat(),
            "notes": training.notes,
        }
        with whole_file(folder / FINISHED) as partial:
            partial.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(last.parent, ignore_errors=True)

    def _key(self, training: Training) -> str:
        """Equal for trainings that give the same model, wherever they lie and on whatever device."""
        labels = training.labels
        content = {
            "start": self._hash(training.start),
            "train": training.train.key,
            "dev": training.dev.key if training.dev is not None else "",
            "labels": file_hash(labels) if isinstance(labels, str) else labels,
            "config": training.config,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def _hash(self, folder: Path) -> str:
        if folder not in self._hashes:
            self._hashes[folder] = pretrained_hash(folder)
        return self._hashes[folder]


def _placed(training: Training, folder: Path, device: torch.device) -> Config:
    """The config with its paths, the device, and what is written when."""
    config, loader = training.config, training.config["data"]["loader"]
    ((stream, _),) = config["data"]["streams"].items()
    languages = {"init_args": {"languages": [training.train.split.language]}}
    sets, best = _dev_sets(config, training.dev)
    changes: Config = {
        "trainer": {
            "default_root_dir": str(folder),
            "accelerator": _ACCELERATORS.get(device.type, device.type),
            "callbacks": _callbacks(training, folder, best),
            "enable_checkpointing": training.resumable,
            "num_sanity_val_steps": 0,
            "logger": config["trainer"].get("logger", False),
        },
        "model": {"network": {"pretrained": str(training.start), "labels": training.labels}},
        "data": {
            "loader": {"pin_memory": loader.get("pin_memory", False) and device.type == "cuda"},
            "streams": {stream: {"shards": str(training.train.folder), "pairs": languages}},
        },
    }
    if device.index is not None:
        changes["trainer"]["devices"] = [device.index]
    if training.dev is None:
        changes["trainer"]["limit_val_batches"] = 0
    elif every := config["trainer"].get("check_val_every_n_epoch"):  # counted in batches, it survives a resumption
        interval = every * loader["steps_per_epoch"]
        changes["trainer"] |= {"check_val_every_n_epoch": None, "val_check_interval": interval}
    placed = merged(config, changes)
    placed["data"] |= sets
    return placed


def _callbacks(training: Training, folder: Path, best: str | None) -> list[Config]:
    """The user's own, and ours. A checkpoint comes after the epoch's validation, which resuming then repeats not."""
    given = training.config["trainer"].get("callbacks") or []
    export = {"folder": str(folder / "pretrained"), "best": best}
    found = [callback for callback in given if callback["class_path"] not in _OWN_CALLBACKS]
    found.append({"class_path": _OWN_CALLBACKS[0], "init_args": export})
    if training.resumable:
        every = {"every_n_epochs": 1, "save_on_train_epoch_end": True, "enable_version_counter": False}
        place = {"dirpath": str(folder / "checkpoints"), "filename": Path(LAST).stem}
        found.append({"class_path": _OWN_CALLBACKS[1], "init_args": place | every})
    return found


def _dev_sets(config: Config, dev: ShardSet | None) -> tuple[Config, str | None]:
    """The config's dev set read from `dev`, and the metric that a step is chosen by."""
    kinds = [kind for kind in ("validation", "statements") if config["data"].get(kind)]
    empty: Config = {"validation": {}, "statements": {}}
    if dev is None:
        return empty, None
    if len(kinds) != 1 or len(config["data"][kinds[0]]) != 1:
        raise ValueError("--config: name one set in data.validation or data.statements, to choose the best step by")
    ((name, settings),) = config["data"][kinds[0]].items()
    placed = settings | {"shards": str(dev.folder), "languages": [dev.split.language]}
    way = "statements/accuracy"
    if kinds[0] == "validation":
        way = f"text_to_image{'_rerank' if settings.get('rerank') else ''}/mean_recall"
    return empty | {kinds[0]: {name: placed}}, f"{name}/{dev.split.language}/{way}"
