"""How the pairs that a stream has drawn become tokens, and a batch of them what a model reads.

The stream decides which pairs come when; a form decides what is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from cclm.data.readers import Processor, Seen
from cclm.data.seeding import seed_of
from cclm.types import Batch, Labels, Pair, PairBatch, TextInput


@dataclass(frozen=True, slots=True)
class Tokens:
    """The texts of one pair as token ids. `length`: what the others of a batch are padded to."""

    first: list[int]
    second: list[int]
    length: int


class Form(Protocol):
    """Makes batches of one stream."""

    def tokens(self, pairs: Sequence[Pair]) -> list[Tokens]:
        """Of each pair. Errors: ValueError for pairs that this form is not made for."""
        ...

    def batch(self, stream: str, pairs: Sequence[Pair], tokens: Sequence[Tokens], seen: Seen | None) -> Batch:
        """`seen`: the images of all pairs, None where they are of texts."""
        ...


@runtime_checkable
class Prompter(Protocol):
    """A processor that puts pairs into prompts."""

    def form(self, template: str, max_tokens: int | None) -> Form: ...


class PairForm:
    """Two views side by side: a PairBatch. `max_tokens`: of either text, None for the processor's own."""

    def __init__(self, processor: Processor, max_tokens: int | None = None) -> None:
        self._processor = processor
        self._max_tokens = max_tokens

    def tokens(self, pairs: Sequence[Pair]) -> list[Tokens]:
        targets = self._processor.tokens([pair.target for pair in pairs], self._max_tokens)
        contexts: list[list[int]] = [[] for _ in pairs]
        texts = [row for row, pair in enumerate(pairs) if isinstance(pair.context, str)]
        if texts:
            found = self._processor.tokens([str(pairs[row].context) for row in texts], self._max_tokens)
            for row, ids in zip(texts, found, strict=True):
                contexts[row] = ids
        return [Tokens(*both, max(map(len, both))) for both in zip(contexts, targets, strict=True)]

    def batch(self, stream: str, pairs: Sequence[Pair], tokens: Sequence[Tokens], seen: Seen | None) -> PairBatch:
        context: Seen | TextInput
        context = self._processor.padded([each.first for each in tokens]) if seen is None else seen
        target = self._processor.padded([each.second for each in tokens])
        keys = tuple(pair.key for pair in pairs)
        ids = torch.tensor([seed_of(key) for key in keys])  # (B,) int64
        return PairBatch(stream, context, target, keys, ids, self._labels(pairs))

    def _labels(self, pairs: Sequence[Pair]) -> Labels | None:
        """What is said of the pairs; labels are tokenised as they are, for they are answers to be met to the letter."""
        said = [(row, name, weight) for row, pair in enumerate(pairs) for name, weight in pair.labels.items()]
        if not said:
            return None
        owner, names, weight = zip(*said, strict=True)
        text = self._processor.texts(list(names), clean=False)
        return Labels(names, text, torch.tensor(owner), torch.tensor(weight, dtype=torch.float32))
