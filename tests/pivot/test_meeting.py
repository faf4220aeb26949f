"""Pictures and captions as a layer of the language model has them: the same places, nothing that stands behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cclm.pivot.image_to_text import Built
from cclm.pivot.meeting import meeting
from cclm.types import VISUAL, PromptInput
from tests.pivot.conftest import FAMILIES
from tests.pivot.test_image_to_text import images

LAYERS = [0, 1, 2]


def prompted(made: Built, texts: list[str], before: list[str], left: bool = False) -> PromptInput:
    rows = [made.processor.prompt("{text}<image><2{code}>", "de", text, 1) for text in before]
    return made.processor.prompts(rows, made.processor.answers(texts), left)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("left", [False, True])
def test_both_are_what_the_model_makes_of_them_in_the_same_place(
    build: Callable[..., Built], family: str, left: bool
) -> None:
    made = build(family)
    model, texts = made.model.language_model, ["ein hund", "rot"]
    prompts = prompted(made, texts, ["", "ein"], left)
    ending = len(made.processor.answers([""])[0])
    assert ending == 1
    with torch.no_grad():
        embeds = made.model.embeds(images(made, 2), prompts.input_ids)
        found = meeting(model, embeds, prompts, LAYERS, 4, ending)
        whole = model.states_of(embeds, prompts.attention_mask, LAYERS)
    places = prompts.input_ids == VISUAL
    for layer, states, (picture, said) in zip(LAYERS, whole, found, strict=True):
        assert picture.mask.all() and torch.allclose(picture.states, states[places].unflatten(0, (2, 4)), atol=1e-5)
        for row, (text, before) in enumerate(zip(texts, ["", "ein"], strict=True)):
            answer = made.processor.answers([text])[0][:-1]
            start = made.processor.prompt("{text}<image><2{code}>", "de", before, 1)
            ids = torch.tensor([start[: start.index(VISUAL)] + answer])
            with torch.no_grad():
                (alone,) = model.states(ids, torch.ones_like(ids, dtype=torch.bool), [layer])
            told = said.states[row][said.mask[row]]
            assert torch.allclose(told, alone[0, -len(answer) :], atol=1e-5)


def test_pictures_learn_and_captions_stay(build: Callable[..., Built]) -> None:
    made = build()
    prompts = prompted(made, ["ein hund", "rot"], ["", ""])
    embeds = made.model.embeds(images(made, 2), prompts.input_ids)
    ((picture, said),) = meeting(made.model.language_model, embeds, prompts, [1], 4, 1)
    assert picture.states.requires_grad and not said.states.requires_grad


@pytest.mark.parametrize("template", ["<image><image><2{code}>", "<image> und <image><2{code}>", "ein hund<2{code}>"])
def test_prompts_about_no_picture_or_several_are_refused(build: Callable[..., Built], template: str) -> None:
    made = build()
    row = made.processor.prompt(template, "de", pictures=template.count("<image>"))
    prompts = made.processor.prompts([row], made.processor.answers(["rot"]))
    embeds = made.model.language_model.embed(prompts.input_ids)
    with pytest.raises(ValueError, match="give it streams of prompts with one <image>"):
        meeting(made.model.language_model, embeds, prompts, [1], 4, 1)
