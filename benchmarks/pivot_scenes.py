"""Vision learned in English alone, on drawn scenes: does it hold in German, Turkish and Chinese, in both directions?

OMP_NUM_THREADS=1 python benchmarks/pivot_scenes.py           # hours on one core; goes on where it was stopped
python benchmarks/pivot_scenes.py --ablation                  # half an hour; writes results/pivot_scenes_ablation.json
python benchmarks/pivot_scenes.py --smoke                     # a few steps of everything, nothing written

Trains what is missing below runs/pivot_scenes by `cclm fit`, for each of three seeds: language models that know all
four languages, with their states aligned across languages and without (stage 0), and one that knows English only, the
control; on each of them, frozen, image-to-text and text-to-image from pictures with English captions. Tested on scenes
whose combination of attributes no picture of training had. Writes results/pivot_scenes.json, a chart and a contact
sheet. The ablation is image-to-text on the aligned language model where pictures do not meet their captions within it
(answers alone).

Image to text, of every test picture: `exact`, all four attributes right in a sentence of the language asked for;
`fidelity`, words of that language. Text to image, judged by benchmarks/scene_reader.py: the mean accuracy of the
attributes, beside that of the same pictures under other scenes' captions, `mismatched`. No reranking anywhere.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import re
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, facts, write
from PIL import Image
from pivot_runs import Run, built, fitted, noted, over_seeds
from scene_reader import SceneReader, load_reader
from transformers.utils.logging import disable_progress_bar

from cclm.data.shards import read_records
from cclm.evaluation.contact_sheet import contact_sheet
from cclm.evaluation.generation_metrics import matched, mismatched
from cclm.pivot.generation import GenerationOptions
from cclm.pivot.image_to_text import ImageToText, Prompt
from cclm.pivot.sampling import SamplingOptions
from cclm.pivot.text_to_image import TextToImage
from cclm.storage import pretrained_hash, whole_file
from cclm.types import Record
from data_recipes.scenes import LANGUAGES, SCENES, VALUES, Scene, describe, read_scene, scene_of

RUNS, DATA, TOKENIZER = Path("runs/pivot_scenes"), "data/scenes", "data/scenes_tokenizer"
TOKENIZER_OPTIONS = ("--vocab_size=240", "--language_model=true")
LANGUAGE_MODELS = {  # variant -> config
    "aligned": "configs/pivot/scenes_lm_aligned.yaml",
    "unaligned": "configs/pivot/scenes_lm.yaml",
    "control": "configs/pivot/scenes_lm_english.yaml",
}
# What it is good for that pictures meet their captions within the language model: image to text on the aligned one,
# without.
ABLATION, WITHOUT = "answers_alone", {"model.alignment": "null", "model.weights": "{}"}
CONFIGS = {"chat": "configs/pivot/scenes_chat.yaml", "paint": "configs/pivot/scenes_paint.yaml"}
KEYS = {"chat": "model.network.language_model.pretrained", "paint": "model.network.text_encoder.pretrained"}
SHOWN = {
    "chat": ("exact", "image to text: all four attributes right"),
    "paint": ("attributes", "text to image: attributes right (red: mismatched)"),
}
SMOKE = {"trainer.max_steps": 2}
PER_SCENE, BATCH = 2, 40  # painted pictures of a test scene; answers and pictures at once
OTHERS = LANGUAGES[1:]
Scores = dict[str, dict[str, float]]  # language -> metric -> value
Found = dict[str, dict[str, list[Scores]]]  # part -> variant -> scores by seed
Painted = dict[str, list[Image.Image]]  # language -> pictures of the same prompts
COLOURS = {"aligned": "#2f6db3", "unaligned": "#e0872b", "control": "#9aa3ae"}


# -- image to text ---------------------------------------------------------------------------------------------------


def tokens(text: str) -> list[str]:
    """Words, and of Chinese the characters."""
    return re.findall(r"[\u4e00-\u9fff]|[^\W\d_\u4e00-\u9fff]+", text.casefold())


@cache
def vocabulary(language: str) -> frozenset[str]:
    return frozenset(token for scene in SCENES for text in describe(scene, language) for token in tokens(text))


def written_in(text: str) -> str | None:
    """The language that most of a text's words are of; None where it has none, or two languages have as many."""
    counts = {language: sum(token in vocabulary(language) for token in tokens(text)) for language in LANGUAGES}
    best = max(counts.values())
    found = [language for language, count in counts.items() if count == best]
    return found[0] if best and len(found) == 1 else None


def answers(model: ImageToText, records: Sequence[Record], language: str) -> list[str]:
    found = []
    for first in range(0, len(records), BATCH):
        some = [Image.open(io.BytesIO(record.image or b"")) for record in records[first : first + BATCH]]
        prompts = [Prompt((picture,), language) for picture in some]
        found += model.answer(prompts, GenerationOptions(max_tokens=32))
    return found


def share(right: Iterable[bool]) -> float:
    return statistics.mean(map(float, right))


def caption_scores(texts: Sequence[str], scenes: Sequence[Scene], language: str) -> dict[str, float]:
    read = [read_scene(text, language) for text in texts]
    pairs = list(zip(read, scenes, strict=True))
    parts = {
        name: statistics.mean(
            found is not None and getattr(found, name) == getattr(scene, name) for found, scene in pairs
        )
        for name in VALUES
    }
    return {
        "exact": share(found == scene for found, scene in pairs),
        "fidelity": share(written_in(text) == language for text in texts),
        "grammatical": share(found is not None for found in read),
        **parts,
    }


def written(folder: Path, records: Sequence[Record]) -> dict[str, list[str]]:
    """Language -> the model's answers, which are kept beside it under its hash."""
    path = folder.parent / f"answers_{pretrained_hash(folder)[:12]}.json"
    if not path.is_file():
        model = ImageToText.from_pretrained(folder)
        found = {language: answers(model, records, language) for language in LANGUAGES}
        with whole_file(path) as partial:
            partial.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def measure_captions(texts: Mapping[str, Sequence[str]], records: Sequence[Record]) -> Scores:
    """Language -> scores, `kept` being the share of English's exact ones."""
    scenes = [scene_of(record.key) for record in records]
    found = {language: caption_scores(own, scenes, language) for language, own in texts.items()}
    return with_kept(found, {language: own["exact"] for language, own in found.items()})


# -- text to image ---------------------------------------------------------------------------------------------------


def test_prompts(per_scene: int) -> list[tuple[Scene, int]]:
    """Every scene that was held out, and which of its sentences is painted."""
    held_out = [scene for scene in SCENES if scene.held_out]
    return [(scene, (place + number) % 4) for number in range(per_scene) for place, scene in enumerate(held_out)]


def painted(folder: Path, prompts: Sequence[tuple[Scene, int]], options: SamplingOptions, seed: int) -> Painted:
    """Language -> the model's pictures, from the same noise in every language; kept beside it, under its hash."""
    name = f"painted_{pretrained_hash(folder)[:12]}"
    paths = {language: folder.parent / f"{name}_{language}.png" for language in LANGUAGES}
    if not all(path.is_file() for path in paths.values()):
        model = TextToImage.from_pretrained(folder)
        for language, path in paths.items():
            texts = [describe(scene, language)[number] for scene, number in prompts]
            pictures = model.generate(texts, options, torch.Generator().manual_seed(seed))
            with whole_file(path) as partial:
                strip(pictures).save(partial, "PNG")
    return {language: pieces(Image.open(path)) for language, path in paths.items()}


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Square pictures side by side."""
    side = pictures[0].width
    whole = Image.new("RGB", (side * len(pictures), side))
    for place, picture in enumerate(pictures):
        whole.paste(picture, (side * place, 0))
    return whole


def pieces(whole: Image.Image) -> list[Image.Image]:
    side = whole.height
    return [whole.crop((left, 0, left + side, side)) for left in range(0, whole.width, side)]


def indices(scene: Scene) -> list[int]:
    return [VALUES[name].index(value) for name, value in vars(scene).items()]


def picture_scores(read: Sequence[Scene], asked: Sequence[Scene]) -> dict[str, float]:
    """Accuracy of each attribute, of all at once, their mean; and the mean with captions of other scenes."""
    right = {
        name: torch.tensor(
            [[getattr(seen, name) == getattr(wanted, name) for wanted in asked] for seen in read]
        ).double()
        for name in VALUES
    }
    whole = torch.stack(list(right.values())).mean(0)  # (N, N)
    return {
        "attributes": float(matched(whole).mean()),
        "mismatched": float(mismatched(whole).mean()),
        "exact": float(matched(torch.stack(list(right.values())).amin(0)).mean()),
        **{name: float(matched(pairs).mean()) for name, pairs in right.items()},
    }


def measure_pictures(pictures: Painted, prompts: Sequence[tuple[Scene, int]], reader: SceneReader) -> Scores:
    """Language -> scores, `kept` being the share of English's height above mismatched captions."""
    asked = [scene for scene, _ in prompts]
    found = {language: picture_scores(reader.read(own), asked) for language, own in pictures.items()}
    above = {language: own["attributes"] - own["mismatched"] for language, own in found.items()}
    return with_kept(found, above)


def with_kept(found: Scores, heights: Mapping[str, float]) -> Scores:
    """With what every language keeps of English's height; 0 where that has none."""
    top = heights["en"]
    return {name: own | {"kept": heights[name] / top if top > 0 else 0.0} for name, own in found.items()}


# -- all of it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is trained and measured. `changes`: of every config; `pictures`: a test scene's; `tests`: test records."""

    runs: Path
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    parts: tuple[str, ...]
    sampling: SamplingOptions
    changes: dict[str, Any]
    pictures: int
    tests: int | None

    def trainings(self, variant: str, seed: int) -> dict[str, Run]:
        """The language model, and what is trained on it."""
        name, changes = ("aligned", WITHOUT) if variant == ABLATION else (variant, {})
        language_model = Run(f"lm_{name}", LANGUAGE_MODELS[name], seed, self.changes)
        place = language_model.folder(self.runs) / "pretrained"
        found = {"language_model": language_model}
        for part in self.parts:
            if part == "chat" or variant != ABLATION:
                changed = {KEYS[part]: place, **changes, **self.changes}
                found[part] = Run(f"{part}_{variant}", CONFIGS[part], seed, changed)
        return found


def measure(plan: Plan) -> tuple[Found, dict[str, list[Path]], dict[str, Painted]]:
    """The scores; folders of every training by seed; pictures of the first seed by variant."""
    records, reader = list(itertools.islice(read_records(f"{DATA}/test"), plan.tests)), load_reader()
    found: Found = {part: {variant: [] for variant in plan.variants} for part in plan.parts}
    prompts = test_prompts(plan.pictures)
    folders: dict[str, list[Path]] = {}
    shown: dict[str, Painted] = {}
    for seed, variant in itertools.product(plan.seeds, plan.variants):
        for part, run in plan.trainings(variant, seed).items():
            folder = fitted(run, plan.runs)
            if part in plan.parts or variant != ABLATION:
                folders.setdefault(run.name, []).append(run.folder(plan.runs))
            if part == "chat":
                found[part][variant].append(measure_captions(written(folder, records), records))
            elif part == "paint":
                pictures = painted(folder, prompts, plan.sampling, seed)
                found[part][variant].append(measure_pictures(pictures, prompts, reader))
                shown.setdefault(variant, pictures)
    return found, folders, shown


def summary(by_seed: Sequence[Scores]) -> dict[str, Any]:
    """Language -> metrics over seeds; `least_kept` by any other language than English."""
    languages = {language: over_seeds([scores[language] for scores in by_seed]) for language in LANGUAGES}
    least = [{"kept": min(scores[language]["kept"] for language in OTHERS)} for scores in by_seed]
    return {**languages, "least_kept": over_seeds(least)["kept"]}


def sheet(shown: Mapping[str, Painted], columns: int = 8) -> Image.Image:
    """A row a variant and language, of the same scenes and noise, chosen evenly from all."""
    prompts = test_prompts(1)
    places = [round(number * (len(prompts) - 1) / (columns - 1)) for number in range(columns)]
    rows, told = {}, {}
    for variant, language in itertools.product(shown, LANGUAGES):
        name = f"{language} {variant}"
        rows[name] = [shown[variant][language][place] for place in places]
        told[name] = [describe(scene, language)[number] for scene, number in (prompts[place] for place in places)]
    return contact_sheet(rows, told, columns)


def chart(result: Mapping[str, Any], path: Path) -> None:
    """Both directions: bars of every language and variant, deviations over seeds, lines for mismatched captions."""
    from matplotlib.figure import Figure

    parts = [part for part in CONFIGS if part in result]
    figure = Figure(figsize=(5.2 * len(parts), 3.6), layout="constrained")
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False).flat, parts, strict=True):
        metric, title = SHOWN[part]
        for place, variant in enumerate(name for name in LANGUAGE_MODELS if name in result[part]):
            found = result[part][variant]
            values = [found[language][metric] for language in LANGUAGES]
            x = [number + 0.27 * (place - 1) for number in range(len(LANGUAGES))]
            bars = {"yerr": [one["deviation"] or 0 for one in values], "label": variant, "color": COLOURS[variant]}
            axes.bar(x, [one["mean"] for one in values], 0.25, capsize=2, zorder=2, **bars)
            if part == "paint":
                floor = [found[language]["mismatched"]["mean"] for language in LANGUAGES]
                axes.hlines(floor, [left - 0.125 for left in x], [left + 0.125 for left in x], "#c0392b", zorder=3)
        axes.set_xticks(range(len(LANGUAGES)), LANGUAGES)
        axes.set_ylim(0, 1)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(axis="y", color="#e3e6ea", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    entries = figure.axes[0].get_legend_handles_labels()
    figure.legend(*entries, frameon=False, ncols=len(LANGUAGE_MODELS), loc="outside lower center", fontsize=9)
    figure.savefig(path, dpi=150, format="png")


def planned() -> tuple[Plan, str]:
    """What to do, and the name of its result; none of a smoke run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--parts", default="chat,paint", help="chat, paint or both")
    parser.add_argument("--ablation", action="store_true", help="image to text from answers alone, and nothing else")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, nothing written")
    given = parser.parse_args()
    if unknown := set(given.parts.split(",")) - set(CONFIGS):
        parser.error(f"--parts: no {unknown.pop()!r}; choose among {', '.join(CONFIGS)}")
    seeds, parts = tuple(map(int, given.seeds.split(","))), tuple(given.parts.split(","))
    if given.smoke:
        folder = Path(tempfile.mkdtemp(prefix="pivot_scenes_"))
        variants = ("aligned", "control", ABLATION)
        return Plan(folder, seeds[:1], variants, parts, SamplingOptions(steps=2), dict(SMOKE), 1, 8), ""
    variants = tuple(LANGUAGE_MODELS)
    if given.ablation:
        variants, parts = (ABLATION,), ("chat",)
    name = "pivot_scenes_ablation" if given.ablation else "pivot_scenes"
    return Plan(RUNS, seeds, variants, parts, SamplingOptions(), {}, PER_SCENE, None), name


def main() -> None:
    plan, name = planned()
    torch.set_num_threads(1)
    disable_progress_bar()
    built(DATA, "data", "build", "scenes", "--source", ".", "--output", DATA)
    built(TOKENIZER, "data", "tokenizer", f"--data=[{DATA}/sentences]", f"--output={TOKENIZER}", *TOKENIZER_OPTIONS)
    found, folders, shown = measure(plan)
    result = {
        "question": "vision learned in English only: scenes described and painted in three other languages "
        "(bars: chat exact >= .75 x en, paint keeps >= .85 of en above mismatched captions, control about 0)",
        "seeds": list(plan.seeds),
        **{
            part: {variant: summary(scores) for variant, scores in found[part].items() if scores} for part in plan.parts
        },
        "trainings": {name: noted(own) for name, own in folders.items()},
        **facts(torch=torch.__version__),
    }
    if ABLATION not in plan.variants or not name:
        draw(result, shown, RESULTS if name else plan.runs)
    if name:
        write(name, result)
    else:
        print(json.dumps(result, indent=1))


def draw(result: Mapping[str, Any], shown: Mapping[str, Painted], place: Path) -> None:
    """The chart, and the contact sheet where pictures were painted."""
    with whole_file(place / "pivot_scenes.png") as partial:
        chart(result, partial)
    if shown:
        with whole_file(place / "pivot_scenes_sheet.png") as partial:
            sheet(shown).save(partial, "PNG")


if __name__ == "__main__":
    main()
