"""What every benchmark notes beside its figures: date, machine, versions, commit. And how it times and writes them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cclm.storage import whole_file

RESULTS = Path(__file__).resolve().parent / "results"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def accelerator() -> str | None:
    """The GPU, where torch sees one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def commit() -> str:
    """The commit that ran, with a + where the working tree differs from it in what is measured."""
    folder = RESULTS.parent.parent
    head = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True, cwd=folder).strip()
    changed = subprocess.check_output(["git", "status", "--porcelain", "cclm", "configs"], text=True, cwd=folder)
    return head + "+" * bool(changed.strip())


def facts(**versions: str) -> dict[str, Any]:
    """Date, machine, versions and commit; the load tells whether something else was running."""
    machine = {"processor": processor_name(), "cores": os.cpu_count(), "load_1min": round(os.getloadavg()[0], 2)}
    if name := accelerator():
        machine["accelerator"] = name
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit(),
    }


def write(name: str, result: dict[str, Any]) -> None:
    """Write benchmarks/results/<name>.json and show it."""
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    with whole_file(RESULTS / f"{name}.json") as path:
        path.write_text(text, encoding="utf-8")
    print(text, end="")
