"""How long exact ranks of both directions take, and how much memory: at xFlickr&CO's size, and at 100,000 x 100,000.

python benchmarks/retrieval_ranks.py        # some minutes; writes benchmarks/results/retrieval_ranks.json

Every case runs in a process of its own. Memory is its peak beyond that of the process once everything is imported and
torch has made its first product; the embeddings themselves are in it. Where the machine is busy, the processor time of
one thread is the figure to believe: two threads wait for each other.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from machine import facts, seconds, write

from cclm.evaluation import metrics
from cclm.evaluation.items import Caption, Captions
from cclm.evaluation.metrics import Relevance
from cclm.evaluation.protocol import RetrievalProtocol
from cclm.evaluation.scoring import ScoreOptions, score_embeddings

IMAGES, LANGUAGES, WIDTH, ROUNDS = 2000, 8, 512, 5
MANY, MANY_WIDTH = 100_000, 256


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def near(images: torch.Tensor, seed: int) -> torch.Tensor:
    """Captions (N, E) of which about every third finds its image."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(images + 6 / images.shape[1] ** 0.5 * noise, dim=1)


def drawn(count: int, width: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(0)), dim=1)


def test_set() -> Captions:
    names = tuple(f"{row}.jpg" for row in range(IMAGES))
    captions = tuple(Caption(f"{name}#0", name, "text") for name in names)
    protocol = RetrievalProtocol(name="official", about="")
    return Captions(task="xflickrco", language="", protocol=protocol, split="test", captions=captions, gallery=names)


def timed(work: Callable[[torch.Tensor], object], texts: list[torch.Tensor]) -> dict[str, Any]:
    """Wall time of all languages one after another, round by round; processor time of the quickest round."""
    walls, used = [], []
    for _ in range(ROUNDS):
        start = time.process_time()
        walls.append(seconds(lambda: [work(own) and None for own in texts]))  # nothing is kept
        used.append(time.process_time() - start)
    return {"seconds": walls, "processor_s": round(min(used), 3)}


def scores() -> dict[str, Any]:
    """What `cclm iglue evaluate` does once it has the embeddings: ranks, intervals, the 100 best of every query."""
    test, images = test_set(), drawn(IMAGES, WIDTH)
    texts = [near(images, seed) for seed in range(1, LANGUAGES + 1)]
    found = score_embeddings(test, images, texts[0], ScoreOptions(draws=0)).result.scores
    recalls = {way: found[way]["R@1"] for way in ("text_to_image", "image_to_text")}
    return {"R@1": recalls} | timed(lambda own: score_embeddings(test, images, own), texts)


def ranks() -> dict[str, Any]:
    """Ranks alone."""
    images, relevance = drawn(IMAGES, WIDTH), Relevance.of(torch.arange(IMAGES), IMAGES)
    texts = [near(images, seed) for seed in range(1, LANGUAGES + 1)]
    return timed(lambda own: metrics.search(own, images, relevance), texts)


def many() -> dict[str, Any]:
    """Ranks of both directions of 100,000 texts and as many images."""
    images, relevance = drawn(MANY, MANY_WIDTH), Relevance.of(torch.arange(MANY), MANY)
    texts = near(images, 1)
    found = []
    start = time.process_time()
    wall = seconds(lambda: found.extend(metrics.search(texts, images, relevance)))
    recalls = [metrics.summarise(one.ranks)["R@1"] for one in found]
    return {"R@1": recalls, "seconds": [wall], "processor_s": round(time.process_time() - start, 1)}


CASES = {"scores": scores, "ranks": ranks, "many": many}


def measured(case: str, threads: int = 2) -> dict[str, Any]:
    """In a process of its own."""
    setting = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, __file__, case], capture_output=True, text=True, env=setting)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def run(case: str) -> dict[str, Any]:
    warm = torch.ones(256, 256)
    warm.double() @ warm.double()
    before = peak_mb()
    found = CASES[case]()
    walls = found.pop("seconds")
    return found | {
        "median_s": round(statistics.median(walls), 3),
        "seconds": [round(wall, 3) for wall in walls],
        "imported_mb": round(before),
        "growth_mb": round(peak_mb() - before),
        "threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1])))
        return
    result = {
        "question": "exact ranks of both directions: seconds, and peak memory beyond the process with torch imported",
        "xflickrco": {
            "images": IMAGES, "languages": LANGUAGES, "width": WIDTH,
            "aims": {"seconds": 2, "growth_mb": 300},
            "ranks": measured("ranks"), "ranks_one_thread": measured("ranks", 1),
            "scored": measured("scores"), "scored_one_thread": measured("scores", 1),
        },
        "many": {
            "images": MANY, "texts": MANY, "width": MANY_WIDTH,
            "aims": {"growth_mb": 1000},
            "ranks": measured("many"),
        },
        **facts(torch=torch.__version__),
    }  # fmt: skip
    write("retrieval_ranks", result)


if __name__ == "__main__":
    main()
