"""Vision learned from English captions alone: are photographs captioned in German, French, Czech and Portuguese?

OMP_NUM_THREADS=1 python benchmarks/pivot_photos.py           # goes on where it was stopped
python benchmarks/pivot_photos.py --data.loader.workers=2     # any option of `cclm fit`, for all trainings
python benchmarks/pivot_photos.py --smoke                     # a few steps of everything, nothing written

Trains what is missing by `cclm fit`, one after another: for each seed a model on a frozen language model of five
languages, from English captions (zero-shot), the same with 5 % of the photographs' sentences translated
(quasi-zero-shot), and one on a language model that knows English only (control). The language models are those of
runs/photos_lm_aligned and runs/photos_lm_english, the same for all seeds. Then `cclm evaluate captions` on the
photographs of dev: all captions of a language, where it has five (1,147 photographs), and the one sentence that is the
same in every language, by which languages compare (1,081). Writes results/pivot_photos.json and .png.

`nearest`: what people say in the language of the training photograph that is nearest by what the frozen image encoder
sees (its first caption, or its sentence): what a model without any language could say.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, facts, write
from pivot_runs import ROOT, Run, built, cclm, fitted, further, noted, over_seeds, trained

from cclm.data.shards import read_records, write_shards
from cclm.evaluation.adapters.open import model_hash
from cclm.storage import whole_file

RUNS, DATA = Path("runs/pivot_photos"), "data/photos"
LANGUAGES = ("en", "de", "fr", "cs", "pt")
METRICS = ("CIDEr", "BLEU-4", "chrF", "fidelity", "of_en")
TOKENIZER, PARALLEL = "data/photos_lm_tokenizer", "data/parallel"
GENERAL = ("de", "fr", "cs", "pt")  # languages of sentences of other kinds
VARIANTS = {  # regime -> config, those of its language model in the order of training
    "zero-shot": ("photos_chat", ("photos_lm", "photos_lm_aligned")),
    "quasi-zero-shot": ("photos_chat_quasi", ("photos_lm", "photos_lm_aligned")),
    "control": ("photos_chat_control", ("photos_lm_english",)),
}
LANGUAGE_MODELS = sorted({name for _, stages in VARIANTS.values() for name in stages})
COLOURS = {"zero-shot": "#2f6db3", "quasi-zero-shot": "#e0872b", "control": "#9aa3ae"}
Scores = dict[str, dict[str, dict[str, float]]]  # language -> kind of reference -> metric -> value


@dataclass(frozen=True)
class Plan:
    """What is trained and measured. `changes`: of every config."""

    runs: Path
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    data: str
    beams: int
    changes: dict[str, Any]
    shared: Path = Path("runs")
    cache: Path | None = None  # of states of photographs; the configs' own

    def language_model(self, stages: Sequence[str]) -> Path:
        """The folder of the last stage; those before it are trained only where it is not there."""
        *before, last = stages
        folder = self.shared / last
        changes = dict(self.changes)
        if before:
            changes["model.network.pretrained"] = self.shared / before[-1] / "pretrained"
            if not (folder / "pretrained").is_dir():
                self.language_model(before)
        return trained(f"configs/pivot/{last}.yaml", folder, changes)

    def run(self, variant: str, seed: int) -> Run:
        """Errors: SystemExit where a language model that is not there fails to train."""
        config, stages = VARIANTS[variant]
        place = self.language_model(stages)
        streams = ["photos", "translated"] if variant == "quasi-zero-shot" else ["photos"]
        shards = {f"data.streams.{stream}.shards": f"{self.data}/train" for stream in streams}
        shards |= {"data.loader.cache": self.cache} if self.cache else {}
        changes = {"model.network.language_model.pretrained": place} | shards | self.changes
        return Run(variant.replace("-", "_"), f"configs/pivot/{config}.yaml", seed, changes)


def measured(folder: Path, plan: Plan, nearest: bool) -> dict[str, Any]:
    """The report on a model, made where it is not there or is of other weights."""
    path = folder.parent / "captions.json"
    writing = {"generation.max_tokens": 40, "generation.beams": plan.beams}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        same = found["model_hash"] == model_hash(str(folder)) and found["settings"]["generation"]["beams"] == plan.beams
        if same and (found["nearest"] or not nearest):
            return found
    told = [f"--model={folder}", f"--data={plan.data}/dev", f"--languages={','.join(LANGUAGES)}", f"--output={path}"]
    told += [f"--{name}={value}" for name, value in writing.items()]
    cclm("evaluate", "captions", *told, *([f"--nearest={plan.data}/train"] if nearest else []))
    return json.loads(path.read_text(encoding="utf-8"))


def measure(plan: Plan) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[Path]]]:
    """Reports by variant and seed; folders of every training by seed."""
    reports: dict[str, list[dict[str, Any]]] = {variant: [] for variant in plan.variants}
    folders: dict[str, list[Path]] = {}
    for seed, variant in itertools.product(plan.seeds, plan.variants):
        run = plan.run(variant, seed)
        folder = fitted(run, plan.runs)
        folders.setdefault(variant, []).append(run.folder(plan.runs))
        reports[variant].append(measured(folder, plan, nearest=not any(reports.values())))
    return reports, folders


def summary(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Language -> kind of reference -> metrics over seeds; `least`: what the worst of the other languages has, against
    the sentence that all share.
    """
    first = reports[0]["languages"]
    by_seed = [report["languages"] for report in reports]
    least = [
        {name: min(own[code]["parallel"].get(name, 0.0) for code in LANGUAGES[1:]) for name in ("fidelity", "of_en")}
        for own in by_seed
    ]
    return {
        language: {"regime": reports[0]["regimes"][language]}
        | {kind: over_seeds([_numbers(own[language][kind]) for own in by_seed], 2) for kind in kinds}
        for language, kinds in first.items()
    } | {"least": over_seeds(least, 2)}


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """The range of the bootstrap is left to the reports."""
    return {name: scores[name] for name in (*METRICS, "empty") if name in scores}


def above_nearest(result: Mapping[str, Any]) -> dict[str, Any]:
    """CIDEr of English captions above that of the nearest photograph's, by kind of reference and over seeds."""
    english = result["variants"].get("zero-shot", {}).get("en", {})
    return {
        kind: over_seeds([{"CIDEr": value - own["CIDEr"]} for value in english[kind]["CIDEr"]["seeds"]], 2)
        for kind, own in result["nearest"]["en"].items()
        if kind in english
    }


def chart(result: Mapping[str, Any], path: Path) -> None:
    """CIDEr against the sentence that all languages share, and fidelity: bars, ranges over seeds, the nearest's."""
    from matplotlib.figure import Figure

    variants = result["variants"]
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2).flat, ("CIDEr", "fidelity"), strict=True):
        for place, (variant, own) in enumerate(variants.items()):
            x = [number + 0.27 * (place - 1) for number in range(len(LANGUAGES))]
            values = [own[language]["parallel"][metric] for language in LANGUAGES]
            axes.bar(x, [one["mean"] for one in values], 0.25, label=variant, color=COLOURS[variant], zorder=2)
            for left, one in zip(x, values, strict=True):
                axes.plot([left, left], [min(one["seeds"]), max(one["seeds"])], color="#1d2430", zorder=3)
        for number, language in enumerate(LANGUAGES):
            level = result["nearest"][language]["parallel"][metric]
            label = "" if number else "nearest photograph's caption"
            axes.plot([number - 0.42, number + 0.42], [level, level], color="#c0392b", zorder=4, label=label)
        axes.set_xticks(range(len(LANGUAGES)), LANGUAGES)
        axes.set_title(f"{metric}, %", loc="left", fontsize=10)
        axes.grid(axis="y", color="#e3e6ea", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center", fontsize=9)
    figure.savefig(path, dpi=150, format="png")


def smoke_plan(seeds: tuple[int, ...], variants: tuple[str, ...], beams: int) -> Plan:
    """A few photographs and steps, all in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="pivot_photos_"))
    for split, count in (("train", 96), ("dev", 12)):
        write_shards(itertools.islice(read_records(ROOT / DATA / split), count), folder / "data" / split)
    changes = {"trainer.max_steps": 2, "trainer.val_check_interval": 2, "data.validation.photos.limit": 4}
    return Plan(folder, seeds[:1], variants, str(folder / "data"), beams, changes, folder, folder / "cache")


def prepare() -> None:
    """The data and the tokenizer."""
    source = "../shared/parallel/captions_en-de-fr-cs-pt.tsv.gz"
    built(DATA, "data", "build", "folder", "--source=../shared/photos", f"--output={DATA}")
    built(PARALLEL, "data", "build", "parallel_text", f"--source={source}", f"--output={PARALLEL}")
    for language in GENERAL:
        other = f"--source=../shared/parallel/general_en-{language}.tsv.gz"
        built(f"data/general_{language}", "data", "build", "parallel_text", other, f"--output=data/general_{language}")
    texts = f"--data=[{DATA}/train:en, {PARALLEL}/train]"
    kind = ("--vocab_size=6000", "--lowercase=true", "--language_model=true")
    built(TOKENIZER, "data", "tokenizer", texts, f"--output={TOKENIZER}", *kind)


def planned() -> tuple[Plan, bool]:
    """What is asked, looked at before anything is made; then the data are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of these")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, nothing written")
    given, others = parser.parse_known_args()
    if unknown := set(given.variants.split(",")) - set(VARIANTS):
        parser.error(f"--variants: no {unknown.pop()!r}; choose among {', '.join(VARIANTS)}")
    seeds, variants = tuple(map(int, given.seeds.split(","))), tuple(given.variants.split(","))
    try:
        plan = Plan(RUNS, seeds, variants, DATA, given.beams, further(others))
    except ValueError as error:
        parser.error(str(error))
    prepare()
    return (smoke_plan(seeds, variants, given.beams), True) if given.smoke else (plan, False)


def main() -> None:
    torch.set_num_threads(1)
    plan, smoke = planned()
    reports, folders = measure(plan)
    first = next(iter(reports.values()))[0]
    result: dict[str, Any] = {
        "question": "vision learned from English captions only: captions of photographs in four other languages (bars: "
        "fidelity >= 90, CIDEr >= 50 % of English's against the same sentence, control about 0; English above nearest)",
        "seeds": list(plan.seeds),
        "language_models": {name: noted([plan.shared / name]) for name in LANGUAGE_MODELS},  # each one for all seeds
        "beams": plan.beams,
        "changes": plan.changes,
        "variants": {variant: summary(own) for variant, own in reports.items()},
        "pictures": {
            language: {kind: own["pictures"] for kind, own in kinds.items()}
            for language, kinds in first["languages"].items()
        },
        "nearest": {
            language: {
                kind: {name: round(own[name], 2) for name in METRICS if name in own} for kind, own in kinds.items()
            }
            for language, kinds in first["nearest"].items()
        },
        "fidelity_of_people": {
            language: {kind: round(own["fidelity_ceiling"], 2) for kind, own in kinds.items()}
            for language, kinds in first["languages"].items()
        },
        "notes": first["notes"],
        "trainings": {variant: noted(own) for variant, own in folders.items()},
    }
    result |= {"english_above_nearest": above_nearest(result)} | facts(torch=torch.__version__)
    place = plan.runs if smoke else RESULTS
    with whole_file(place / "pivot_photos.png") as partial:
        chart(result, partial)
    if smoke:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        write("pivot_photos", result)


if __name__ == "__main__":
    main()
