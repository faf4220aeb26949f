"""Emoji painted from English names alone: do prompts in five other languages give the same pictures?

OMP_NUM_THREADS=1 python benchmarks/pivot_emoji.py            # goes on where it was stopped
python benchmarks/pivot_emoji.py --data.loader.workers=2      # any option of `cclm fit`, for all trainings
python benchmarks/pivot_emoji.py --smoke                      # a few steps of everything, nothing written

Trains what is missing by `cclm fit`: a language model of names in 20 languages and one of English names alone, the
control, each the same for all seeds (runs/emoji_lm, runs/emoji_lm_english); on each of them, frozen, three painters
from pictures with English names, one a seed, and their second stage, in which the bridge becomes steady; those upon
the first are also measured as the first stage leaves them. A picture must find its English name among 100,
R-precision@10; chance is 10 %. The judge is the retrieval model of emoji.yaml (or emoji_full.yaml), which has nothing
in common with the painters but the data. Writes results/pivot_emoji.json and contact sheets of the first seed. No
reranking anywhere.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, facts, write
from pivot_runs import Run, built, cclm, fitted, further, noted, over_seeds, trained

from cclm.evaluation.adapters.open import model_hash
from cclm.evaluation.generation import HEADLINE, GenerationReport
from cclm.storage import pretrained_hash, whole_file

LANGUAGES = ("en", "de", "fr", "tr", "ar", "zh")
DATA, PICTURES = "data/emoji", "data/emoji_things"  # what judge and language models learn; what is painted
THINGS = '{train_style: twemoji, categories: "Animals & Nature, Food & Drink, Activities"}'
TOKENIZER = "data/emoji_lm_tokenizer"
LANGUAGE_MODELS = {  # variant -> config
    "aligned": "configs/pivot/emoji_lm.yaml",
    "control": "configs/pivot/emoji_lm_english.yaml",
}
PAINT, STEADY = "configs/pivot/emoji_paint.yaml", "configs/pivot/emoji_paint_steady.yaml"
PAINTERS = {  # what is measured -> language model, stages
    "aligned": ("aligned", (PAINT, STEADY)),
    "unsteady": ("aligned", (PAINT,)),
    "control": ("control", (PAINT, STEADY)),
}
TEXT, START = "model.network.text_encoder.pretrained", "model.network.pretrained"
JUDGES = {"emoji": Path("runs/emoji"), "emoji_full": Path("runs/emoji_full")}  # config of pretraining -> its run
SMOKE = {"trainer.max_steps": 2}


@dataclass(frozen=True)
class Plan:
    """What is trained and measured. `judge`: a pretrained folder. `prompts` of a language, each painted in so many
    `steps`. `changes`: of the configs of language models and painters.
    """

    runs: Path
    seeds: tuple[int, ...]
    judge: Path
    prompts: int
    steps: int
    changes: dict[str, Any] = field(default_factory=dict)
    shared: Path = Path("runs")  # of language models

    def reading(self, variant: str) -> Path:
        """The run of a language model."""
        return self.shared / Path(LANGUAGE_MODELS[variant]).stem

    def painting(self, painter: str, seed: int) -> Run:
        """The last stage; those before it are trained where they are not there."""
        variant, (first, *others) = PAINTERS[painter]
        reader = trained(LANGUAGE_MODELS[variant], self.reading(variant), self.changes)
        run = Run(f"{Path(first).stem}_{variant}", first, seed, {TEXT: reader, **self.changes})
        for stage in others:
            started = {TEXT: reader, START: fitted(run, self.runs)} | self.changes
            run = Run(f"{Path(stage).stem}_{variant}", stage, seed, started)
        return run

    def report(self, painter: str, seed: int) -> Path:
        return self.painting(painter, seed).folder(self.runs) / "report.json"


def prepare(judge: str) -> Path:
    """The data, and the retrieval model that judges; its folder."""
    built(DATA, "data", "build", "emoji", "--source", "data/emoji_packages", "--output", DATA)
    things = ("--source", "data/emoji_packages", "--output", PICTURES, f"--options={THINGS}")
    built(PICTURES, "data", "build", "emoji", *things)
    names = ("data", "tokenizer", f"--data=[{DATA}/names]", "--lowercase=true")
    built(TOKENIZER, *names, f"--output={TOKENIZER}", "--vocab_size=8000", "--language_model=true")
    folder = JUDGES[judge] / "pretrained"
    if not folder.exists():
        built("data/emoji_tokenizer", *names, "--output=data/emoji_tokenizer")
        cclm("fit", "--config", f"configs/pretrain/{judge}.yaml", f"--trainer.default_root_dir={folder.parent}")
    return folder


def measure(plan: Plan) -> dict[str, list[GenerationReport]]:
    """Painter -> the report of each seed."""
    found: dict[str, list[GenerationReport]] = {painter: [] for painter in PAINTERS}
    for seed, painter in itertools.product(plan.seeds, PAINTERS):
        model, output = fitted(plan.painting(painter, seed), plan.runs), plan.report(painter, seed)
        if not _measured(output, model, plan, seed):
            given = {"--model": model, "--judge": plan.judge, "--data": f"{PICTURES}/test", "--seed": seed}
            given |= {"--languages": ",".join(LANGUAGES), "--output": output}
            given |= {"--prompts": plan.prompts, "--sampling.steps": plan.steps}
            arguments = [str(part) for pair in given.items() for part in pair]
            cclm("evaluate", "generation", *arguments, "--keep")
        found[painter].append(GenerationReport.read(output))
    return found


def _measured(output: Path, model: Path, plan: Plan, seed: int) -> bool:
    """Whether the report is there, and one of this model and judge, as asked."""
    if not output.is_file():
        return False
    report = GenerationReport.read(output)
    told = [report.provenance.get(name) for name in ("model_hash", "judge_hash", "seed")]
    told += [report.protocol["prompts"], report.provenance["sampling"]["steps"]]
    return told == [pretrained_hash(model), model_hash(str(plan.judge)), seed, plan.prompts, plan.steps]


def summary(reports: Sequence[GenerationReport]) -> dict[str, Any]:
    """R-precision@10 and the rest by language. Of the least of the others: `ratio` over English's, as the bar asks, and
    `kept` of English's height above mismatched captions, which chance does not help.
    """
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
        floor = report.languages["en"][f"{HEADLINE}_mismatched"]
        above = min(
            report.languages[code][HEADLINE] - report.languages[code][f"{HEADLINE}_mismatched"]
            for code in LANGUAGES[1:]
        )
        kept = above / (english - floor) if english > floor else 0.0
        ratios.append({"ratio": least / english if english else 0.0, "kept": kept})
    real = over_seeds([{HEADLINE: report.real[HEADLINE]} for report in reports])
    return {"languages": languages, "real": real, **over_seeds(ratios), "regimes": reports[0].regimes}


def planned() -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--prompts", type=int, default=300, help="in galleries of 100")
    parser.add_argument("--steps", type=int, default=1, help="of sampling: more make pictures rougher")
    parser.add_argument("--judge", default="emoji", choices=JUDGES, help="emoji is trained in minutes")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, nothing written")
    given, others = parser.parse_known_args()
    try:
        changes = further(others)
    except ValueError as error:
        parser.error(str(error))
    seeds, judge = tuple(map(int, given.seeds.split(","))), prepare(given.judge)
    if given.smoke:
        folder = Path(tempfile.mkdtemp(prefix="pivot_emoji_"))
        return Plan(folder, seeds[:1], judge, 12, 2, dict(SMOKE), folder), True
    return Plan(Path("runs/pivot_emoji"), seeds, judge, given.prompts, given.steps, changes), False


def main() -> None:
    plan, smoke = planned()
    torch.set_num_threads(1)
    reports = measure(plan)
    result = {
        "question": "emoji art painted from English names, prompts in five other languages "
        "(bars: R-precision@10 of 100 >= .5 x en, control at chance, 10)",
        "seeds": list(plan.seeds),
        "protocol": reports["aligned"][0].protocol,
        **{painter: summary(found) for painter, found in reports.items()},
        "judge": str(plan.judge),
        "sampling": reports["aligned"][0].provenance["sampling"],
        "changes": plan.changes,
        "language_models": {variant: noted([plan.reading(variant)]) for variant in LANGUAGE_MODELS},
        "trainings": {
            painter: noted([plan.painting(painter, seed).folder(plan.runs) for seed in plan.seeds])
            for painter in PAINTERS
        },
        **facts(torch=torch.__version__),
    }
    if smoke:
        print(json.dumps(result, indent=1))
        return
    for painter in PAINTERS:
        with whole_file(RESULTS / f"pivot_emoji_{painter}.png") as partial:
            shutil.copyfile(plan.report(painter, plan.seeds[0]).with_suffix(".png"), partial)
    write("pivot_emoji", result)


if __name__ == "__main__":
    main()
