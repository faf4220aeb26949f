"""What pivot benchmarks stand on: trainings by `cclm fit` of the folders that are not there yet, one after another.

A run is a config, a seed and what differs from the config. Its folder is taken as it is where it was trained to the
end, so that a benchmark that was cut goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import commit

from cclm.storage import whole_file

ROOT = Path(__file__).resolve().parent.parent
NOTE = "trained.json"  # beside the pretrained folder: by which arguments, for how long


@dataclass(frozen=True)
class Run:
    """`changes`: keys of the config -> other values."""

    name: str
    config: str
    seed: int
    changes: dict[str, Any] = field(default_factory=dict)

    def folder(self, runs: Path) -> Path:
        return runs / f"{self.name}_{self.seed}"


def cclm(*arguments: str) -> None:
    """One command, in the repository. Errors: SystemExit naming it where it fails."""
    print("cclm", *arguments, flush=True)
    program = "from cclm.cli import main; main()"
    if subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, check=False).returncode:
        raise SystemExit(f"failed: cclm {' '.join(arguments)}")


def fitted(run: Run, runs: Path) -> Path:
    """The pretrained folder of a run below `runs`, trained if it is not there. Errors: SystemExit for one of others."""
    folder = run.folder(runs)
    changes = {"seed_everything": run.seed, "trainer.default_root_dir": folder} | run.changes
    arguments = ["--config", run.config, *(f"--{key}={value}" for key, value in changes.items())]
    note = folder / NOTE
    if note.is_file():
        if json.loads(note.read_text(encoding="utf-8"))["arguments"] != arguments:
            raise SystemExit(f"{folder} was trained otherwise than now asked for; remove it")
        return folder / "pretrained"
    start = time.perf_counter()
    cclm("fit", *arguments)
    told = {"arguments": arguments, "seconds": round(time.perf_counter() - start), "commit": commit()}
    with whole_file(note) as partial:
        partial.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return folder / "pretrained"


def shared(config: str, runs: Path, changes: dict[str, Any]) -> Path:
    """The pretrained folder of a model that all seeds share, below `runs`, trained if it is not there."""
    folder = runs / Path(config).stem
    told = {"trainer.default_root_dir": folder} | changes
    built(str(folder / "pretrained"), "fit", "--config", config, *(f"--{key}={value}" for key, value in told.items()))
    return folder / "pretrained"


def seconds_of(run: Run, runs: Path) -> int:
    return json.loads((run.folder(runs) / NOTE).read_text(encoding="utf-8"))["seconds"]


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
