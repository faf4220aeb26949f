"""How much faster is our pre-training step than the original's, on the same pairs, weights and machine?

python benchmarks/reference_ratio.py                          # all sizes in float32 and bf16, within an hour
python benchmarks/reference_ratio.py --size full --precision bf16    # one of them; the others' results stay
python benchmarks/reference_ratio.py --device cuda            # configs/pretrain/cclm_3m.yaml, tf32, bf16 and fp16
python benchmarks/reference_ratio.py --smoke                  # one round at tiny width, nothing written

Reads ../shared/photos and ../shared/parallel, or the folder that --data names, and data/photos_tokenizer where it is
made. Writes results/reference_ratio.json, and the top operators of both steps in float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import RESULTS, facts, write
from original_step import OriginalModel, PaddedBatch, masked, padded
from real_texts import drawn_texts, tokenizer
from step import build, finished
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor, load_tokenizer
from cclm.objectives.base import pair_losses
from cclm.storage import whole_file
from cclm.training.optim import OptimizerSettings, build_optimizer, parameter_groups
from cclm.training.settings import ComputeSettings
from cclm.types import ImageInput, PairBatch, TextInput

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "configs" / "pretrain" / "cclm_3m.yaml"
POOL = 8  # batches that are sorted by length together, as the loader does
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = {"ours": ("alternate", "joint"), "original": ("alternate",)}


@dataclass(frozen=True)
class Size:
    """The recipe's network at `width`, of `layers` text and as many fusion layers.

    Of the 8 batches of a pool, sorted by length, `timed` are used, evenly spaced.
    """

    width: int
    layers: int = 6
    depths: tuple[int, ...] = (2, 2, 18, 2)
    batch: int = 128
    window: int = 7
    vocabulary: int = 250002
    timed: int = POOL
    rounds: int = 5
    left_out: str = ""

    def geometry(self, recipe: dict[str, Any]) -> dict[str, Any]:
        swin = {
            "embed_dim": self.width // 8,
            "depths": self.depths,
            "num_heads": tuple(max(1, self.width // 256) * times for times in (1, 2, 4, 8)),
            "window_size": self.window,
        }
        return recipe["model"]["network"]["config"] | {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_heads": max(4, self.width // 64),
            "text_layers": self.layers,
            "fusion_layers": self.layers,
            "image_size": 32 * self.window,
            "backbone_options": recipe["model"]["network"]["config"]["backbone_options"] | swin,
        }


TINY = Size(64, layers=2, depths=(2, 2, 2, 2), batch=64, window=4, vocabulary=16000)
SIZES = {
    "cpu": {
        "tiny": TINY,
        "quarter": Size(256, batch=16, timed=2, rounds=3, left_out="batches of 16, not 128"),
        "full": Size(
            1024,
            layers=2,
            depths=(1, 1, 5, 1),
            batch=8,
            timed=2,
            rounds=2,
            left_out="two thirds of each part: 2 of 6 text, 2 of 6 fusion, 8 of 24 Swin layers; batches of 8, not 128",
        ),
    },
    "cuda": {"quarter": Size(256), "full": Size(1024)},
}


@dataclass(frozen=True)
class Run:
    """What is timed, and where."""

    size: str
    precision: str
    device: str
    threads: int
    data: str
    tokenizer: str

    @property
    def geometry(self) -> Size:
        return SIZES[self.device][self.size]

    @property
    def name(self) -> str:
        return f"{self.size}_{self.precision}"


# -- data ------------------------------------------------------------------------------------------------------------


def batches(run: Run, recipe: dict[str, Any]) -> list[dict[str, PairBatch]]:
    """The timed batches of every stream, the original's order: text, image."""
    size, pixels = run.geometry, 32 * run.geometry.window
    processor = CCLMProcessor(load_tokenizer(run.tokenizer))
    streams: dict[str, list[PairBatch]] = {}
    for stream in ("text", "image"):
        limit = recipe["data"]["streams"][stream]["max_tokens"]
        drawn = zip(*drawn_texts(Path(run.data), stream, POOL * size.batch), strict=True)
        tokens = zip(*(processor.tokens(list(side), limit) for side in drawn), strict=True)
        rows = sorted(tokens, key=lambda sides: max(map(len, sides)))  # as the loader sorts them
        streams[stream] = []
        for start in range(0, len(rows), size.batch):
            sides = [processor.padded(list(side)) for side in zip(*rows[start : start + size.batch], strict=True)]
            context = ImageInput(torch.randn(size.batch, 3, pixels, pixels)) if stream == "image" else sides[1]
            streams[stream].append(PairBatch(stream, context, sides[0]))
    every = POOL // size.timed
    steps = [dict(zip(streams, step, strict=True)) for step in zip(*streams.values(), strict=True)]
    return steps[every // 2 :: every]


def lengths(steps: list[dict[str, PairBatch]], recipe: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Tokens per text: of the texts themselves, as our batches pad them, and as the original pads them."""
    found = {}
    for stream in steps[0]:
        sides = [side for step in steps for side in (step[stream].target, step[stream].context)]
        texts = [side for side in sides if isinstance(side, TextInput)]
        count = sum(len(text) for text in texts)
        found[stream] = {
            "mean": round(sum(int(text.attention_mask.sum()) for text in texts) / count, 1),
            "padded": round(sum(text.attention_mask.numel() for text in texts) / count, 1),
            "original_padded": recipe["data"]["streams"][stream]["max_tokens"],
        }
    return found


# -- the two steps ---------------------------------------------------------------------------------------------------


class Contestant:
    """A network that trains on batches of the recipe's streams. Ours, as the system trains it."""

    def __init__(self, run: Run, recipe: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.run = run
        self.model = CCLMModel(CCLMConfig(**run.geometry.geometry(recipe))).to(run.device).train()
        self.objectives = {
            stream: {name: build(chosen, 1) for name, chosen in by_name.items()}
            for stream, by_name in recipe["model"]["objectives"].items()
        }
        self.generator = torch.Generator(run.device).manual_seed(0)
        self.scaler = torch.amp.GradScaler(run.device, enabled=run.precision == "fp16")
        self.settings = OptimizerSettings(**recipe["model"]["optimizer"])
        self.updating = 0.0  # processor seconds spent on clipping and AdamW, which smaller batches do not make less
        self.equip(self.model, {})

    def equip(self, module: torch.nn.Module, clipping: dict[str, bool]) -> None:
        named = dict(module.named_parameters())
        self.optimizer = self.build_optimizer(parameter_groups(named, self.settings, set()))
        self.trained, self.clipping = list(named.values()), clipping

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return build_optimizer(groups, self.settings)

    def compile(self) -> None:
        ComputeSettings(compile=True).apply(self.model)

    def prepare(self, batch: PairBatch) -> PairBatch | PaddedBatch:
        """The batch as the data loader hands it over; not timed."""
        return batch.to(self.run.device)

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        return pair_losses(self.model, batch, self.objectives[batch.stream], self.generator)

    def update(self, given: Iterable[Any]) -> None:
        """One update on the sum of these batches' losses."""
        self.optimizer.zero_grad()
        with torch.autocast(self.run.device, PRECISIONS[self.run.precision], enabled=self.run.precision != "fp32"):
            loss = torch.stack([loss for batch in given for loss in self.losses(batch).values()]).sum()
        assert loss.isfinite(), "the step diverged"
        self.scaler.scale(loss).backward()
        start = time.process_time()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.trained, self.settings.clip_norm, **self.clipping)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updating += time.process_time() - start

    def step(self, mode: str, given: dict[str, Any]) -> None:
        """`joint`: one update on all streams; `alternate`: one on each."""
        for part in [list(given.values())] if mode == "joint" else [[batch] for batch in given.values()]:
            self.update(part)


class Original(Contestant):
    """The original's step over the same weights; AdamW and clipping tensor by tensor."""

    def __init__(self, run: Run, recipe: dict[str, Any]) -> None:
        super().__init__(run, recipe)
        self.limits = {name: stream["max_tokens"] for name, stream in recipe["data"]["streams"].items()}
        self.original = OriginalModel(self.model).train()
        self.equip(self.original, {"foreach": False})

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        rest = {"lr": self.settings.lr, "betas": self.settings.betas, "eps": self.settings.eps}
        return torch.optim.AdamW(groups, **rest, fused=False, foreach=False)

    def compile(self) -> None:
        """As it was: not at all."""

    def prepare(self, batch: PairBatch) -> PaddedBatch:
        objective = self.objectives[batch.stream]["masked_lm"]
        draft = masked(batch, objective, self.model, seed=0)
        length, pad = self.limits[batch.stream], self.model.config.pad_token_id
        return padded(batch, draft, length, objective.max_masks, pad).to(self.run.device)

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        return self.original.losses(batch)


# -- measuring -------------------------------------------------------------------------------------------------------


def peak_gib(device: str) -> float:
    """The most memory this process has held, on the device where it is a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM"))


def measure(side: str, run: Run, first: bool) -> dict[str, Any]:
    """Seconds of a step, averaged over the batches, by mode; the first time also operations and the profile.

    Called in a process of its own, so that the two sides share neither memory nor caches.
    """
    torch.set_num_threads(run.threads)
    torch.set_float32_matmul_precision("high" if run.device == "cuda" else "highest")
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    contestant = {"ours": Contestant, "original": Original}[side](run, recipe)
    drawn = batches(run, recipe)
    steps = [{stream: contestant.prepare(batch) for stream, batch in step.items()} for step in drawn]
    found: dict[str, Any] = {}
    if first:
        found["tokens"] = lengths(drawn, recipe)
        found["parameters"] = sum(parameter.numel() for parameter in contestant.trained)
        found["operations"] = operations(contestant, steps)
    if run.device == "cuda":
        contestant.compile()
        for given in 2 * steps:  # every shape, as some are compiled for it
            for mode in MODES[side]:
                contestant.step(mode, given)
        torch.cuda.reset_peak_memory_stats()
    contestant.step("alternate", steps[0])
    found["step_s"], found["processor_s"], found["network_s"] = {}, {}, {}
    for mode in MODES[side]:
        spent, contestant.updating = time.process_time(), 0.0
        walls = [finished(run.device, partial(contestant.step, mode, given), 1) for given in steps]
        found["step_s"][mode] = sum(walls) / len(steps)
        found["processor_s"][mode] = (time.process_time() - spent) / len(steps)
        found["network_s"][mode] = found["processor_s"][mode] - contestant.updating / len(steps)
        found.setdefault("peak_gib", peak_gib(run.device))  # of alternating updates
    if first:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            contestant.step("alternate", steps[len(steps) // 2])
        rows = profiler.key_averages()
        found["profile"] = rows.table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=48)
    return found


def operations(contestant: Contestant, steps: list[dict[str, Any]]) -> float:
    """Floating point operations of a step's products, averaged over the batches."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for given in steps:
            contestant.step("alternate", given)
    return counter.get_total_flops() / len(steps)


def compare(run: Run, rounds: int) -> tuple[dict[str, Any], str]:
    """Both sides in turn, `rounds` times; the result and the profiles."""
    noted = facts(torch=torch.__version__)
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "original": []}
    for index in range(rounds):
        for side, measured in found.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                measured.append(alone.submit(measure, side, run, index == 0).result())
    size = run.geometry
    result: dict[str, Any] = {
        "network": {
            "width": size.width,
            "layers": f"{size.layers} text, {size.layers} fusion, Swin {' + '.join(map(str, size.depths))}",
            "vocabulary": size.vocabulary,
            "parameters_million": round(found["ours"][0]["parameters"] / 1e6, 1),
            "left_out": size.left_out,
        },
        "pairs_per_stream": size.batch,
        "tokens": found["ours"][0]["tokens"],
        "ours": speeds(found["ours"], "alternate", size.batch),
        "ours_joint": speeds(found["ours"], "joint", size.batch),
        "original": speeds(found["original"], "alternate", size.batch),
    }
    for name, mode, clock in (
        ("ratio", "alternate", "step_s"),
        ("ratio_joint", "joint", "step_s"),
        ("ratio_processor_time", "alternate", "processor_s"),
        ("ratio_without_adamw", "alternate", "network_s"),
    ):
        rounds_of = zip(found["original"], found["ours"], strict=True)
        each = [theirs[clock]["alternate"] / ours[clock][mode] for theirs, ours in rounds_of]
        result[name] = round(statistics.median(each), 2)
        result[f"{name}_each"] = [round(value, 2) for value in each]
    profiles = "\n".join(f"{side}\n{measured[0]['profile']}" for side, measured in found.items())
    return result | {"threads": run.threads} | noted, profiles


def speeds(measured: list[dict[str, Any]], mode: str, batch: int) -> dict[str, float]:
    wall = statistics.median(m["step_s"][mode] for m in measured)
    return {
        "step_s": round(wall, 4),
        "processor_s": round(statistics.median(m["processor_s"][mode] for m in measured), 4),
        "without_adamw_s": round(statistics.median(m["network_s"][mode] for m in measured), 4),
        "samples_per_s": round(2 * batch / wall, 2),
        "gflop_per_step": round(measured[0]["operations"] / 1e9, 1),
        "gflops": round(measured[0]["operations"] / 1e9 / wall, 1),
    } | ({"peak_gib": round(max(m["peak_gib"] for m in measured), 2)} if mode == "alternate" else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(SIZES), default="cpu")
    parser.add_argument("--size", choices=tuple(SIZES["cpu"]), help="only this size")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), help="only this precision")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", default=str(ROOT.parent / "shared"), help="the folder of photos and parallel")
    parser.add_argument("--smoke", action="store_true", help="one round at tiny width, nothing written")
    given = parser.parse_args()
    sizes = ["tiny"] if given.smoke else [given.size] if given.size else list(SIZES[given.device])
    precisions = [given.precision] if given.precision else list(PRECISIONS)[: 3 if given.device == "cuda" else 2]
    with tempfile.TemporaryDirectory() as spare:
        trained = str(tokenizer(Path(given.data), Path(spare)))
        for size, precision in itertools.product(sizes, precisions):
            run = Run(size, precision, given.device, given.threads, given.data, trained)
            result, profiles = compare(run, 1 if given.smoke else run.geometry.rounds)
            if given.smoke:
                print(json.dumps(result, indent=2), profiles, sep="\n")
            else:
                keep(run, result, profiles)


def keep(run: Run, result: dict[str, Any], profiles: str) -> None:
    """Write the result beside those of the other runs."""
    name = "reference_ratio" + ("_cuda" if run.device == "cuda" else "")
    path = RESULTS / f"{name}.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else {}
    question = "seconds of the original's pre-training step over ours, two updates each (bar 2.0)"
    write(name, {"question": question, "runs": runs | {run.name: result}})
    if run.precision == "fp32":
        with whole_file(RESULTS / f"{name}_{run.size}_profile.txt") as text:
            text.write_text(profiles + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
