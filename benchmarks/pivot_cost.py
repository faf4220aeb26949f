"""What does stage 1 cost, beside fine-tuning the same model plainly with transformers? Memory at its peak, samples/s.

OMP_NUM_THREADS=1 python benchmarks/pivot_cost.py    # 16 minutes on one quiet core; writes results/pivot_cost.json
python benchmarks/pivot_cost.py --device cuda        # larger sizes; writes results/pivot_cost_cuda.json
python benchmarks/pivot_cost.py --smoke              # one step a side, nothing written

Three sides, each in processes of its own, on the same batches of the same model:
plain    a loop around transformers: image encoder in the step, every weight trains, logits of all tokens, its own loss
frozen   the same loop with language model and image encoder frozen, as a careful user would write it
ours     chat_s1: cached states of the frozen image encoder, logits at answers alone
The losses of all three must be the same before the first update.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from machine import facts, write
from torch import Tensor

from cclm.pivot.bridges import BridgeSettings
from cclm.pivot.image_encoder import ImageEncoderSettings, states_of
from cclm.pivot.image_to_text import ImageToText, ImageToTextSettings
from cclm.pivot.language_model import LanguageModelSettings
from cclm.pivot.presets import CHAT, apply_preset
from cclm.types import VISUAL, PromptInput, StatesInput, VisualPromptBatch

SIDES = ("plain", "frozen", "ours")
ROUNDS, BATCHES = 3, 2
TOLERANCE = 2e-3  # of the loss: cached states are in half precision


@dataclass(frozen=True)
class Size:
    """`prompt`: tokens beside the picture's states, `answer`: of the longest. `pixels`: a side of a picture."""

    language_model: dict[str, Any]
    vocabulary: int
    backbone: str
    pixels: int
    bridge: BridgeSettings
    batch: int
    prompt: int
    answer: int
    steps: int


def llama(width: int, layers: int, heads: int) -> dict[str, Any]:
    geometry = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": "llama", "intermediate_size": 8 * width // 3, "tie_word_embeddings": False} | geometry


SIZES = {
    "cpu": {
        "photos": Size(  # of configs/pivot/photos_chat.yaml
            llama(256, 4, 4) | {"intermediate_size": 704}, 6000, "tf_efficientnet_lite0", 224,
            BridgeSettings(states=12, heads=4, width=192), batch=64, prompt=2, answer=16, steps=6,
        ),
        "small": Size(
            llama(384, 8, 6), 32000, "vit_small_patch16_224", 224, BridgeSettings(states=32, heads=6, width=384),
            batch=8, prompt=16, answer=24, steps=4,
        ),
    },
    "cuda": {
        "qwen_siglip": Size(  # the sizes of configs/pivot/chat_siglip_qwen.yaml
            {
                "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
            },
            151936, "vit_base_patch16_siglip_224", 224, BridgeSettings(states=64, heads=12, width=768),
            batch=64, prompt=20, answer=24, steps=10,
        )
    },
}  # fmt: skip


def built(size: Size) -> ImageToText:
    """The whole model with random weights, the same ones in every process."""
    torch.manual_seed(0)
    settings = ImageToTextSettings(
        LanguageModelSettings(config=size.language_model), ImageEncoderSettings(size.backbone), size.bridge
    )
    language_model = settings.language_model.build(size.vocabulary, 0, 2, 1)
    encoder = settings.image_encoder.build(size.pixels)
    bridge = size.bridge.build(states_of(encoder, size.pixels), language_model.width)
    return ImageToText(settings, language_model, encoder, bridge)


def prompts(size: Size, number: int) -> PromptInput:
    """Places of a picture, a prompt, and answers up to 4 tokens shorter than the longest, padded on the right."""
    generator = torch.Generator().manual_seed(number)
    before = size.bridge.states + size.prompt
    ids = torch.randint(5, size.vocabulary, (size.batch, before + size.answer), generator=generator)
    ids[:, : size.bridge.states] = VISUAL
    ends = before + size.answer - torch.randint(0, 5, (size.batch, 1), generator=generator)
    mask = torch.arange(ids.shape[1]) < ends
    labels = ids.where(mask & (torch.arange(ids.shape[1]) >= before), -100)
    return PromptInput(ids.where(mask, 1), mask, labels)


def pixels(size: Size, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + number)
    return torch.randn(size.batch, 3, size.pixels, size.pixels, generator=generator)


def cache(size: Size, folder: Path, device: str) -> float:
    """Write the states of all batches as the cache does; seconds for a picture."""
    encoder = built(size).image_encoder.eval().to(device)
    start = time.perf_counter()
    for number in range(BATCHES):
        with torch.inference_mode():
            np.save(folder / f"{number}.npy", encoder(pixels(size, number).to(device)).half().cpu().numpy())
    return (time.perf_counter() - start) / (BATCHES * size.batch)


class Side:
    """One way to compute a step. Data that wait on a disk or in a loader's workers are at hand before it begins."""

    def __init__(self, name: str, size: Size, folder: Path, device: str) -> None:
        self.name, self.device = name, device
        self.model = built(size).to(device)
        if name != "plain":
            apply_preset("chat_s1", CHAT, self.model)
        self.prompts = [prompts(size, number).to(device) for number in range(BATCHES)]
        self.seen = [
            torch.from_numpy(np.load(folder / f"{number}.npy")) if name == "ours" else pixels(size, number)
            for number in range(BATCHES)
        ]
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.trained = trained
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def loss(self, number: int) -> Tensor:
        told, seen = self.prompts[number], self.seen[number].to(self.device)
        if self.name == "ours":
            return self.model(VisualPromptBatch("pictures", told, (), StatesInput(seen)))
        visual = self.model.bridge(self.model.image_encoder(seen))
        words = self.model.language_model.plain.get_input_embeddings()(told.input_ids.clamp(min=0))
        embeds = words.masked_scatter((told.input_ids == VISUAL).unsqueeze(-1), visual)
        mask = told.attention_mask.long()
        return self.model.language_model.plain(inputs_embeds=embeds, attention_mask=mask, labels=told.labels).loss

    def step(self, number: int) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss = self.loss(number % BATCHES)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at the most. (What getrusage tells begins with the parent's peak.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measured(name: str, size: Size, folder: Path, device: str, steps: int) -> dict[str, float]:
    """Of one side, in this process: warm up for one step, then time the others."""
    before = memory("VmRSS")
    side = Side(name, size, folder, device)
    side.model.eval()
    with torch.no_grad():
        first = float(side.loss(0))
    side.model.train(name == "plain")  # what is frozen rests; the bridge has no dropout here
    side.step(0)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for number in range(steps):
        side.step(number)
    if device == "cuda":
        torch.cuda.synchronize()
    rate = steps * size.batch / (time.perf_counter() - start)
    if device == "cuda":
        return {"samples_per_second": rate, "peak_mib": torch.cuda.max_memory_allocated() / 2**20, "loss": first}
    peak = memory("VmHWM")
    return {"samples_per_second": rate, "peak_mib": peak, "peak_mib_above_imports": peak - before, "loss": first}


def apart(name: str, size: str, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """`measured` in a process of its own, so that nobody's peak is another's."""
    command = [sys.executable, __file__, "--device", given.device, "--side", name, "--size", size]
    command += ["--folder", str(folder), *(["--smoke"] if given.smoke else [])]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


def compared(size: str, given: argparse.Namespace) -> dict[str, Any]:
    chosen = SIZES[given.device][size]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        seconds = cache(chosen, Path(folder), given.device)
        for _ in range(1 if given.smoke else ROUNDS):
            for name in SIDES:  # in turn, so that whatever else runs slows all alike
                found[name].append(apart(name, size, Path(folder), given))
    losses = {name: rounds[0]["loss"] for name, rounds in found.items()}
    if max(losses.values()) - min(losses.values()) > TOLERANCE * max(losses.values()):
        raise SystemExit(f"{size}: the sides do not compute the same function: {losses}")
    sides = {name: summary(rounds) for name, rounds in found.items()}
    model = built(chosen)
    parts = {name: round(sum(p.numel() for p in part.parameters()) / 1e6, 2) for name, part in model.named_children()}
    peak = "peak_mib" if given.device == "cuda" else "peak_mib_above_imports"
    return {
        "millions_of_parameters": parts,
        "batch": chosen.batch,
        "tokens": chosen.bridge.states + chosen.prompt + chosen.answer,
        "sides": sides,
        "seconds_to_cache_a_picture": round(seconds, 4),
        "faster_than_plain": ratio(sides["ours"], sides["plain"], "samples_per_second"),
        "faster_than_frozen": ratio(sides["ours"], sides["frozen"], "samples_per_second"),
        "memory_of_plain": ratio(sides["ours"], sides["plain"], peak),
        "memory_of_frozen": ratio(sides["ours"], sides["frozen"], peak),
    }


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the rounds, and of the rate all of them."""
    rates = [each["samples_per_second"] for each in rounds]
    medians = {key: round(statistics.median(each[key] for each in rounds), 2) for key in rounds[0] if key != "loss"}
    return medians | {"rounds": [round(rate, 2) for rate in rates], "loss": round(rounds[0]["loss"], 4)}


def ratio(ours: dict[str, Any], other: dict[str, Any], key: str) -> float:
    return round(ours[key] / other[key], 2)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--smoke", action="store_true")
    for name in ("--side", "--size", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # of a process that measures one side
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sizes = SIZES[given.device]
    if given.side:
        size = sizes[given.size]
        steps = 1 if given.smoke else size.steps
        print(json.dumps(measured(given.side, size, Path(given.folder), given.device, steps)))
        return
    result = {
        "question": "S1 beside plain fine-tuning of the same model with transformers (bar: 1.5 times its samples/s)",
        "threads": torch.get_num_threads(),
        "sizes": {name: compared(name, given) for name in sizes},
        **facts(torch=torch.__version__, transformers=transformers.__version__),
    }
    if given.smoke:
        print(json.dumps(result["sizes"], indent=2))
    else:
        write("pivot_cost" if given.device == "cpu" else "pivot_cost_cuda", result)


if __name__ == "__main__":
    main()
