"""How long does all of IGLUE take, from a pretrained model to the report, and does every part of it fit together?

python benchmarks/iglue_end_to_end.py --data DATASETS     # minutes on two cores; writes results/iglue_end_to_end.json
DATASETS holds the benchmark's own files (XVNLI, xGQA, marvl ..). The model is tiny and has learned nothing, pictures
are drawn in place of the benchmark's, and few-shot or dev splits stand for the English training sets where these are
not at hand: the figures are seconds, and that every number says all of this.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import facts, write

from cclm.cli import main as cclm
from cclm.data.tokenizer import train_tokenizer
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.task import DataFolder, find
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings, load_tokenizer

QUESTION = "IGLUE end to end on a CPU at tiny width: seconds per stage, texts real, pictures drawn"
SIZE, TOKENS, WIDTH = 32, 32, 32
READ = {"xvnli": "train_48", "xgqa": "train_10", "xflickrco": "test", "marvl": "test", "wit": "test"}
CHANGES = {
    "processor": {
        "max_tokens": TOKENS,
        "image": {"image_size": SIZE, "crop_scale": [1.0, 1.0], "flip": 0.0, "augment": False},
    },
    "trainer": {"enable_progress_bar": False, "enable_model_summary": False, "check_val_every_n_epoch": 5},
    "model": {"optimizer": {"lr": 1e-3}},
    "data": {"loader": {"workers": 0}},
}
WHOLE = Path(__file__).resolve().parent.parent / "configs" / "finetune" / "xgqa_classify.yaml"
# Of English training and dev sets, what stands for those that the benchmark's repository does not hold as files.
SPLITS = {
    "xvnli": ("--train", "xvnli=train_48", "--dev", "xvnli=train_5"),
    "marvl": ("--train", "marvl=train_10x2:id", "--dev", "marvl=train_10:zh"),
    "xgqa": ("--train", "xgqa=train_10", "--dev", "xgqa=dev", "--config", f"xgqa={WHOLE}"),
    "xflickrco": ("--train", "xflickrco=dev", "--dev", "xflickrco=train_100:de"),
    "wit": ("--train", "wit=dev", "--dev", "wit=none"),
}
# Without English of MaRVL, which is NLVR2's 13,934 pictures; xGQA's test is at hand in English alone.
LANGUAGES = {"marvl": "id,sw,ta,tr,zh", "xgqa": "en"}
FEW = ("--rates", "1e-3,1e-5", "--epochs", "5")
STAGES = {
    "zero-shot": {task: () for task in SPLITS},
    "few-shot": {
        "xvnli": ("--languages", "ar,es", "--shots", "1,10,48", *FEW),
        "marvl": ("--languages", "id,zh", "--shots", "2,10x2", *FEW),
        "xgqa": ("--languages", "en", "--shots", "1,10", *FEW),
        "xflickrco": ("--languages", "de,ja", "--shots", "1,10,100", *FEW),
    },
    "translate-test": {"xvnli": (), "marvl": (), "xflickrco": (), "wit": ()},
}


def start_model(data: DataFolder, folder: Path) -> Path:
    texts = [
        item.text
        for name, split in READ.items()
        for language in find(name).splits[split].languages
        if language != "en" or name == "xgqa"
        for item in find(name).items(data, language, split)[:600]
        if item.text
    ]
    train_tokenizer(texts, folder / "tokenizer", 4000, character_coverage=0.9995)
    processor = CCLMProcessor(load_tokenizer(str(folder / "tokenizer")), ImageSettings(image_size=SIZE), TOKENS)
    torch.manual_seed(0)
    geometry = {"hidden_size": WIDTH, "text_layers": 1, "fusion_layers": 1, "num_heads": 2, "intermediate_size": 64}
    config = CCLMConfig(
        vocab_size=processor.vocab_size,
        backbone="test_resnet",
        image_size=SIZE,
        embedding_size=16,
        max_positions=64,
        pre_norm=True,
        pooling="mean",
        heads=["match"],
        **geometry,
    )
    CCLMModel(config).save_pretrained(folder / "start")
    processor.save_pretrained(folder / "start")
    (folder / "changes.yaml").write_text(yaml.safe_dump(CHANGES))
    return folder / "start"


def timed(work: Callable[[], object]) -> tuple[float, str]:
    """Seconds, and what was printed."""
    printed, start = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(printed):
        work()
    return round(time.perf_counter() - start, 1), printed.getvalue()


def stage(regime: str, inputs: list[str], tasks: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Seconds and cells of each task in a regime."""
    found = {}
    for task, options in tasks.items():
        languages = () if "--languages" in options or task not in LANGUAGES else ("--languages", LANGUAGES[task])
        command = ["iglue", "run", "--tasks", task, "--regime", regime, *inputs, *SPLITS[task], *languages, *options]
        seconds, printed = timed(lambda command=command: cclm([*command, "--json"]))
        results = json.loads(printed)
        assert results and all(StandIns.note in result["notes"] for result in results)
        found[task] = {"seconds": seconds, "cells": len(results), "items": sum(each["items"] for each in results)}
        print(f"{regime} {task}: {found[task]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=None, help="keep the run here, and go on with it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start = start_model(DataFolder(given.data), folder)
        run = given.run or folder / "run"
        inputs = ["--model", str(start), "--data", str(given.data), "--output", str(run), "--stand-in-images"]
        inputs += ["--config", str(folder / "changes.yaml"), "--system", "tiny"]
        stages = {regime: stage(regime, inputs, tasks) for regime, tasks in STAGES.items()}
        report, _ = timed(lambda: cclm(["iglue", "report", str(run), "--output", str(folder / "report")]))
        again, printed = timed(lambda: [stage(regime, inputs, tasks) for regime, tasks in STAGES.items()])
        trained = len(list((run / "models").glob("*/finished.json")))
    total = round(time.perf_counter() - began - again, 1)
    print(printed)
    figures = {"stages": stages, "report_seconds": report, "total_seconds": total, "all_of_it_again_seconds": again}
    cells = sum(found["cells"] for tasks in stages.values() for found in tasks.values())
    note = "pictures are drawn and the model has learned nothing: no accuracy is told"
    write(
        "iglue_end_to_end",
        {"question": QUESTION, "note": note, "models_trained": trained, "cells": cells}
        | figures
        | facts(torch=torch.__version__),
    )


if __name__ == "__main__":
    main()
