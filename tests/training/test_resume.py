"""A run killed in mid-epoch and resumed repeats an uninterrupted one: same samples, same losses, to the last bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from cclm.training.callbacks import WholeCheckpoints
from tests.data.conftest import full_disk
from tests.training.conftest import Config, Run, changed

STEPS, EVERY = 16, 3


def checkpointed(config: Config, folder: Path, **changes: object) -> Config:
    keep = {"dirpath": str(folder), "every_n_train_steps": EVERY, "save_top_k": -1}
    callback = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": keep}
    callbacks = [*config["trainer"]["callbacks"], callback]
    return changed(config, trainer__enable_checkpointing=True, trainer__callbacks=callbacks, **changes)


def lines(file: Path) -> dict[int, dict]:
    return {step["step"]: step for step in map(json.loads, file.read_text().splitlines())}


def start(config: Config, file: Path, *arguments: str, stderr: int | None = None) -> subprocess.Popen:
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-c", "from cclm.cli import main; main()", "fit", "--config", str(file), *arguments]
    root = str(Path(__file__).resolve().parents[2])  # where the config's recorder is found
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    # A suite that a script runs in the background inherits a SIGINT that is ignored, and hands it on.
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, cwd=root, env=environment, stderr=stderr, preexec_fn=heard)


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_and_resumed(config: Config, tmp_path: Path, workers: int) -> None:
    loader = {"steps_per_epoch": 7, "workers": workers}
    config = checkpointed(config, tmp_path / "checkpoints", trainer__max_steps=STEPS, data__loader=loader)
    file, log = tmp_path / "config.yaml", tmp_path / "steps.jsonl"
    assert start(config, file).wait() == 0
    expected = lines(log)
    assert sorted(expected) == list(range(1, STEPS + 1))

    for path in [log, *(tmp_path / "checkpoints").iterdir()]:
        path.unlink()
    kill_at = random.Random().randint(EVERY + 1, STEPS - 2)
    run = start(config, file)
    while not log.exists() or len(log.read_text().splitlines()) < kill_at:
        assert run.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    newest = max((tmp_path / "checkpoints").glob("*.ckpt"), key=lambda path: int(path.stem.split("step=")[1]))
    reached = int(newest.stem.split("step=")[1])
    log.unlink()
    assert start(config, file, "--ckpt_path", str(newest)).wait() == 0
    resumed = lines(log)
    assert sorted(resumed) == list(range(reached + 1, STEPS + 1))
    assert all(resumed[step] == expected[step] for step in resumed)


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")]
)
def test_a_run_that_is_stopped_says_so(
    config: Config, tmp_path: Path, number: signal.Signals, status: int, word: bytes
) -> None:
    log = tmp_path / "steps.jsonl"
    run = start(changed(config, trainer__max_steps=100_000), tmp_path / "config.yaml", stderr=subprocess.PIPE)
    while not log.exists():
        assert run.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.005)
    run.send_signal(number)
    assert run.communicate()[1].splitlines()[-1] == b"cclm: " + word and run.returncode == status
    assert not (tmp_path / "model").exists()


def test_a_full_disk_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    writer, path = WholeCheckpoints(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"weights": torch.zeros(1000)}, path)
    with full_disk(100_000), pytest.raises(OSError, match="disk full while writing .*last.ckpt"):
        writer.save_checkpoint({"weights": torch.ones(1_000_000)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.zeros(1000))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def complaint(fit: Run, capsys: pytest.CaptureFixture, checkpoint: Path, **changes: object) -> str:
    """The one line that a run from this checkpoint ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        fit("--ckpt_path", str(checkpoint), **changes)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def test_a_damaged_checkpoint_is_one_line(fit: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bad = tmp_path / "bad.ckpt"
    bad.touch()
    assert "bad.ckpt is not a checkpoint of `cclm fit`" in complaint(fit, capsys, bad)
    bad.write_bytes(b"PK\x03\x04 not all of it")
    assert "bad.ckpt is not a checkpoint of `cclm fit`" in complaint(fit, capsys, bad)
    torch.save({"a": 1}, bad)
    assert "it lacks batches_seen, pytorch-lightning_version, state_dict" in complaint(fit, capsys, bad)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda stored: stored.pop("optimizer_states"), "the checkpoint lacks optimizer_states"),
        (lambda stored: stored.pop("PairDataModule"), "the checkpoint lacks PairDataModule"),
        (lambda stored: stored["PairDataModule"].pop("world_size"), "data position is damaged"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_one_line(
    fit: Run, capsys: pytest.CaptureFixture, damage: Callable[[dict], object], message: str
) -> None:
    (checkpoint,) = fit(trainer__enable_checkpointing=True).glob("checkpoints/*.ckpt")
    stored = torch.load(checkpoint, weights_only=True)
    damage(stored)
    torch.save(stored, checkpoint)
    assert message in complaint(fit, capsys, checkpoint, trainer__max_steps=8)


def test_resuming_with_shards_of_another_form_is_one_line(fit: Run, data: Path, capsys: pytest.CaptureFixture) -> None:
    (checkpoint,) = fit(trainer__enable_checkpointing=True).glob("checkpoints/*.ckpt")
    mixed = {str(data / "photos"): 1.0}
    line = complaint(fit, capsys, checkpoint, trainer__max_steps=8, data__streams__image__shards=mixed)
    assert "stream image: the saved data position is not of such shards" in line


def test_a_checkpoint_of_another_network_is_one_line(fit: Run, capsys: pytest.CaptureFixture) -> None:
    (checkpoint,) = fit(trainer__enable_checkpointing=True).glob("checkpoints/*.ckpt")
    line = complaint(fit, capsys, checkpoint, model__network__config__intermediate_size=96)
    assert "(32, 64) in the checkpoint and (32, 96) in the config's model; resume with" in line
