"""How fast is a training step beside bare matrix products? The step of configs/pretrain/photos.yaml, data excluded.

python benchmarks/step.py                  # a minute on two quiet cores; writes results/step.json and step_profile.txt
python benchmarks/step.py --device cuda    # float32 and bf16, compiled and not; writes results/step_cuda.json
python benchmarks/step.py --smoke          # one round, nothing written
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import RESULTS, facts, seconds, write
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cclm.models.model import CCLMConfig, CCLMModel
from cclm.objectives.base import pair_losses
from cclm.storage import whole_file
from cclm.training.optim import OptimizerSettings, build_optimizer, freeze, parameter_groups
from cclm.training.settings import ComputeSettings
from cclm.types import PairBatch, StatesInput, TextInput

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "pretrain" / "photos.yaml"
VOCABULARY, BATCHES = 16000, 4
LENGTHS = {"image": 15, "text": 24}  # tokens of a batch's longest text; batches are sorted by length
ROUNDS, STEPS, SQUARE = 7, 4, 1024
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}  # dense bf16 TFLOP/s, as the maker states


def texts(count: int, longest: int) -> TextInput:
    lengths = torch.randint(longest - 3, longest + 1, (count, 1))
    mask = torch.arange(longest) < lengths
    return TextInput(torch.randint(5, VOCABULARY - 1, (count, longest)).where(mask, 1), mask)


def pairs(stream: str, size: int, states: torch.Size) -> PairBatch:
    """`states`: (L, W) of one image."""
    length = LENGTHS[stream]
    context = StatesInput(torch.randn(size, *states)) if stream == "image" else texts(size, length)
    return PairBatch(stream, context, texts(size, length))


class Step:
    """One update on random batches of the config's sizes: forward, backward, clipping, AdamW; as the system does it."""

    def __init__(self, device: str, bf16: bool = False, compiled: bool = False, times: int = 1) -> None:
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        torch.manual_seed(0)
        self.device, self.bf16 = device, bf16
        pixels = config["processor"]["image"]["image_size"]
        geometry = config["model"]["network"]["config"] | {"vocab_size": VOCABULARY, "image_size": pixels}
        self.model = CCLMModel(CCLMConfig(**geometry)).to(device)
        settings = OptimizerSettings(**config["model"]["optimizer"])
        freeze(self.model, settings.frozen)
        ComputeSettings(compile=compiled).apply(self.model)
        named = dict(self.model.named_parameters())
        self.optimizer = build_optimizer(parameter_groups(named, settings, set()), settings)
        self.trained = [parameter for parameter in named.values() if parameter.requires_grad]
        self.objectives = {
            stream: {name: build(chosen, times).to(device) for name, chosen in by_name.items()}
            for stream, by_name in config["model"]["objectives"].items()
        }
        sizes = {name: times * stream["batch_size"] for name, stream in config["data"]["streams"].items()}
        with torch.inference_mode():
            states = self.model.eval().image_states(torch.zeros(1, 3, pixels, pixels, device=device)).shape[1:]
        self.model.train()
        drawn = [[pairs(name, size, states).to(device) for name, size in sizes.items()] for _ in range(BATCHES)]
        self.batches, self.samples = cycle(drawn), sum(sizes.values())
        self.generator = torch.Generator(device).manual_seed(0)

    def losses(self) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            by_stream = [
                pair_losses(self.model, batch, self.objectives[batch.stream], self.generator)
                for batch in next(self.batches)
            ]
            return torch.stack([loss for losses in by_stream for loss in losses.values()]).sum()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.losses().backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()

    def operations(self) -> float:
        """Floating point operations of the products, forward and backward; recomputation inside attention left out."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for _ in range(BATCHES):
                self.losses().backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops() / BATCHES


def build(chosen: dict[str, Any], times: int) -> torch.nn.Module:
    module, _, name = chosen["class_path"].rpartition(".")
    options = dict(chosen.get("init_args", {}))
    if "rows" in options:
        options["rows"] *= times
    return getattr(importlib.import_module(module), name)(**options)


def finished(device: str, work: Callable[[], object], count: int) -> float:
    """Seconds for `count` runs of `work`, on CUDA until the device is done."""

    def runs() -> None:
        for _ in range(count):
            work()
        if device == "cuda":
            torch.cuda.synchronize()

    return seconds(runs)


def on_cpu(rounds: int) -> tuple[dict[str, Any], str]:
    """Rates and the profile. Rounds alternate step and product, so that a slow moment of the machine meets both."""
    step = Step("cpu")
    operations = step.operations()
    left, right = torch.randn(SQUARE, SQUARE), torch.randn(SQUARE, SQUARE)
    finished("cpu", step, 2), finished("cpu", lambda: left @ right, 4)
    products = max(1, round(STEPS * operations / (2 * SQUARE**3)))
    walls = [
        (finished("cpu", step, STEPS) / STEPS, finished("cpu", lambda: left @ right, products) / products)
        for _ in range(rounds)
    ]
    rates = [(operations / wall / 1e9, 2 * SQUARE**3 / product / 1e9) for wall, product in walls]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        finished("cpu", step, 3)
    result = {
        "question": "GFLOP/s of a training step over those of bare float32 matrix products (bar 0.6)",
        "gflop_per_step": round(operations / 1e9, 2),
        "samples_per_step": step.samples,
        "step_s": round(statistics.median(wall for wall, _ in walls), 4),
        "samples_per_s": round(step.samples / statistics.median(wall for wall, _ in walls), 1),
        "step_gflops": round(statistics.median(rate for rate, _ in rates), 1),
        "sgemm_gflops": round(statistics.median(product for _, product in rates), 1),
        "sgemm_share": round(statistics.median(rate / product for rate, product in rates), 3),
        "sgemm_share_each": [round(rate / product, 3) for rate, product in rates],
        "threads": torch.get_num_threads(),
    }
    return result, profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20)


def on_cuda(rounds: int, times: int) -> dict[str, Any]:
    """Samples/s and the share of the maker's peak, for both precisions, compiled and not."""
    name = torch.cuda.get_device_name()
    peak = next((tflops for key, tflops in PEAKS.items() if key in name), None)
    torch.set_float32_matmul_precision("high")
    modes = {}
    for bf16, compiled in ((False, False), (True, False), (True, True)):
        step = Step("cuda", bf16, compiled, times)
        operations = Step("cuda", bf16, times=times).operations()
        finished("cuda", step, 3 * BATCHES)
        wall = statistics.median(finished("cuda", step, 20) / 20 for _ in range(rounds))
        modes[("bf16" if bf16 else "tf32") + ("_compiled" if compiled else "")] = {
            "step_s": round(wall, 5),
            "samples_per_s": round(step.samples / wall, 1),
            "tflops": round(operations / wall / 1e12, 2),
            "mfu": round(operations / wall / 1e12 / peak, 4) if bf16 and peak else None,
        }
    return {
        "question": "training step on a GPU: samples/s, and operations over the maker's dense bf16 peak (mfu)",
        "device": name,
        "peak_tflops": peak,
        "batches_times": times,
        "gflop_per_step": round(operations / 1e9, 2),
        "modes": modes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--times", type=int, default=1, help="on CUDA: batch sizes and row budgets times this")
    parser.add_argument("--smoke", action="store_true", help="one round, nothing written")
    given = parser.parse_args()
    rounds = 1 if given.smoke else ROUNDS
    noted = facts(torch=torch.__version__)  # before the work, which is itself a load
    table = ""
    if given.device == "cuda":
        result = on_cuda(rounds, given.times)
    else:
        result, table = on_cpu(rounds)
    if given.smoke:
        print(json.dumps(result | noted, indent=2), table, sep="\n")
        return
    write("step_cuda" if given.device == "cuda" else "step", result | noted)
    if table:
        with whole_file(RESULTS / "step_profile.txt") as path:
            path.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
