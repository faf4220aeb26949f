"""Where in a picture the model finds the words of a text: how a match depends on how much each patch and word count.

Attention alone does not tell: a match also reads the mean of the patches, and on photos the heat of the attention falls
beside what the text is of as often as on it (benchmarks/explanation.py). So a patch and a token each get a weight, by
which all that reads them counts them; heat is what these weights do to the log-odds of a match.

Shapes: L tokens, S patches, W the backbone's width, T words, h rows and w columns of patches.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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


@dataclass(frozen=True)
class WeightedMemory(Memory):
    """A memory of which some states count more than others."""

    weights: Tensor  # (B, 1 + S) log of how many times each state counts

    def contexts(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        added = self.weights[:, None, None, :]  # to the attention's logits: as if the state were there so many times
        return [(keys, values, added) for keys, values in zip(self.keys, self.values, strict=True)]

    @classmethod
    def of(cls, memory: Memory, weights: Tensor) -> WeightedMemory:
        return cls(**{f.name: getattr(memory, f.name) for f in fields(memory)}, weights=weights)


def explain(model: CCLMModel, processor: CCLMProcessor, image: Image.Image, text: str) -> Explanation:
    """How the words of `text` depend on the patches of `image`, where they speak for a match.

    Parameters, gradients and mode of the model stay as they are. Errors: ValueError for a tokenizer that does not
    tell where its tokens stand, and for a backbone whose patches are no square.
    """
    words = list(words_of(processor, processor.cleaned(text)))
    with _undisturbed(model):
        with torch.no_grad():
            tokens = processor.texts([text]).to(model.device)
            states = model.image_states(processor.images([image]).to(model.device))
            target = model.encode_text(tokens.input_ids, tokens.attention_mask)
        heat = match_heat(model, states, target, [rows for _, rows in words])
    side = math.isqrt(heat.patches.shape[0])
    if side * side != heat.patches.shape[0]:
        raise ValueError(f"the backbone makes {heat.patches.shape[0]} patches of a picture, which is no square of them")
    own = heat.words.sum(1)  # (T,)
    return Explanation(
        tokens=tuple(word for word, _ in words),
        heat=_scaled(heat.words).reshape(-1, side, side),
        shares=own / (own.sum() or 1),
        overall=_scaled(heat.patches).reshape(side, side),
        match=heat.match,
    )


@dataclass(frozen=True)
class MatchHeat:
    """What speaks for a match of one picture and one text; none of it is negative."""

    patches: np.ndarray  # (S,) float32: gain in log-odds as the patch counts more
    words: np.ndarray  # (T, S) float32: the word's part of that gain
    match: float  # probability


def match_heat(model: CCLMModel, states: Tensor, target: View, words: Sequence[Sequence[int]]) -> MatchHeat:
    """Heat of backbone states (1, 1 + S, W) and one text, whose words are these places among its L tokens.

    A patch counts in the mean, which is the first state, and wherever the fusion attends to it; a token where the
    fusion attends to it, and in the mean of all where the model pools so. All count once to begin with: heat is the
    first derivative by the logarithm of that. A word's part of it is that of its tokens, were all alike, and the mixed
    derivative by the word, which tells them apart: as all of a mean count relative to each other, it is 0 in sum.
    """
    patches = states[:, 1:]  # (1, S, W)
    weights = patches.new_zeros(1, patches.shape[1], requires_grad=True)
    counts = torch.zeros_like(target.mask, dtype=target.states.dtype).requires_grad_()  # (1, L)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        mean = weights.softmax(1).unsqueeze(1) @ patches  # (1, 1, W)
        context = model.encode_image_states(torch.cat([mean, patches], dim=1))
        memory = WeightedMemory.of(model.project(context), nn.functional.pad(weights, (1, 0)))
        # As a mask, 1 + count is the token's weight in the mean; added to all logits of attention, the 1 is nothing.
        mask = 1 + counts
        pooled = model.text_embedding(target.states, mask)
        logits = model.match_logits(model.fuse(View(target.states, mask, pooled), memory))[0].float()  # (2,)
        odds = logits[1] - logits[0]
        by_patch, by_token = torch.autograd.grad(odds, (weights, counts), create_graph=True)
        apart = [torch.autograd.grad(by_token[0, list(rows)].sum(), weights, retain_graph=True)[0] for rows in words]
    alike = by_patch * torch.tensor([[len(rows)] for rows in words]).to(by_patch) / counts.shape[1]  # (T, S)
    return MatchHeat(_positive(by_patch[0]), _positive(alike + torch.cat(apart)), float(odds.detach().sigmoid()))


def _positive(slopes: Tensor) -> np.ndarray:
    return slopes.detach().float().clamp(min=0).cpu().numpy()


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
