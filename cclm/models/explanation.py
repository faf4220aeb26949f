"""Where in a picture the model finds the words of a text: how a match depends on what the fusion attends to.

Shapes: L tokens, S states of the picture, H heads, T words, h rows and w columns of patches.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cclm.types import Explanation, Memory, View

if TYPE_CHECKING:
    from cclm.models.model import CCLMModel
    from cclm.models.processor import CCLMProcessor

# First word of the names of characters that are written without blanks between words: there, pieces stay apart.
UNSPACED = {
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "KATAKANA-HIRAGANA",
    "BOPOMOFO",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
}
_JOINER = "\N{ZERO WIDTH JOINER}"

Heat = Callable[["CCLMModel", View, View], tuple[Tensor, float]]


@dataclass(frozen=True)
class WatchedMemory(Memory):
    """A memory with a number, 0, added to the attention that each token pays to each state.

    The derivative by such a number is the attention, times how much more than what the token reads otherwise that
    state speaks for a match (the gradient of softmax): what Grad-CAM takes from cross-attention as ALBEF has it, but
    for the centring. The fused kernels compute it; no probabilities need be kept.
    """

    biases: tuple[Tensor, ...]  # one (B, H, L, S) per fusion layer

    def contexts(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return list(zip(self.keys, self.values, self.biases, strict=True))

    @classmethod
    def of(cls, memory: Memory, length: int) -> WatchedMemory:
        shapes = [(keys.shape[0], keys.shape[1], length, keys.shape[2]) for keys in memory.keys]
        biases = tuple(
            keys.new_zeros(shape, requires_grad=True) for keys, shape in zip(memory.keys, shapes, strict=True)
        )
        return cls(**{f.name: getattr(memory, f.name) for f in fields(memory)}, biases=biases)


def explain(model: CCLMModel, processor: CCLMProcessor, image: Image.Image, text: str) -> Explanation:
    """How the words of `text` depend on the patches of `image`, where they speak for a match.

    Parameters, gradients and mode of the model stay as they are. Errors: ValueError for a tokenizer that does not
    tell where its tokens stand, and for a backbone whose patches are no square.
    """
    cleaned = processor.cleaned(text)
    words = list(words_of(processor, cleaned))
    with _undisturbed(model):
        with torch.no_grad():
            tokens = processor.texts([text]).to(model.device)
            context = model.encode_image(processor.images([image]).to(model.device))
            target = model.encode_text(tokens.input_ids, tokens.attention_mask)
        heat, match = match_heat(model, context, target)
    patches = heat[:, 1:].numpy()  # (L, h * w): the first state is the mean of the others, and has no place
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
        raise ValueError(f"the backbone makes {patches.shape[1]} patches of a picture, which is no square of them")
    own = np.stack([patches[rows].sum(0) for _, rows in words])  # (T, h * w)
    total = own.sum()
    return Explanation(
        tokens=tuple(word for word, _ in words),
        heat=_scaled(own).reshape(-1, side, side),
        shares=own.sum(1) / total if total else np.zeros(len(own), np.float32),
        overall=_scaled(patches.sum(0, keepdims=True)).reshape(side, side),
        match=match,
    )


def match_heat(model: CCLMModel, context: View, target: View) -> tuple[Tensor, float]:
    """For one picture and one text: what each state of the picture, as each token reads it, adds to the log-odds of a
    match, (L, S) float32 on the CPU; and the probability of a match.

    The positive part, mean over the heads, sum over the layers.
    """
    with torch.no_grad():
        memory = model.project(context)
    watched = WatchedMemory.of(memory, target.states.shape[1])
    logits = model.match_logits(model.fuse(target, watched))[0]  # (2,)
    odds = logits[1] - logits[0]
    slopes = torch.autograd.grad(odds, watched.biases)  # of (1, H, L, S)
    heat = sum(slope[0].float().clamp(min=0).mean(0) for slope in slopes)  # (L, S)
    return heat.cpu(), float(odds.detach().float().sigmoid())


def words_of(processor: CCLMProcessor, text: str) -> Iterator[tuple[str, list[int]]]:
    """The words of a cleaned text as people see them, and the places of each one's tokens among all of them.

    Where a language has no blanks, words are the tokenizer's pieces. Errors: ValueError for a tokenizer that does not
    tell where its tokens stand.
    """
    if not processor.tokenizer.is_fast:
        raise ValueError(
            "the model's tokenizer does not tell where in a text its tokens stand, so nothing can be explained; "
            "use its fast version (tokenizer.json)"
        )
    encoded = processor.tokenizer(
        text,
        truncation=True,
        max_length=processor.max_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    rows: list[int] = []
    begin = end = 0
    for row, ((start, stop), special) in enumerate(
        zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    ):
        if special:
            continue
        start += len(text[start:stop]) - len(text[start:stop].lstrip())
        if end > begin and stop > start and _begins(text, end, start):
            yield text[begin:end].strip(), rows
            rows, begin, end = [], start, start
        rows.append(row)
        if stop > start:
            begin, end = (begin, max(end, stop)) if end > begin else (start, stop)
    if end > begin:
        yield text[begin:end].strip(), rows


def _begins(text: str, end: int, start: int) -> bool:
    """Whether a new word begins at `start`, where the one before has come to `end`."""
    if start < end:
        return False  # several tokens of one character
    if any(character.isspace() for character in text[end:start]):
        return True
    before, after = text[start - 1], text[start]
    if _JOINER in (before, after) or unicodedata.category(after) in ("Mn", "Mc", "Me", "Sk"):
        return False
    return not UNSPACED.isdisjoint(unicodedata.name(character, "").split(" ")[0] for character in (before, after))


def _scaled(heat: np.ndarray) -> np.ndarray:
    """Each row (.., N) divided by the most in it; rows of zeros stay."""
    most = heat.max(-1, keepdims=True)
    return (heat / np.where(most > 0, most, 1)).astype(np.float32)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Dropout off, gradients on whatever the caller has; the former mode comes back."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        model.train(training)
