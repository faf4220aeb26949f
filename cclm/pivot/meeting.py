"""Pictures and what is said of them, as a layer of the language model has them: two views for an objective to compare.

Shapes: B prompts, L tokens, N visual states of a picture, T tokens of a caption, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cclm.pivot.language_model import IGNORED, LanguageModel, layer_view
from cclm.types import VISUAL, PromptInput, View


def meeting(
    model: LanguageModel, embeds: Tensor, prompts: PromptInput, layers: Sequence[int], each: int, ending: int
) -> list[tuple[View, View]]:
    """Of each layer, the views of the pictures (B, N, D) and of the answers (B, T, D), both in the pictures' place.

    `embeds` (B, L, D): of the prompts, with the pictures in them; `each`: visual states N of a picture; `ending`: so
    many tokens end an answer. What a causal model makes of a picture depends on what stands before it alone, so that
    nothing behind is read. Answers are read without a gradient: pictures come to where texts are.
    Errors: ValueError for prompts about no picture, or several.
    """
    places = prompts.input_ids == VISUAL  # (B, L)
    first = places.int().argmax(1)  # (B,)
    last = places.shape[1] - places.flip(1).int().argmax(1)  # (B,) the place behind
    if bool((places.sum(1) != each).any()) or bool((last - first != each).any()):
        raise ValueError("alignment compares a picture with its caption; give it streams of prompts with one <image>")
    end = int(last.max())
    seen = model.states_of(embeds[:, :end], prompts.attention_mask[:, :end], layers)
    said = _said(prompts, first, ending, model.pad)
    spoken = said.labels != IGNORED  # (B, S)
    with torch.no_grad():
        read = model.states(said.input_ids, said.attention_mask, layers)
    whole = torch.ones(len(embeds), each, dtype=torch.bool, device=embeds.device)
    return [
        (layer_view(picture[places[:, :end]].unflatten(0, (-1, each)), whole), layer_view(text, spoken))
        for picture, text in zip(seen, read, strict=True)
    ]


def _said(prompts: PromptInput, first: Tensor, ending: int, pad: int) -> PromptInput:
    """What stands before the picture, then the answer without its ending; the labels are the answer's tokens."""
    rows = []
    for ids, labels, mask, start in zip(
        *(part.tolist() for part in (prompts.input_ids, prompts.labels, prompts.attention_mask, first)), strict=True
    ):
        answer = [label for label in labels if label != IGNORED]
        before = [token for token, real in zip(ids[:start], mask[:start], strict=True) if real]
        rows.append((before, answer[: len(answer) - ending] or answer))
    longest = max(len(before) + len(answer) for before, answer in rows)
    ids = torch.full((len(rows), longest), pad)
    labels = torch.full_like(ids, IGNORED)
    for row, (before, answer) in enumerate(rows):
        both = len(before) + len(answer)
        ids[row, :both] = torch.tensor([*before, *answer])
        labels[row, len(before) : both] = torch.tensor(answer)
    mask = torch.arange(longest) < torch.tensor([len(before) + len(answer) for before, answer in rows])[:, None]
    return PromptInput(ids, mask, labels).to(prompts.input_ids.device)
