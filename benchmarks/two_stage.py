"""How fast does the matching head reorder the candidates of a two-stage retrieval, beside the original's loop?

OMP_NUM_THREADS=1 python benchmarks/two_stage.py          # a quarter of an hour; writes results/two_stage.json
python benchmarks/two_stage.py --device cuda              # also at full width; writes results/two_stage_cuda.json
python benchmarks/two_stage.py --smoke                    # a few queries at tiny width, nothing written

1,000 images and 1,000 texts, 128 candidates per query, both directions, as the original evaluates xFlickr&CO and WIT
(texts of up to 80 tokens) and Multi30K (40). Its loop is written anew from reference/cclm.md 4.1, on the same model:
query by query it gathers the states of 128 images, or of 128 texts, padded to the longest that a text may be, and fuses
them, all keys and values projected anew; the two directions know nothing of each other. It is timed on a part of the
queries, ours on all, or at a quarter of the width on the pairs of a part of the images; both are told for all of them.
Both start from encoded images and texts. How many candidates the directions share depends on the model, so what is
gained without sharing any is told too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine import facts, write
from torch import Tensor
from torch.nn import functional as F

from cclm.evaluation import metrics
from cclm.models.encoding import EncodedImages, EncodedTexts, EncodingOptions, inference, match_logits
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.types import View

COUNT, K = 1000, 128  # images, and as many texts; candidates per query
LIMITS = (80, 40)  # tokens that the original pads texts to
# What all embeddings have in common, so that a text and an image are candidates of each other as often as under the
# model of configs/pretrain/photos.yaml on Multi30K's dev pictures: 84 % of them, at an eighth of the gallery.
COMMON = 0.18
# Tokens of the 2,000 German captions of xFlickr&CO under a vocabulary of 24,000: the 0, 5, .. 100 % points.
LENGTHS = (4, 10, 11, 12, 13, 13, 14, 15, 15, 16, 17, 18, 18, 19, 20, 22, 23, 25, 28, 34, 65)


@dataclass(frozen=True)
class Size:
    """`images`: whose pairs are matched when ours is timed, `queries`: of each direction, when the loop is."""

    width: int
    layers: int
    patches: int
    images: int
    queries: int
    rounds: int = 3

    @property
    def config(self) -> CCLMConfig:
        return CCLMConfig(
            vocab_size=1000,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_heads=max(4, self.width // 64),
            text_layers=1,
            fusion_layers=self.layers,
            embedding_size=256,
            backbone="test_resnet",
            image_size=32,
            heads=["match"],
            initializer_range=0.05,  # scores that differ
        )


SIZES = {
    "cpu": {"tiny": Size(64, 2, 17, COUNT, 40), "quarter": Size(256, 6, 145, 40, 4)},
    "cuda": {"quarter": Size(256, 6, 145, COUNT, COUNT), "full": Size(1024, 6, 145, COUNT, 250)},
}


@dataclass(frozen=True)
class Encoded:
    """A test whose images and texts are encoded."""

    model: CCLMModel
    images: EncodedImages
    texts: EncodedTexts
    to_image: Tensor  # (T, K) rows of each text's candidates
    to_text: Tensor  # (N, K) rows of each image's

    @classmethod
    def drawn(cls, size: Size, device: str) -> Encoded:
        """Random states and embeddings, texts as long as real ones."""
        torch.manual_seed(0)
        model = CCLMModel(size.config).eval().to(device)
        spread = torch.tensor(LENGTHS, dtype=torch.float32)
        places = torch.rand(COUNT) * (len(LENGTHS) - 1)
        low = places.long()
        lengths = torch.lerp(spread[low], spread[low + 1], places - low).round().long().tolist()
        embeddings = F.normalize(torch.randn(2, COUNT, 256) + COMMON * torch.randn(256), dim=-1)
        states = torch.randn(COUNT, size.patches, size.width)
        view = View(states, torch.ones(COUNT, size.patches, dtype=torch.bool), embeddings[0])
        texts = EncodedTexts(embeddings[1], torch.arange(COUNT), [torch.randn(n, size.width) for n in lengths])
        to_image, to_text = (
            metrics.top(queries, gallery, K)[1]
            for queries, gallery in (embeddings.flip(0).unbind(), embeddings.unbind())
        )
        return cls(model, EncodedImages(view, torch.arange(COUNT)), texts, to_image, to_text)

    def pairs(self, images: int) -> Tensor:
        """All pairs (P, 2) that either direction wants of the first so many images, each once."""
        rows = torch.arange(COUNT)[:, None]
        codes = torch.cat([(self.to_image * COUNT + rows).flatten(), (rows * COUNT + self.to_text).flatten()]).unique()
        pairs = torch.stack([codes // COUNT, codes % COUNT], dim=1)
        return pairs[pairs[:, 0] < images]


def loop(encoded: Encoded, queries: int, longest: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The original's: image rows, text rows and scores (K,) of one query after another, of both directions by turns."""
    device, model = next(encoded.model.parameters()).device, encoded.model
    states = [F.pad(one[:longest], (0, 0, 0, max(0, longest - len(one)))) for one in encoded.texts.states]
    mask = torch.stack([torch.arange(longest) < len(one) for one in encoded.texts.states])
    texts = View(torch.stack(states), mask, encoded.texts.distinct).to(device)  # (T, longest, D)
    images = encoded.images.distinct.to(device)
    for query in range(queries):
        own = torch.full((K,), query)
        for image_rows, text_rows in ((encoded.to_image[query], own), (own, encoded.to_text[query])):
            fused = model.fuse(texts.select(text_rows.to(device)), images.select(image_rows.to(device)))
            yield image_rows, text_rows, model.match_logits(fused)[:, 1].float().cpu()


class Watch:
    """Seconds of the clock and of the processor that one `with` after another took."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.clock: list[float] = []
        self.processor: list[float] = []

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.clock.append(time.perf_counter() - self._start[0])
        self.processor.append(time.process_time() - self._start[1])

    def per(self, count: int) -> tuple[float, float]:
        """Median seconds of the clock and of the processor for each of `count`."""
        return statistics.median(self.clock) / count, statistics.median(self.processor) / count


def difference(logits: Tensor, pairs: Tensor, found: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, int]:
    """The largest between our scores and the loop's, and of how many that both have."""
    place = torch.full((COUNT, COUNT), -1)
    place[pairs[:, 0], pairs[:, 1]] = torch.arange(len(pairs))
    image_rows, text_rows, scores = (torch.cat(column) for column in zip(*found, strict=True))
    places = place[image_rows, text_rows]
    both = places >= 0
    return float((logits[places[both]] - scores[both]).abs().max()), int(both.sum())


def measured(size: Size, device: str) -> dict[str, Any]:
    encoded, options = Encoded.drawn(size, device), EncodingOptions()
    pairs, everything = encoded.pairs(size.images), len(encoded.pairs(COUNT))
    ours, loops = Watch(device), {longest: Watch(device) for longest in LIMITS}
    for _ in range(size.rounds + 1):  # by turns: a slow moment of the machine meets all of them
        with ours:
            logits = match_logits(encoded.model, encoded.images, encoded.texts, pairs, options)[:, 1]
        for longest, watch in loops.items():
            with watch, inference(encoded.model, options):
                found = list(loop(encoded, size.queries, longest))
            if longest == max(LIMITS):  # no text is cut there
                apart, compared = difference(logits, pairs, found)
    for watch in (ours, *loops.values()):
        del watch.clock[0], watch.processor[0]  # the first round warms up
    clock, processor = ours.per(len(pairs))
    result: dict[str, Any] = {
        "width": size.width, "fusion_layers": size.layers, "patches": size.patches, "rounds": size.rounds,
        "pairs_matched": everything, "pairs_matched_by_the_loop": 2 * COUNT * K,
        "pairs_timed": len(pairs), "queries_timed_of_the_loop": 2 * size.queries,
        "scores_compared": compared, "largest_difference": apart, "standard_deviation": round(float(logits.std()), 4),
        "ours_s": round(everything * clock, 1), "ours_pairs_per_s": round(1 / clock, 1),
    }  # fmt: skip
    for longest, watch in loops.items():
        slow, used = watch.per(2 * size.queries * K)
        result[f"loop_of_{longest}_tokens"] = {
            "loop_s": round(2 * COUNT * K * slow, 1),
            "times_faster": round(2 * COUNT * K * slow / (everything * clock), 2),
            "times_less_processor": round(2 * COUNT * K * used / (everything * processor), 2),
            "times_faster_sharing_none": round(slow / clock, 2),
            "times_less_processor_sharing_none": round(used / processor, 2),
        }
    return result


def peak(run: Callable[[], object], device: str) -> float:
    """MB that the work needs above what stood in memory before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(which: str) -> float:
    """MB of this process, now or at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(which))


def memory(name: str, device: str, whose: str) -> float:
    """MB of a part of the work, which is all that memory depends on. Asked in a process where no freed block waits."""
    size = SIZES[device][name]
    encoded, options = Encoded.drawn(size, device), EncodingOptions()
    if whose == "ours":
        pairs = encoded.pairs(64)[::8]
        return peak(lambda: match_logits(encoded.model, encoded.images, encoded.texts, pairs, options), device)
    with inference(encoded.model, options):
        return peak(lambda: list(loop(encoded, 2, max(LIMITS))), device)


def in_a_process(name: str, device: str, whose: str) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return round(pool.apply(memory, (name, device, whose)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=list(SIZES))
    parser.add_argument("--smoke", action="store_true", help="a few queries at tiny width, nothing written")
    given = parser.parse_args()
    if given.smoke:
        print(measured(replace(SIZES["cpu"]["tiny"], images=8, queries=2, rounds=1), "cpu"))
        return
    result: dict[str, Any] = {
        "question": "reordering 128 candidates of each query with the matching head, both directions, beside the "
        "original's loop over queries on the same model",
        "images": COUNT, "texts": COUNT, "candidates": K, "device": given.device,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    for name, size in SIZES[given.device].items():
        result[name] = measured(size, given.device) | {
            f"{whose}_peak_mb": in_a_process(name, given.device, whose) for whose in ("ours", "loop")
        }
    if given.device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    write("two_stage" + "_cuda" * (given.device == "cuda"), result | facts(torch=torch.__version__))


if __name__ == "__main__":
    main()
