"""`cclm iglue check`: what of the benchmarks is there, whole and readable, and what to fetch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.iglue.chosen import ALL, tasks_named
from cclm.verbs.inputs import codes

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="the folder of the benchmarks' files")
    parser.add_argument("--images", type=Path, default=None, help="the folder of pictures; that of the files")
    parser.add_argument("--tasks", default=ALL, help="xvnli,xgqa ..; all that there are")
    parser.add_argument("--languages", default=None, help="de,fr ..; all that there are")
    parser.add_argument("--open", action="store_true", help="decode every picture of the tests, too")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(given: Namespace) -> None:
    from rich.console import Console

    from cclm.evaluation.doctor import WIDTH, examine, summary
    from cclm.evaluation.sources import DataFolder

    tasks = tasks_named(given.tasks)
    data = DataFolder(given.data)
    found = examine(tasks, data, given.images or given.data, codes(given.languages), given.open)
    if given.json:
        print(json.dumps([health.to_dict() for health in found], ensure_ascii=False, indent=2))
    else:
        Console(width=WIDTH).print(summary(found))
