"""Emoji painted from English names alone: do prompts in five other languages give the same pictures?

OMP_NUM_THREADS=1 python benchmarks/pivot_emoji.py            # hours on one core; goes on where it was stopped
python benchmarks/pivot_emoji.py --smoke                      # a few steps of everything, nothing written

Trains what is missing by `cclm fit`: the retrieval model of emoji_full.yaml, which judges, and whose frozen text side
is what the painter reads; the same without pairs of names, the control, to which other languages say nothing; and a
painter on each of them, for each of the seeds. A picture must find its English name among 100, R-precision@10, by the
judge; chance is 10 %. Writes results/pivot_emoji.json and the contact sheets of the first seed. No reranking anywhere.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, facts, write
from pivot_runs import Run, built, cclm, fitted, over_seeds, seconds_of

from cclm.evaluation.generation import HEADLINE, GenerationReport
from cclm.storage import whole_file

DATA, LANGUAGES = "data/emoji", ("en", "de", "fr", "tr", "ar", "zh")
JUDGE, CONTROL = "configs/pretrain/emoji_full.yaml", "configs/ablation/emoji_full_without_parallel.yaml"
PAINT, KEY = "configs/pivot/emoji_paint.yaml", "model.network.text_encoder.pretrained"
SMOKE = {"trainer.max_steps": 2}
READERS = {"aligned": Path("runs/emoji_full"), "control": Path("runs/emoji_full_without_parallel")}


@dataclass(frozen=True)
class Plan:
    """What is trained and measured. `readers`: variant -> folder of the model whose text side the painter reads.
    `changes`: of every config. `options`: of `cclm evaluate generation`.
    """

    runs: Path
    seeds: tuple[int, ...]
    readers: dict[str, Path]
    options: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)

    def painting(self, variant: str, seed: int) -> Run:
        reader = self.readers[variant] / "pretrained"
        return Run(f"paint_{variant}", PAINT, seed, {KEY: reader, **self.changes})

    def report(self, variant: str, seed: int) -> Path:
        return self.painting(variant, seed).folder(self.runs) / "report.json"


def prepare(plan: Plan) -> None:
    """The data, the retrieval model and its control."""
    built(DATA, "data", "build", "emoji", "--source", "data/emoji_packages", "--output", DATA)
    tokenizer = ("--data", f"[{DATA}/names]", "--output", "data/emoji_tokenizer", "--lowercase", "true")
    built("data/emoji_tokenizer", "data", "tokenizer", *tokenizer)
    changes = [f"--{key}={value}" for key, value in plan.changes.items()]
    for variant, folder in plan.readers.items():
        configs = (JUDGE, CONTROL) if variant == "control" else (JUDGE,)
        if not (folder / "pretrained").exists():
            cclm("fit", *(f"--config={one}" for one in configs), f"--trainer.default_root_dir={folder}", *changes)


def measure(plan: Plan) -> dict[str, list[GenerationReport]]:
    """Variant -> the report of each seed."""
    found: dict[str, list[GenerationReport]] = {variant: [] for variant in plan.readers}
    for seed in plan.seeds:
        for variant in plan.readers:
            run, output = plan.painting(variant, seed), plan.report(variant, seed)
            model = fitted(run, plan.runs)
            if not output.is_file():
                given = {"--model": model, "--judge": plan.readers["aligned"] / "pretrained", "--data": f"{DATA}/test"}
                given |= {"--languages": ",".join(LANGUAGES), "--seed": seed, "--output": output}
                arguments = [str(part) for pair in given.items() for part in pair]
                cclm("evaluate", "generation", *arguments, *plan.options, "--keep")
            found[variant].append(GenerationReport.read(output))
    return found


def summary(reports: Sequence[GenerationReport]) -> dict[str, Any]:
    """R-precision@10 and the rest by language; `ratio`: the least of the others' over English's, as the bar asks."""
    kept = ("FID", "KID", "CLIP-score", HEADLINE, f"{HEADLINE}_mismatched", "consistency", "consistency_mismatched")
    languages = {
        language: over_seeds(
            [{name: own[name] for name in kept if name in own} for own in (one.languages[language] for one in reports)]
        )
        for language in LANGUAGES
    }
    ratios = []
    for report in reports:
        english = report.languages["en"][HEADLINE]
        least = min(report.languages[language][HEADLINE] for language in LANGUAGES[1:])
        ratios.append({"least": least / english if english else 0.0})
    real = over_seeds([{HEADLINE: report.real[HEADLINE]} for report in reports])
    return {"languages": languages, "real": real, "ratio": over_seeds(ratios)["least"], "regimes": reports[0].regimes}


def planned() -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--prompts", type=int, default=300, help="in galleries of 100")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, nothing written")
    given = parser.parse_args()
    seeds = tuple(map(int, given.seeds.split(",")))
    if given.smoke:
        folder = Path(tempfile.mkdtemp(prefix="pivot_emoji_"))
        readers = {variant: folder / variant for variant in READERS}
        return Plan(folder, seeds[:1], readers, ("--prompts=12", "--sampling.steps=2"), dict(SMOKE)), True
    return Plan(Path("runs/pivot_emoji"), seeds, READERS, (f"--prompts={given.prompts}",)), False


def main() -> None:
    plan, smoke = planned()
    torch.set_num_threads(1)
    prepare(plan)
    reports = measure(plan)
    result = {
        "question": "emoji art painted from English names, prompts in five other languages "
        "(bars: R-precision@10 of 100 >= .5 x en, control at chance, 10)",
        "seeds": list(plan.seeds),
        "protocol": reports["aligned"][0].protocol,
        **{variant: summary(found) for variant, found in reports.items()},
        "seconds": {
            f"paint_{variant}": [seconds_of(plan.painting(variant, seed), plan.runs) for seed in plan.seeds]
            for variant in plan.readers
        },
        **facts(torch=torch.__version__),
    }
    if smoke:
        print(json.dumps(result, indent=1))
        return
    for variant in plan.readers:
        with whole_file(RESULTS / f"pivot_emoji_{variant}.png") as partial:
            shutil.copyfile(plan.report(variant, plan.seeds[0]).with_suffix(".png"), partial)
    write("pivot_emoji", result)


if __name__ == "__main__":
    main()
