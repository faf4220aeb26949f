"""What the service keeps of the throughput of batch search, under 64 clients that ask at once. Nothing is remembered: a
text is asked again only after all others, many more than the searcher keeps.

python benchmarks/service.py                # about 3 minutes; needs runs/photos/pretrained and data/photos
python benchmarks/service.py --seconds 10   # a try
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import fastapi
import numpy as np
import torch
import uvicorn
from machine import facts, write

from cclm.data.shards import read_records
from cclm.images import open_image
from cclm.retrieval.index import ImageIndex, build_index
from cclm.retrieval.manifest import ModelSource
from cclm.retrieval.metadata import Entry, Rows
from cclm.retrieval.query import Query
from cclm.retrieval.searcher import REMEMBERED, Searcher
from cclm.retrieval.service.server import use_threads
from cclm.verbs.inputs import load

MODEL, DATA = Path("runs/photos/pretrained"), [Path("data/photos/train"), Path("data/photos/dev")]
CLIENTS, BATCH, K = 64, 64, 10
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="under load; a third of it for each batch search")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = indexed(Path(folder) / "index")
        result = measured(Path(folder), texts, given.seconds)
    write("service", result)


def indexed(output: Path) -> list[str]:
    """Index the pictures; every distinct caption in any language, in a random order that is always the same."""
    model, _ = load(MODEL, "cpu")
    texts: set[str] = set()
    parts = []
    for folder in DATA:
        records = list(read_records(str(folder)))
        vectors = model.embed_images([open_image(record.image, 288) for record in records])
        parts.append(Rows.of([Entry(record.key, record.captions) for record in records], vectors))
        texts.update(text for record in records for captions in record.captions.values() for text in captions)
    build_index(parts, output, ModelSource.of(MODEL))
    ordered = sorted(text for text in texts if text.strip())
    return [ordered[place] for place in np.random.default_rng(0).permutation(len(ordered))]


def measured(folder: Path, texts: list[str], seconds: float) -> dict[str, Any]:
    assert len(texts) > 4 * REMEMBERED
    cores = os.cpu_count() or 1
    threads = max(1, cores - 1)  # as the service has them by default
    all_cores = batch_search(folder / "index", texts, seconds / 6, cores)
    before = batch_search(folder / "index", texts, seconds / 3, threads)
    served = service(folder, texts, seconds)
    after = batch_search(folder / "index", texts, seconds / 3, threads)
    return {
        "question": "throughput of cclm serve under concurrent clients against Searcher.search in batches",
        "clients": CLIENTS, "batch": BATCH, "k": K, "distinct_texts": len(texts), "texts_remembered": REMEMBERED,
        "threads": threads,
        "in_process_per_s": {"before": round(before, 1), "after": round(after, 1)},
        "in_process_on_all_cores_per_s": round(all_cores, 1),
        "service": served,
        "share_of_in_process": round(2 * served["per_s"] / (before + after), 3),
        "p99_over_p50": round(served["ms"]["p99"] / served["ms"]["p50"], 2),
        "errors": served["errors"],
        **facts(torch=torch.__version__, fastapi=fastapi.__version__, uvicorn=uvicorn.__version__),
    }  # fmt: skip


def batch_search(index: Path, texts: list[str], seconds: float, threads: int) -> float:
    """Queries a second, in one process, nothing around it."""
    use_threads(threads)
    searcher, asked = Searcher(ImageIndex.open(index), load(MODEL, "cpu")[0]), cycle(texts)
    searcher.search([Query.of(next(asked)) for _ in range(BATCH)], K)  # warms up
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        searcher.search([Query.of(next(asked)) for _ in range(BATCH)], K)
        count += BATCH
    return count / (time.perf_counter() - start)


def service(folder: Path, texts: list[str], seconds: float) -> dict[str, Any]:
    """Under load; a short load of other texts before it warms up."""
    half = len(texts) // 2
    serve = "from cclm.cli import main; main()"
    command = [sys.executable, "-c", serve, "serve", str(folder / "index"), "--port", "0", "--rate", "0"]
    with subprocess.Popen([*command, "--model", str(MODEL)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
            assert found, "the service did not start"
            load_with(folder / "warming", texts[half:], 2.0, found[1])
            used = cpu_seconds(process.pid)
            told = load_with(folder / "bodies", texts, seconds, found[1])
            used = cpu_seconds(process.pid) - used
        finally:
            process.terminate()
    return {
        "requests": told["requests"],
        "errors": sum(count for status, count in told["statuses"].items() if status != "200"),
        "per_s": round(told["per_s"], 1),
        "ms": {name: round(value, 1) for name, value in told["ms"].items()},
        "service_cpu_share": round(used / told["seconds"], 2),
        "clients_cpu_share": round(told["client_cpu_s"] / told["seconds"], 2),
    }


def load_with(bodies: Path, texts: list[str], seconds: float, port: str) -> dict[str, Any]:
    with open(bodies, "w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"terms": [{"text": text}], "k": K}, ensure_ascii=False) + "\n")
    command = [sys.executable, str(HERE / "clients.py"), port, str(bodies), str(seconds), str(CLIENTS)]
    return json.loads(subprocess.check_output(command, text=True))


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
