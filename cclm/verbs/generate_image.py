"""`cclm generate` of a model that paints: pictures of prompts in any language, or what diffusers needs for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.inputs import device_named

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from PIL import Image

    from cclm.pivot.sampling import SamplingOptions
    from cclm.pivot.text_to_image import TextToImage

_SUFFIXES = (".png", ".jpg", ".webp")
_WIDEST = {".jpg": 65_500, ".webp": 16_383}  # pixels a side that a format, or what writes it, can hold
_PROMPT, _PICTURE = 4, 2  # digits of a numbered file's name, or more where they are needed
_NUMBERED = [f"{'[0-9]' * p}-{'[0-9]' * n}.png" for p in range(_PROMPT, 10) for n in range(_PICTURE, 10)]


def options(parser: ArgumentParser) -> None:
    from cclm.pivot.sampling import SamplingOptions

    written = "a picture's name, a grid for several; or a folder, for numbered ones"
    parser.add_argument("--output", type=Path, default=None, help=f"of a model that paints: {written}")
    parser.add_argument("--prompts", type=Path, default=None, help="a text file of prompts, one a line")
    parser.add_argument("--count", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--states", type=Path, default=None, help="write what a diffusers pipeline takes for prompts")
    parser.add_argument("--pipeline", type=Path, default=None, help="write the model as a folder of plain diffusers")
    parser.add_class_arguments(SamplingOptions, skip={"batch"})


def defaults() -> dict[str, object]:
    """Of what only a model that paints can do."""
    from cclm.pivot.sampling import SamplingOptions

    sampling = {name: value for name, value in asdict(SamplingOptions()).items() if name != "batch"}
    return dict.fromkeys(("output", "prompts", "states", "pipeline")) | {"count": 1} | sampling


def refuse(given: Namespace, unfit: Mapping[str, object], does: str) -> None:
    """`unfit`: options that are not for such a model -> their defaults. Errors: ValueError for one that is given."""
    if named := [name for name, default in unfit.items() if given[name] != default]:
        raise ValueError(f"--{', --'.join(named)}: {given.model} holds a model that {does}; leave it out")


def run(given: Namespace) -> None:
    """Everything that can be wrong is looked at before the work. The n-th picture of every prompt, whatever its
    language, starts from the same noise of the seed. Errors: ValueError, one line.
    """
    from cclm.pivot.generation import GenerationOptions
    from cclm.pivot.pipeline import export_pipeline, write_states
    from cclm.pivot.sampling import SamplingOptions, sampler
    from cclm.pivot.text_to_image import TextToImage

    writing = asdict(GenerationOptions()) | {"image": None}
    del writing["seed"]
    refuse(given, writing, "paints, from texts alone")
    _check_numbers(given)
    chosen = SamplingOptions(given.scheduler, given.steps, given.guidance, given.negative, given.batch_size)
    prompts, device = _prompts(given), device_named(given.device)
    _check_output(given)
    model = TextToImage.from_pretrained(given.model, device, given.language_model)
    _check_language(model, given.language)
    _check_grid(given, len(prompts), model.processor.image_size)
    sampler(model.noise, given.scheduler)
    model.states([*prompts, given.negative])
    if given.pipeline:
        export_pipeline(model, given.pipeline)
        print(f"{given.pipeline}: its README.md tells how plain diffusers paints with it")
    if given.states:
        write_states(model, prompts, given.negative, given.states)
        print(f"{given.states}: states of {len(prompts)} prompt(s), to be given to a pipeline")
    if given.output:
        _write(given, [list(_painted(model, prompt, chosen, given)) for prompt in prompts])


def _prompts(given: Namespace) -> list[str]:
    from cclm.pivot.prompts import MARK

    if given.prompt is not None and given.prompts is not None:
        raise ValueError("both --prompt and --prompts are given; choose one")
    if given.prompts is None:
        found = [] if given.prompt is None else [given.prompt]
    elif not given.prompts.is_file():
        raise ValueError(f"no file of prompts at {given.prompts}; check the path")
    else:
        try:
            lines = given.prompts.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{given.prompts} is no UTF-8 text; give a text file of prompts, one a line") from None
        found = [line.strip() for line in lines if line.strip()]
    if marked := [prompt for prompt in found if MARK in prompt]:
        raise ValueError(f"prompt {marked[0]!r} has a mark {MARK}, but this model paints from texts alone; remove it")
    if not found and (given.output or given.states or not given.pipeline):
        raise ValueError('there is nothing to paint; give --prompt "..", or --prompts with a file of them')
    return found


def _check_numbers(given: Namespace) -> None:
    for name in ("count", "batch_size"):
        if given[name] < 1:
            raise ValueError(f"{name} is {given[name]}; give 1 or more")
    if not 0 <= given.seed < 2**64:
        raise ValueError(f"seed is {given.seed}; give a number from 0 to 2^64 - 1")


def _check_output(given: Namespace) -> None:
    """Errors: ValueError where nothing is asked for, or cannot be written."""
    from cclm.storage import check_replaceable, check_writable

    if given.output is None:
        if not (given.states or given.pipeline):
            raise ValueError("there is no --output; name a picture, as star.png, or a folder")
    elif given.output.name.lower() in _SUFFIXES:
        raise ValueError(f"--output {given.output} is an ending without a name; give one, as star{given.output.name}")
    elif not given.output.suffix:
        check_replaceable(given.output, _NUMBERED)
    elif given.output.suffix.lower() not in _SUFFIXES or given.output.is_dir():
        raise ValueError(f"--output {given.output}: give a name in {', '.join(_SUFFIXES)}, or a folder")
    else:
        check_writable(given.output)
    if given.states and given.states.suffix != ".safetensors":
        raise ValueError(f"--states {given.states}: give a name in .safetensors")
    if given.states:
        check_writable(given.states)


def _check_grid(given: Namespace, rows: int, side: int) -> None:
    """Errors: ValueError for one of pictures of `side` pixels that its format cannot hold."""
    width, height = side * given.count, side * rows
    most = _WIDEST.get(given.output.suffix.lower()) if given.output else None
    if most and max(width, height) > most:
        raise ValueError(
            f"--output {given.output}: the grid is {width} x {height} pixels, and {given.output.suffix} holds {most} a "
            "side; name a .png, or a folder"
        )


def _check_language(model: TextToImage, language: str | None) -> None:
    """Errors: ValueError for a language that a text encoder with tags has none for, or that nobody knows."""
    from cclm.pivot.prompts import language_name, tags

    if language is None:
        return
    known = tags(model.processor.tokenizer)
    if not known:
        language_name(language)
    elif language not in known:
        raise ValueError(f"language {language!r} is unknown to this model; it reads {', '.join(known)}")


def _painted(model: TextToImage, prompt: str, chosen: SamplingOptions, given: Namespace) -> Iterator[Image.Image]:
    import torch

    from cclm.models.inference import progress_bar

    generator = torch.Generator().manual_seed(given.seed)
    with progress_bar(given.count) as bar:
        task = bar.add_task("painting", total=given.count)
        for first in range(0, given.count, chosen.batch):
            pictures = model.generate([prompt] * min(chosen.batch, given.count - first), chosen, generator)
            bar.advance(task, len(pictures))
            yield from pictures


def _write(given: Namespace, rows: list[list[Image.Image]]) -> None:
    """One picture, a grid of a row a prompt, or numbered files: whole or not at all."""
    from PIL import Image

    from cclm.storage import whole_file, whole_folder

    output, count = given.output, sum(map(len, rows))
    if not output.suffix:
        prompt, place = max(_PROMPT, len(str(len(rows) - 1))), max(_PICTURE, len(str(given.count - 1)))
        with whole_folder(output) as partial:
            for number, row in enumerate(rows):
                for which, picture in enumerate(row):
                    picture.save(partial / f"{number:0{prompt}}-{which:0{place}}.png")
        print(f"{output}: {count} picture(s)")
        return
    width, height = rows[0][0].size
    grid = Image.new("RGB", (width * given.count, height * len(rows)))
    for number, row in enumerate(rows):
        for place, picture in enumerate(row):
            grid.paste(picture, (width * place, height * number))
    with whole_file(output) as partial:
        grid.save(partial, format=Image.registered_extensions()[output.suffix.lower()])
    print(f"{output}: {count} picture(s) of {width} x {height} pixels")
