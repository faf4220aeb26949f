"""How well does the model of configs/pretrain/photos.yaml find Multi30K's dev pictures, per language?

python benchmarks/multi30k.py --data DATASETS --images ../shared/photos
DATASETS holds Multi30K's own files (multi30k/task1, multi30k/task2). Those of the 1,014 dev pictures that --images has
are scored, by similarity and reranked; the run's cells and report stand in --run, figures and a chart in results.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from machine import RESULTS, facts, write

from cclm.cli import main as cclm
from cclm.models.choice import Choice
from cclm.retrieval.manifest import ModelSource

PROTOCOLS = ("dev", "dev-task1")
RERANK = ("--rerank", "16", "--rerank_similarity", "1")
QUESTION = "Multi30K dev: text and image retrieval per language, pictures met in training with English captions only"


def measured(cell: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a result."""
    ways = {
        way: {key: scores[key] for key in ("R@1", "R@5", "R@10", "R@1_interval", "queries", "gallery")}
        for way, scores in cell.items()
        if way in ("text_to_image", "image_to_text")
    }
    recalls = [scores[f"R@{k}"] for scores in ways.values() for k in (1, 5, 10)]
    kept = {key: cell[key] for key in ("language", "protocol", "items", "ids", "notes")}
    return kept | {"mean_recall": sum(recalls) / len(recalls)} | ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/photos/pretrained")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/multi30k"))
    given = parser.parse_args()
    inputs = ["--model", given.model, "--system", "photos.yaml", "--data", given.data, "--images", given.images]
    found: dict[str, list[dict[str, Any]]] = {}
    for name, options in (("similarity", ()), ("reranked", RERANK)):
        folder = given.run / name
        for protocol in PROTOCOLS:
            output = ["--protocol", protocol, "--output", str(folder)]
            cclm(["iglue", "evaluate", "--tasks", "multi30k", "--partial", *inputs, *output, *options])
        cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "cells").glob("*.json"))]
        found[name] = [measured(cell) for cell in cells]
    report = given.run / "report"
    cclm(["iglue", "report", str(given.run / "similarity"), "--output", str(report), "--with-published", "none"])
    shutil.copyfile(report / "multi30k_text_to_image_R1_zero-shot.png", RESULTS / "multi30k.png")
    result = {"question": QUESTION, "model": "photos.yaml", "model_hash": ModelSource.of(Path(given.model)).sha256}
    write("multi30k", result | {"choice": str(Choice.read(Path(given.model)) or "")} | found | facts())


if __name__ == "__main__":
    main()
