"""What the card of a pivot's model says: its parts and where they lie, its languages, how it is used."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from cclm.evaluation.protocol import Met, ZeroShot
from cclm.models.card import table
from cclm.models.portrait import Portrait, evaluations
from cclm.pivot.folders import held, reference
from cclm.pivot.image_to_text import ImageToText
from cclm.pivot.language_model import LanguageModel
from cclm.pivot.notes import TrainingNotes
from cclm.pivot.presets import CHAT, PAINT
from cclm.pivot.processor import PivotProcessor
from cclm.pivot.prompts import Template, language_name, tags
from cclm.pivot.text_encoders import LanguageModelText
from cclm.pivot.text_to_image import TextToImage
from cclm.training.base import System

_HERE = "in this folder"
_SAID = {  # of languages that an example may be in
    "de": "ein roter Ball",
    "fr": "un ballon rouge",
    "pt": "uma bola vermelha",
    "cs": "červený míč",
    "tr": "kırmızı bir top",
    "zh": "一个红色的球",
    "en": "a red ball",
}
_READS = "What lies elsewhere is read from there; another one than it was trained with is refused."


def portrait(system: System, folder: Path) -> Portrait:
    """Of what a pivot's system trains. `folder`: where the card will lie."""
    model = system.model
    if isinstance(model, ImageToText):
        found = _image_to_text(model, system.processor, folder)
    elif isinstance(model, TextToImage):
        found = _text_to_image(model, folder)
    else:
        found = _language_model(model, system.processor, folder)
    recipe = {}
    if (preset := getattr(system, "preset", None)) is not None:
        recipe["preset"] = f"{preset}: {(CHAT | PAINT)[preset].meaning}"
    if (alignment := getattr(system, "alignment", None)) is not None:
        recipe["aligned layers"] = ", ".join(map(str, alignment.layers))
    return replace(found, recipe=recipe)


# -- a model that sees -----------------------------------------------------------------------------------------------


def _image_to_text(model: ImageToText, processor: PivotProcessor, folder: Path) -> Portrait:
    settings, language_model = model.settings, model.language_model
    encoder = settings.image_encoder.referred(folder)
    seen = f"timm's `{encoder.backbone}`" if encoder.backbone else "that of a cross-view model"
    parts = _Parts(model, folder, held(model) | model.taken)
    sections = parts.section(
        ("image_encoder", f"{seen}, {processor.image_size} pixels a side", encoder.pretrained or encoder.weights),
        ("bridge", f"{settings.bridge.kind}, {processor.visual_states} states of a picture", None),
        ("language_model", _geometry(language_model), settings.language_model.pretrained),
    )
    languages = _Languages(model.notes, _known(language_model, processor.tokenizer))
    language = languages.example
    asked = _Asked.of(processor.template, language)
    python = f"""from PIL import Image
from cclm.pivot.generation import GenerationOptions
from cclm.pivot.image_to_text import ImageToText, Prompt

model = ImageToText.from_pretrained("this folder")
pictures = ({"".join(f'Image.open("{name}"), ' for name in asked.pictures).rstrip()})
answers = model.answer([Prompt(pictures, "{language}"{asked.python})], GenerationOptions(max_tokens=32))"""
    given = " ".join(f"--image {name}" for name in asked.pictures)
    told = ",".join(dict.fromkeys([language, "en"]))
    return Portrait(
        about=f"A language model that sees: it answers prompts about pictures. {parts.trained}",
        python=python,
        bash=f'cclm generate "this folder" {given} --language {language}{asked.bash}\n'
        + evaluations(("captions",), f" --languages {told}"),
        start=_started(settings.pretrained, folder) or "the weights of its parts and a new bridge",
        task="image-to-text",
        tags=("multilingual", "pivot", "image-captioning"),
        verbs=("captions",),
        languages=languages.all,
        sections=sections | {"Languages": languages.told("answers in it met pictures", asked.told)},
    )


@dataclass(frozen=True)
class _Asked:
    """How an example asks: the trained prompt where it needs nothing but pictures, else one in its form."""

    pictures: tuple[str, ...]
    python: str = ""
    bash: str = ""
    told: str = ""

    @classmethod
    def of(cls, template: str | None, language: str) -> _Asked:
        if template is None:
            template, told = "<image>", ""
        else:
            told = f"Trained with the prompt `{_escaped(template)}`."
        count = Template(template).pictures or 1
        pictures = ("ball.jpg",) if count == 1 else tuple(f"{number}.jpg" for number in range(1, count + 1))
        if told and "{text}" not in template and Template(template).pictures:
            return cls(pictures, told=told)
        prompt = template.replace("{text}", "What is this?")
        return cls(pictures, f", {_quoted(prompt)}", f" --prompt {shlex.quote(prompt)}", told)


# -- a model that paints ---------------------------------------------------------------------------------------------


def _text_to_image(model: TextToImage, folder: Path) -> Portrait:
    settings, encoder = model.settings, model.text_encoder
    read, known = "the text encoder of a cross-view model", ()
    if isinstance(encoder, LanguageModelText):
        read = f"layer {encoder.layer} of a language model: {_geometry(encoder.language_model)}"
        known = _known(encoder.language_model, model.processor.tokenizer)
    vae = settings.space.vae if settings.space else settings.denoiser.pretrained
    parts = _Parts(model, folder, held(model) | model.taken)
    sections = parts.section(
        ("text_encoder", read, settings.text_encoder.pretrained),
        ("bridge", settings.bridge.kind, None),
        ("denoiser", f"diffusers' {model.denoiser.kind}", settings.denoiser.pretrained),
        *([("space", f"latents, {model.space.factor} pixels a side of a cell", vae)] if vae else []),
    )
    languages = _Languages(model.notes, known)
    language, said = languages.example, _SAID.get(languages.example, _SAID["en"])
    python = f"""import torch
from cclm.pivot.sampling import SamplingOptions
from cclm.pivot.text_to_image import TextToImage

model = TextToImage.from_pretrained("this folder")
(picture,) = model.generate(["{said}"], SamplingOptions(), torch.Generator().manual_seed(0))
picture.save("ball.png")"""
    side = model.processor.image_size
    commands = (
        f'cclm generate "this folder" --prompt "{said}" --language {language} --output ball.png',
        'cclm generate "this folder" --pipeline pipeline  # a folder of plain diffusers, with a README of its own',
    )
    return Portrait(
        about=f"A model that paints {side} x {side} pixels of what a prompt says. {parts.trained}",
        python=python,
        bash="\n".join(commands),
        start=_started(settings.pretrained, folder) or "the weights of its parts and what is new of them",
        task="text-to-image",
        tags=("multilingual", "pivot", "diffusion"),
        languages=languages.all,
        sections=sections | {"Languages": languages.told("captions in it met pictures")},
    )


# -- a language model ------------------------------------------------------------------------------------------------


def _language_model(model: LanguageModel, processor: PivotProcessor, folder: Path) -> Portrait:
    languages = _known(model, processor.tokenizer)
    template = processor.template or "{text}"
    code = _example(languages)
    asked = Template(template)
    (text,) = asked.filled(_SAID["en"], language_name(code) if asked.names_language else code, code)
    if processor.chat_template == "own":
        said = f"""said = [{{"role": "user", "content": {_quoted(text)}}}]
given = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
    else:
        frame = processor.maker.frame
        said = f"""prompt = {_quoted(frame.before + text + frame.between)}
given = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")"""
    python = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")
{said}
ids = model.generate(given.input_ids, attention_mask=given.attention_mask, max_new_tokens=32)
answer = tokenizer.decode(ids[0, given.input_ids.shape[1] :], skip_special_tokens=True)"""
    answers = ", ".join(languages) or "languages that the data does not name"
    told = f"Trained with the prompt `{_escaped(template)}`; answers were in {answers}. It has met no pictures."
    return Portrait(
        about=f"A causal language model, a plain folder of transformers: {_geometry(model)}, "
        f"{_count(model)} million parameters, {processor.vocab_size:,} tokens.",
        python=python,
        bash='cclm evaluate alignment --model "this folder" --data "a split of sentence pairs" --output alignment.json',
        start=_started(model.plain.config.name_or_path, folder),
        library="transformers",
        task="text-generation",
        tags=("multilingual", "pivot"),
        languages=languages,
        sections={"Languages": told},
    )


# -- what they share -------------------------------------------------------------------------------------------------


class _Parts:
    """Parts of a model, of which some lie in other folders. `own`: names of the weights that are here whatever else."""

    def __init__(self, model: nn.Module, folder: Path, own: Collection[str]) -> None:
        self._model, self._folder, self._own = model, folder, own

    @property
    def trained(self) -> str:
        return f"{_count(self._model, trained=True)} of its {_count(self._model)} million parameters were trained."

    def section(self, *parts: tuple[str, str, str | None]) -> dict[str, str]:
        """Of each part its name, what it is, and the folder, file or hub's name that it comes from."""
        rows = []
        for name, what, place in parts:
            where = [_HERE] if self._has(name) or not place else []
            if place:
                lies = reference(place, self._folder)
                where.insert(0, f"`{lies}`" + (", seen from here" if lies != place else ""))
            rows.append((name.replace("_", " "), what, "; what trained: ".join(where)))
        return {"Parts": f"{table(('part', 'what', 'weights'), rows)}\n\n{_READS}"}

    def _has(self, part: str) -> bool:
        return any(name.startswith(f"{part}.") for name in self._own)


class _Languages:
    """Those in which a training met pictures, and what the others are to the model."""

    def __init__(self, notes: TrainingNotes, known: Sequence[str]) -> None:
        """`known`: those that the language model reads and writes; none where nobody has said."""
        self._notes, self._known = notes, known
        self.all = tuple(sorted({*known, *notes.languages}))

    @property
    def example(self) -> str:
        """One that met no pictures, if there is any."""
        return _example([code for code in self._known if code not in self._notes.languages] or self.all)

    def told(self, heading: str, prompt: str = "") -> str:
        notes = self._notes
        met = Met(frozenset(notes.languages), frozenset(notes.translated))
        rows = []
        for code in self.all:
            how = "yes" if code in notes.languages else "no"
            if code in notes.translated:
                how = f"as translations, with {notes.translated[code]:.0%} of the pictures"
            rows.append((code, how, met.regime(code).name))
        if not self._known:
            rows.append(("others that the language model knows", "no", ZeroShot.name))
        return "\n\n".join(filter(None, (table(("language", heading, "a test in it is"), rows), prompt)))


def _example(languages: Sequence[str]) -> str:
    return next((code for code in _SAID if code in languages), languages[0] if languages else "en")


def _known(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Languages of a model's answers, as its config tells, else those that the tokenizer has tags for."""
    return tuple(getattr(model.plain.config, "languages", None) or tags(tokenizer))


def _geometry(model: LanguageModel) -> str:
    return f"{model.plain.config.model_type}, {model.depth} layers of width {model.width}"


def _started(name: str | None, folder: Path) -> str:
    return f"`{reference(name, folder)}`" if name else ""


def _count(model: nn.Module, trained: bool = False) -> str:
    """Parameters in millions."""
    return f"{sum(p.numel() for p in model.parameters() if p.requires_grad or not trained) / 1e6:,.2f}"


def _quoted(text: str) -> str:
    """As Python writes it, too."""
    return json.dumps(text, ensure_ascii=False)


def _escaped(template: str) -> str:
    return template.replace("\n", "\\n")
