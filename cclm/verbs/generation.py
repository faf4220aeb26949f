"""`cclm evaluate generation`: pictures of one prompt in several languages, judged by another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.inputs import codes, device_named

if TYPE_CHECKING:
    import torch
    from jsonargparse import ArgumentParser, Namespace
    from PIL import Image
    from rich.progress import Progress

    from cclm.evaluation.embedder import System
    from cclm.evaluation.painting import Painter, Prompts
    from cclm.pivot.sampling import SamplingOptions
    from cclm.pivot.text_to_image import TextToImage


def options(parser: ArgumentParser) -> None:
    from jsonargparse.typing import PositiveInt

    from cclm.models.encoding import EncodingOptions
    from cclm.pivot.sampling import SamplingOptions

    parser.add_argument("--model", type=Path, required=True, help="a folder of text-to-image, as `cclm fit` writes it")
    parser.add_argument(
        "--judge", type=str, required=True, help="a dual encoder: a folder or hub name, file.py:function"
    )
    parser.add_argument("--features", type=str, default=None, help="likewise, for FID and KID; the judge by default")
    parser.add_argument("--data", type=str, required=True, help="a split folder of shards, a tar or a pattern")
    parser.add_argument("--languages", type=list[str] | str, required=True, help="of the prompts: en,de,tr")
    parser.add_argument("--reference", type=str, default="en", help="the language the others are compared with")
    parser.add_argument("--prompts", type=int, default=100, help="records whose texts are painted")
    parser.add_argument("--gallery", type=int, default=100, help="prompts that a picture must find its own among")
    parser.add_argument("--seed", type=int, default=0, help="of the records drawn and of the noise")
    parser.add_argument("--sampling", type=SamplingOptions, default=SamplingOptions())
    parser.add_argument("--samples", type=PositiveInt, default=8, help="columns of the contact sheet")
    parser.add_argument(
        "--keep", action="store_true", help="keep the pictures beside the report; a run goes on from them"
    )
    parser.add_argument("--output", type=Path, required=True, help="report.json; the contact sheet goes beside it")
    parser.add_argument("--language_model", default=None, help="where the text encoder lies, if it has been moved")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ..")
    parser.add_argument("--encoding", type=EncodingOptions, default=EncodingOptions(), help="of the judge")


def run(given: Namespace) -> None:
    """Everything that can be wrong is looked at before the work; then the report is written and shown."""
    from rich.console import Console

    from cclm.data.shards import check_languages, read_records
    from cclm.evaluation.generation import (
        EmbeddingFeatures,
        GenerationReport,
        JudgeOptions,
        check_judge,
        judge_pictures,
        table,
    )
    from cclm.evaluation.painting import Kept, PaintOptions, draw_prompts, paint
    from cclm.evaluation.protocol import Met
    from cclm.evaluation.report import check_output
    from cclm.models.inference import progress_bar
    from cclm.pivot.text_to_image import TextToImage
    from cclm.storage import pretrained_hash

    output, device = check_output(given.output, GenerationReport.read), device_named(given.device)
    languages, judging = codes(given.languages) or (), JudgeOptions(given.gallery, seed=given.seed)
    judging.parts(given.prompts)
    check_languages(given.data, languages)
    model = TextToImage.from_pretrained(given.model, device, given.language_model)
    judge, features = (_opened(name, given, device) for name in (given.judge, given.features or given.judge))
    check_judge(judge)
    check_judge(features)
    prompts = draw_prompts(read_records(given.data), languages, given.prompts, given.reference, given.seed)
    painting = PaintOptions(given.seed, given.sampling.batch)
    about = {"sha256": pretrained_hash(given.model), **asdict(given.sampling)}
    kept = Kept.at(output.with_name(f"{output.stem}_pictures"), prompts, painting, about) if given.keep else None
    with progress_bar(None) as bar:
        painted = paint(prompts, _painter(model, given.sampling, bar), painting, kept)
    notes = model.notes
    met = Met(frozenset(notes.languages), frozenset(notes.translated))
    report = judge_pictures(prompts, painted, judge, EmbeddingFeatures(features), judging, met)
    provenance = {"model": str(given.model), "model_hash": about["sha256"], "sampling": asdict(given.sampling)}
    provenance |= {"judge": judge.name, "judge_hash": judge.sha256, "features": features.name}
    provenance |= {"data": given.data, "seed": given.seed, "date": date.today().isoformat()}
    report = replace(report, provenance=provenance)
    report.write(output, _sheet(prompts, painted, given.samples))
    Console().print(table(report))
    print(f"contact sheet: {output.with_suffix('.png')}")


def _opened(name: str, given: Namespace, device: torch.device) -> System:
    from cclm.evaluation.adapters.open import ModelOptions, open_system

    return open_system(name, ModelOptions(device, given.encoding))


def _painter(model: TextToImage, sampling: SamplingOptions, bar: Progress) -> Painter:
    """The model, as evaluations ask for pictures; tells the bar how far it is."""
    import torch

    task = bar.add_task("painting", total=None)

    def paint(texts: Sequence[str], language: str, seed: int) -> list[Image.Image]:
        pictures = model.generate(texts, sampling, torch.Generator().manual_seed(seed))  # on any device the same
        bar.advance(task, len(pictures))
        return pictures

    return paint


def _sheet(prompts: Prompts, painted: Mapping[str, Sequence[Image.Image]], samples: int) -> Image.Image:
    """A row a language, and one of what the data shows."""
    from cclm.evaluation.contact_sheet import contact_sheet

    rows = {language: painted[language] for language in prompts.texts} | {"data": prompts.pictures}
    return contact_sheet(rows, {**prompts.texts, "data": prompts.texts[prompts.reference]}, samples)
