"""Approximate search of a million vectors: recall, speed against exact search, size, and what building takes of memory.

python benchmarks/approximate_search.py    # 8 minutes; writes benchmarks/results/approximate_search.json

A mixture: topics with 20 subjects each, a topic being a direction, a subject a deviation from it and a picture one from
its subject, each as long as 1.2 topics and with variances that fall as 1/i along turned axes, as embeddings' do.
Queries are pictures that are not indexed. `recall_of_one_list`: how much of what is near the nearest cluster holds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jsonargparse import auto_cli
from machine import facts, seconds, write

from cclm.retrieval.embeddings import METADATA_SCHEMA, EmbeddingsManifest
from cclm.retrieval.index import ImageIndex
from cclm.retrieval.metadata import Entry, table_of
from cclm.retrieval.parts import EmbeddedRows, PartTask, write_part

DIM, QUERIES, K, PART = 256, 1000, 10, 50_000
SUBJECTS, DEVIATION = 20, 1.2
EXACT = ["--factory", "Flat"]
SETTINGS = {
    "chosen": [],
    "less recall": ["--min-recall", "0.9"],
    "small": ["--factory", "IVF4096,RaBitQfs4"],
}


class Mixture:
    """Draws vectors (N, DIM) of unit norm."""

    def __init__(self, rows: int) -> None:
        self._generator = np.random.default_rng(0)
        scale = (1 / np.sqrt(1 + np.arange(DIM))).astype("f4")
        self._scale = DEVIATION * scale / np.linalg.norm(scale)
        self._axes = np.linalg.qr(self._generator.standard_normal((DIM, DIM)))[0].astype("f4")
        topics = self._normal(max(rows // 1000, 10)) / float(np.sqrt(DIM))
        subjects = np.repeat(topics, SUBJECTS, axis=0)
        self._subjects = subjects + self._normal(len(subjects)) * self._scale

    def draw(self, rows: int) -> np.ndarray:
        subjects = self._subjects[self._generator.integers(len(self._subjects), size=rows)]
        vectors = (subjects + self._normal(rows) * self._scale) @ self._axes
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _normal(self, rows: int) -> np.ndarray:
        return self._generator.standard_normal((rows, DIM), dtype=np.float32)


def write_embeddings(vectors: np.ndarray, folder: Path) -> None:
    """As `cclm embed --dtype float32` leaves them, of a model that does not matter."""
    parts = range(0, len(vectors), PART)
    for number, start in enumerate(parts):
        block = vectors[start : start + PART]
        entries = table_of([Entry(f"{start + row}") for row in range(len(block))])
        for name in METADATA_SCHEMA.names[2::-1]:
            entries = entries.add_column(0, METADATA_SCHEMA.field(name), entries["path"])
        task = PartTask(f"{number:04}", "mixture", "")
        write_part(folder, task, EmbeddedRows(entries, block), {"dtype": "float32"}, Counter())
    rows = len(vectors)
    EmbeddingsManifest("model", "0" * 64, DIM, "float32", rows, rows, len(parts), ".", ["mixture"], "sample").write(
        folder
    )


def build(embeddings: Path, output: Path, options: list[str], memory: int) -> dict[str, Any]:
    """Seconds and peak memory of `cclm index build` in a process of its own."""
    program = (  # getrusage tells no less than the peak of this process, which that one is forked from
        "import re, sys; from cclm.cli import main; main(sys.argv[1:]); "
        "print(1024 * int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]))"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "index",
        "build",
        "--embeddings",
        str(embeddings),
        "--output",
        str(output),
    ]
    command += ["--max-memory", str(memory), *options]
    printed: list[str] = []
    taken = seconds(lambda: printed.extend(subprocess.check_output(command, text=True).splitlines()))
    peak = int(printed[-1])
    return {
        "options": " ".join(options),
        "build_s": round(taken, 1),
        "max_memory": memory,
        "peak_rss": peak,
        "rss_share_of_max_memory": round(peak / memory, 3),
        "printed": printed[:-1],
    }


def measure(output: Path, queries: np.ndarray, exact: ImageIndex, rounds: int) -> dict[str, Any]:
    """Recall against, and speed as a multiple of, exact search of the same queries in the same rounds."""
    index = ImageIndex.open(output)
    (segment,) = index.manifest.segments
    found, expected = index.nearest(queries, K).ids, exact.nearest(queries, K).ids  # which warms up
    times: dict[str, list[float]] = {"approximate": [], "exact": []}
    for _ in range(rounds):
        times["approximate"].append(seconds(lambda: index.nearest(queries, K)))
        times["exact"].append(seconds(lambda: exact.nearest(queries, K)))
    ratios = [e / a for e, a in zip(times["exact"], times["approximate"], strict=True)]
    alone = [seconds(partial(index.nearest, query[None], K)) for query in queries[:200]]
    return {
        "factory": segment.factory,
        "search": segment.search,
        "bytes_per_vector": round(segment.bytes_per_vector, 1),
        "recall_at_10": round(recall(expected, found), 4),
        "times_exact": round(statistics.median(ratios), 1),
        "search_s": [round(value, 4) for value in times["approximate"]],
        "exact_s": [round(value, 4) for value in times["exact"]],
        "one_query_ms": round(1000 * statistics.median(alone), 3),
        "measured_by_build": asdict(segment.measured) if segment.measured else None,
    }


def one_list(output: Path, queries: np.ndarray, expected: np.ndarray) -> float:
    """Recall of what the nearest list alone holds, refined: how far clusters give the neighbours away."""
    (segment,) = ImageIndex.open(output).manifest.segments
    index = faiss.read_index(str(output / "segments" / segment.name / "image.index"))
    faiss.ParameterSpace().set_index_parameters(index, "nprobe=1,k_factor_rf=16")
    return round(recall(expected, index.search(queries, K)[1]), 3)


def recall(expected: np.ndarray, found: np.ndarray) -> float:
    return float((expected[:, :, None] == found[:, None, :]).any(2).mean())


def main(
    rows: int = 1_000_000, rounds: int = 5, settings: list[str] | None = None, name: str = "approximate_search"
) -> None:
    mixture = Mixture(rows)
    vectors = np.concatenate([mixture.draw(min(PART, rows - start)) for start in range(0, rows, PART)])
    queries = mixture.draw(QUERIES)
    memory = vectors.nbytes // 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_embeddings(vectors, folder / "embeddings")
        build(folder / "embeddings", folder / "exact", EXACT, 4 * vectors.nbytes)
        exact = ImageIndex.open(folder / "exact")
        results = {}
        for setting in settings or SETTINGS:
            output = folder / setting
            built = build(folder / "embeddings", output, SETTINGS[setting], memory)
            results[setting] = built | measure(output, queries, exact, rounds)
            print(setting, json.dumps(results[setting]), flush=True)
        hardness = one_list(folder / next(iter(results)), queries, exact.nearest(queries, K).ids)
    result = {
        "question": "what an index reaches that was chosen under half the memory of the raw vectors",
        "rows": rows, "dim": DIM, "queries": QUERIES, "k": K, "rounds": rounds, "raw_bytes": vectors.nbytes,
        "threads": faiss.omp_get_max_threads(), "recall_of_one_list": hardness, "settings": results,
        **facts(numpy=np.__version__, faiss=faiss.__version__),
    }  # fmt: skip
    write(name, result)


if __name__ == "__main__":
    auto_cli(main)
