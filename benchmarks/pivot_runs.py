"""What pivot benchmarks stand on: trainings by `cclm fit` of the folders that are not there yet, one after another.

A run is a config, a seed and what differs from the config. Its folder is taken as it is where it was trained to the
end by the same configuration, so that a benchmark that was cut goes on where it stopped.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from machine import accelerator, commit, processor_name

from cclm.pivot.image_to_text import MODEL_TYPE as TELLS
from cclm.pivot.image_to_text import ImageToText
from cclm.pivot.text_to_image import MODEL_TYPE as PAINTS
from cclm.pivot.text_to_image import TextToImage
from cclm.storage import whole_file

ROOT = Path(__file__).resolve().parent.parent
NOTE = "trained.json"  # beside the pretrained folder: for how long, on what, at which commit


@dataclass(frozen=True)
class Run:
    """`changes`: keys of the config -> other values."""

    name: str
    config: str
    seed: int
    changes: dict[str, Any] = field(default_factory=dict)

    def folder(self, runs: Path) -> Path:
        return runs / f"{self.name}_{self.seed}"


PROGRAM = (sys.executable, "-c", "from cclm.cli import main; main()")


def cclm(*arguments: str) -> None:
    """One command, in the repository. Errors: SystemExit naming it where it fails."""
    print("cclm", *arguments, flush=True)
    if subprocess.run([*PROGRAM, *arguments], cwd=ROOT, check=False).returncode:
        raise SystemExit(f"failed: cclm {' '.join(arguments)}")


def fitted(run: Run, runs: Path) -> Path:
    """The pretrained folder of a run below `runs`, trained if it is not there. Errors: as of `trained`."""
    return trained(run.config, run.folder(runs), {"seed_everything": run.seed} | run.changes)


def trained(config: str, folder: Path, changes: Mapping[str, Any]) -> Path:
    """The pretrained folder of a run in `folder`, trained if it is not there, be it by hand.

    Errors: SystemExit for one whose configuration was another, to the last value, or whose language model has been
    trained again since.
    """
    told = {"trainer.default_root_dir": folder} | changes
    arguments = ("--config", config, *(f"--{key}={value}" for key, value in told.items()))
    if not (folder / "pretrained").is_dir():
        start = time.perf_counter()
        cclm("fit", *arguments)
        note = {"seconds": round(time.perf_counter() - start), "device": device(), "commit": commit()}
        with whole_file(folder / NOTE) as partial:
            partial.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    elif configured(folder) != asked(arguments):
        raise SystemExit(f"{folder} was trained otherwise than now asked for; remove it")
    else:
        check_parts(folder / "pretrained")
    return folder / "pretrained"


def check_parts(model: Path) -> None:
    """Errors: SystemExit for a model that was made for other weights than those that lie at the same place by now."""
    kind = json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"]
    if opened := {TELLS: ImageToText, PAINTS: TextToImage}.get(kind):
        try:
            opened.from_pretrained(model)
        except ValueError as error:
            raise SystemExit(f"{error}; or remove {model.parent}") from None


@cache
def asked(arguments: tuple[str, ...]) -> str:
    """The whole configuration that `cclm fit` makes of its arguments."""
    command = [*PROGRAM, "fit", *arguments, "--print_config"]
    return subprocess.check_output(command, cwd=ROOT, text=True)


def configured(folder: Path) -> str:
    """The configuration of the last training in a folder, resumed or not; nothing where it is not kept."""
    found = list(folder.glob("lightning_logs/version_*/config_of_run.yaml"))
    last = max(found, key=lambda path: int(path.parent.name.removeprefix("version_")), default=None)
    return re.sub(r"(?m)^ckpt_path: .*$", "ckpt_path: null", last.read_text(encoding="utf-8")) if last else ""


def noted(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """Seconds, device and commit of the training of each folder; None of those trained by hand."""
    notes = [folder / NOTE for folder in folders]
    told = [json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {} for note in notes]
    return {name: [each.get(name) for each in told] for name in ("seconds", "device", "commit")}


def device() -> str:
    """What `accelerator: auto` trains on."""
    return accelerator() or processor_name()


def further(given: Sequence[str]) -> dict[str, str]:
    """`--key=value` options that a benchmark hands on to every training. Errors: ValueError for anything else."""
    for option in given:
        if not re.fullmatch(r"--[\w.]+=.+", option):
            raise ValueError(f"{option!r} is no option; those of `cclm fit` are --key=value")
    return dict(option.removeprefix("--").split("=", 1) for option in given)


def built(folder: str, *arguments: str) -> None:
    """Run a command that writes `folder` where it is not there yet."""
    if not (ROOT / folder).exists():
        cclm(*arguments)


def over_seeds(found: Sequence[Mapping[str, float]], digits: int = 3) -> dict[str, dict[str, Any]]:
    """Metric -> its mean over the seeds, the standard deviation (None of one) and each seed's value."""
    return {
        name: {
            "mean": round(statistics.mean(one[name] for one in found), digits),
            "deviation": round(statistics.stdev([one[name] for one in found]), digits) if len(found) > 1 else None,
            "seeds": [round(one[name], digits) for one in found],
        }
        for name in found[0]
    }
