"""`cclm generate`: texts about pictures, or pictures of texts, by whatever model the folder holds."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.errors import SampleError
from cclm.verbs.inputs import device_named

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from PIL import Image

    from cclm.pivot.generation import GenerationOptions
    from cclm.pivot.image_to_text import ImageToText, Prompt


def options(parser: ArgumentParser) -> None:
    from cclm.pivot.generation import GenerationOptions
    from cclm.verbs import generate_image

    parser.add_argument("model", type=Path, help="a folder that `cclm fit` has written of a pivot")
    parser.add_argument("--image", action="append", default=None, help="a picture; again for another")
    parser.add_argument("--prompt", default=None, help="what is asked, by default as in training; or painted")
    parser.add_argument(
        "--language", default=None, help="of the answer, or of the prompt: de, pt, zh .. (en where nothing is said)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda ..")
    parser.add_argument("--batch_size", type=int, default=16, help="prompts that are read at once")
    parser.add_argument("--language_model", default=None, help="where the language model lies, if it has been moved")
    parser.add_class_arguments(GenerationOptions)
    generate_image.options(parser)


def run(given: Namespace) -> None:
    """Errors: ValueError, one line, for a folder of another kind of model and for anything missing or unknown."""
    from transformers.utils import logging as transformers_logging

    from cclm.models.names import model_type

    transformers_logging.disable_progress_bar()
    config = given.model / "config.json"
    if not config.is_file():
        what = "no config.json in" if given.model.is_dir() else "no folder at"
        raise ValueError(f"{what} {given.model}; name one that `cclm fit` has written, as runs/photos_chat/pretrained")
    kind = model_type(config)
    if kind not in _KINDS:
        raise ValueError(
            f"{given.model} holds a model of type {kind}, which neither tells of pictures nor paints; give a folder of "
            "image_to_text or text_to_image"
        )
    if given.prompt is not None and not given.prompt.strip():
        raise ValueError("--prompt is empty; say what to ask or to paint, or leave it out to ask as in training")
    for name in ("language", "language_model"):
        if given[name] == "":
            raise ValueError(f"--{name} is empty; leave it out, or give one")
    _KINDS[kind](given)


def _about_pictures(given: Namespace) -> None:
    from cclm.pivot.generation import GenerationOptions
    from cclm.pivot.image_to_text import ImageToText
    from cclm.verbs import generate_image

    generate_image.refuse(given, generate_image.defaults(), "writes texts")
    if given.batch_size < 1:
        raise ValueError(f"batch_size is {given.batch_size}; give 1 or more")
    device = device_named(given.device)
    written = GenerationOptions(**{field.name: given[field.name] for field in fields(GenerationOptions)})
    paths = [Path(name) for name in given.image or ()]
    for path in paths:
        if not path.is_file():
            what = f"{path} is a folder" if path.is_dir() else f"no picture at {path}"
            raise ValueError(f"{what}; name a picture, and again --image for another")
    model = ImageToText.from_pretrained(given.model, device, given.language_model)
    groups, template = _asked(model, paths, given.prompt, given.language)
    language = given.language or "en"
    if len(groups) == 1:
        _tell(model, _prompt(model, groups[0], template, language), written)
        return
    for names, prompts in _batches(model, groups, template, language, given.batch_size):
        for name, answer in zip(names, model.answer(prompts, written), strict=True):
            print(f"{name}\t{answer}", flush=True)


def _asked(
    model: ImageToText, paths: list[Path], prompt: str | None, language: str | None
) -> tuple[list[list[Path]], str]:
    """Which pictures each prompt is about, and its template: all where it has a mark for each, else each by itself.

    A prompt of the user's without marks is put behind the picture, as the model was trained, and one that names no
    language is told in which to answer: by the tag that the model was trained with, else in words where one was given.
    """
    from cclm.pivot.prompts import MARK, Template

    trained = model.processor.template or f"{MARK}\n"
    template = trained if prompt is None else prompt
    _check_asked(model, template, language)
    if not any(field in template for field in ("{language}", "{code}", "<2")):
        if "<2{code}>" in trained:
            template += "<2{code}>"
        elif language:
            template += " Answer in {language}."
    if MARK not in template:
        between = re.search(f"{re.escape(MARK)}(\n?)", trained)
        template = f"{MARK}{between[1] if between else ''}{template}"
    marks = Template(template).pictures
    if marks == 1 and len(paths) > 1:
        return [[path] for path in paths], template
    if marks != len(paths):
        raise ValueError(
            f"the prompt {template!r} has {marks} mark(s) {MARK} for {len(paths)} picture(s); give --image once "
            "for each mark, or a prompt with one mark to ask about each picture by itself"
        )
    return [paths], template


def _check_asked(model: ImageToText, template: str, language: str | None) -> None:
    """Errors: ValueError for a field that nothing fills, and for a tag that is unknown or not asked for."""
    from cclm.pivot.prompts import tagged, tags

    if "{text}" in template:
        raise ValueError(
            f"the prompt {template!r} has a field {{text}}, which nothing fills here; write the text there"
        )
    known = tags(model.processor.tokenizer)
    for code in tagged(template) if known else ():
        if code not in known:
            raise ValueError(f"the prompt's tag <2{code}> is of an unknown language; there are {', '.join(known)}")
        if language not in (None, code):
            raise ValueError(
                f"the prompt's tag <2{code}> asks for another language than --language {language}; give one"
            )


def _batches(
    model: ImageToText, groups: Sequence[list[Path]], template: str, language: str, size: int
) -> Iterator[tuple[list[str], list[Prompt]]]:
    for start in range(0, len(groups), size):
        some = groups[start : start + size]
        names = [", ".join(map(str, group)) for group in some]
        yield names, [_prompt(model, group, template, language) for group in some]


def _prompt(model: ImageToText, paths: Sequence[Path], template: str, language: str) -> Prompt:
    from cclm.pivot.image_to_text import Prompt

    return Prompt(tuple(_opened(path, model.processor.image_size) for path in paths), language, template)


def _opened(path: Path, size: int) -> Image.Image:
    from cclm.images import open_image

    try:
        return open_image(path.read_bytes(), size)
    except SampleError as error:
        raise ValueError(f"{path}: {error}; give a jpg, png or webp file") from None


def _tell(model: ImageToText, prompt: Prompt, written: GenerationOptions) -> None:
    """One answer; word by word as it is written, where someone watches and one beam alone is followed."""
    if written.beams == 1 and sys.stdout.isatty():
        from transformers import TextStreamer

        model.answer([prompt], written, TextStreamer(model.processor.tokenizer, skip_special_tokens=True))
    else:
        print(model.answer([prompt], written)[0])


def _of_texts(given: Namespace) -> None:
    from cclm.verbs import generate_image

    generate_image.run(given)


_KINDS = {"cclm_image_to_text": _about_pictures, "cclm_text_to_image": _of_texts}
