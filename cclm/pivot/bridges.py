"""Bridges: states of one kind -> states that another model reads, as an image encoder's that a language model reads.

Shapes: I sources (images or texts), L states of each, W their width, N states that a bridge makes of them, D the
reading model's width, C the bridge's own width.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.models.layers import Layout, Stack

_GRID_PERIOD, _SEQUENCE_PERIOD = 100.0, 10_000.0  # the longest sine, in patches or tokens, over 2 pi


@dataclass(frozen=True)
class GridStates:
    """States of an image as our ImageEncoder gives them: one of the whole image, then those of a square of patches."""

    width: int  # W
    side: int  # patches

    @classmethod
    def of(cls, width: int, states: int) -> GridStates:
        """Those of an encoder that gives `states` of an image. Errors: ValueError where its patches are no square."""
        side = math.isqrt(max(states - 1, 0))
        if not side or side * side != states - 1:
            raise ValueError(
                f"the image encoder gives {states} states of an image: one of the whole and {states - 1} patches, "
                "which are no square; choose an image size that its patches divide into a square"
            )
        return cls(width, side)

    def positions(self, length: int, width: int, device: torch.device) -> Tensor:
        """Sines (L, C) of rows in one half, of columns in the other; zeros for the whole image."""
        if length != 1 + self.side**2:
            raise ValueError(f"{length} states of an image, the bridge reads 1 + {self.side} x {self.side}; give those")
        places = torch.arange(self.side, device=device)
        lines = _sines(places, width // 2, _GRID_PERIOD)  # (side, C / 2)
        rows, columns = lines.repeat_interleave(self.side, 0), lines.repeat(self.side, 1)
        return nn.functional.pad(torch.cat([rows, columns], dim=1), (0, width - 2 * (width // 2), 1, 0))  # (L, C)


@dataclass(frozen=True)
class SequenceStates:
    """States of a text, token by token and padded on the right, if at all."""

    width: int  # W

    def positions(self, length: int, width: int, device: torch.device) -> Tensor:
        """Sines (L, C) of the places in the text."""
        return _sines(torch.arange(length, device=device), width, _SEQUENCE_PERIOD)


Source: TypeAlias = GridStates | SequenceStates


def _sines(places: Tensor, width: int, period: float) -> Tensor:
    """Sines and cosines (P, width) of places (P,), of wave lengths from 2 pi up to `period` times as much."""
    half = -(-width // 2)
    rates = period ** -(torch.arange(half, device=places.device) / max(half, 1))  # (half,)
    angles = places[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


@dataclass(frozen=True)
class BridgeSettings:
    """What a bridge is.

    `mlp`: for each state by itself, `depth` linear layers with GELU between them. `mean`: the same of the mean of all
    states, to `states` new ones; the mean's direction is what a contrastive loss aligns, and it needs no attention to
    be found. `linear`: one layer without bias, as VisCPM's for pictures to be painted. `resampler`: `states` learned
    queries read all states, with their positions, through `depth` blocks of ours; `qformer`: the same by transformers'
    Blip2QFormerModel, without positions, as published. `width` of the layers within, None for the reading model's.
    """

    kind: Literal["mlp", "mean", "linear", "resampler", "qformer"] = "resampler"
    states: int = 64
    depth: int = 2
    heads: int = 8
    width: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"bridge.kind is {self.kind!r}; choose one of {', '.join(_KINDS)}")
        for name in ("states", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"bridge.{name} is {getattr(self, name)}; give 1 or more")
        if self.width is not None and self.width < 1:
            raise ValueError(f"bridge.width is {self.width}; give 1 or more, or null for that of the reading model")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"bridge.dropout is {self.dropout}; it is a share, from 0 to below 1")

    def count(self, length: int) -> int:
        """How many states N a bridge makes of `length` L."""
        return self.states if issubclass(_KINDS[self.kind], _Queries | MeanBridge) else length

    def build(self, source: Source, width: int, norm: float | None = None) -> Bridge:
        """A new bridge from `source` to states of `width` D, each of length `norm` (None: the root of D).

        Errors: ValueError for heads that do not divide the width.
        """
        return _KINDS[self.kind](self, source, width, math.sqrt(width) if norm is None else norm)


class Bridge(nn.Module, ABC):
    """States of a source -> states that another model reads.

    It ends in a layer norm whose gain gives fresh states the length `norm`, that of the reading model's own token
    embeddings: its blocks add to what they are given, so that states far longer would drown what its attention adds,
    and far shorter ones would vanish under it; either way it would read what it has never been trained on.
    """

    def __init__(self, source: Source, inner: int, width: int, norm: float) -> None:
        super().__init__()
        self.source = source
        self.output = nn.Linear(inner, width, bias=False)  # the norm has one
        self.output_norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.constant_(self.output_norm.weight, norm / math.sqrt(width))

    @abstractmethod
    def states(self, length: int) -> int:
        """How many states N it makes of `length` L."""

    @abstractmethod
    def seen(self, mask: Tensor) -> Tensor:
        """Which of its states (I, N) say something, where `mask` (I, L) tells it of those it reads."""

    @abstractmethod
    def read(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """States (I, L, W) -> (I, N, C)."""

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """States (I, L, W) and which of them are real (I, L) bool, None for all -> (I, N, D)."""
        states = states.to(self.output.weight.dtype)  # cached ones are in half
        return self.output_norm(self.output(self.read(states, mask)))


class _StateByState(Bridge):
    """A bridge that makes one state of each, and keeps their mask."""

    def states(self, length: int) -> int:
        return length

    def seen(self, mask: Tensor) -> Tensor:
        return mask


class LinearBridge(_StateByState):
    """A projection without bias and a norm (VisCPM's CPMBeeTransBlock)."""

    def __init__(self, settings: BridgeSettings, source: Source, width: int, norm: float) -> None:
        super().__init__(source, source.width, width, norm)

    def read(self, states: Tensor, mask: Tensor | None) -> Tensor:
        return states


def _perceptron(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers from each of the sizes to the next, GELU after every one."""
    layers = [(nn.Linear(a, b), nn.GELU(), nn.Dropout(dropout)) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain.from_iterable(layers))


class MLPBridge(_StateByState):
    """`depth` linear layers, the last of which is the output."""

    def __init__(self, settings: BridgeSettings, source: Source, width: int, norm: float) -> None:
        sizes = [source.width, *[settings.width or width] * (settings.depth - 1)]
        super().__init__(source, sizes[-1], width, norm)
        self.layers = _perceptron(sizes, settings.dropout)

    def read(self, states: Tensor, mask: Tensor | None) -> Tensor:
        return self.layers(states)


class MeanBridge(Bridge):
    """States of where the mean of those that are not masked points; each has a name, by which it is found."""

    def __init__(self, settings: BridgeSettings, source: Source, width: int, norm: float) -> None:
        inner = settings.width or width
        super().__init__(source, inner, width, norm)
        self.count = settings.states
        sizes = [source.width, *[inner] * (settings.depth - 1), self.count * inner]
        self.layers = _perceptron(sizes, settings.dropout)
        self.names = nn.Parameter(torch.randn(self.count, inner))  # (N, C)

    def states(self, length: int) -> int:
        return self.count

    def seen(self, mask: Tensor) -> Tensor:
        return mask.any(1, keepdim=True).expand(-1, self.count)

    def read(self, states: Tensor, mask: Tensor | None) -> Tensor:
        weight = torch.ones_like(states[..., :1]) if mask is None else mask.unsqueeze(-1).to(states.dtype)  # (I, L, 1)
        mean = functional.layer_norm((states * weight).sum(1), states.shape[-1:])  # (I, W), of deviation 1
        return self.layers(mean).unflatten(1, (self.count, -1)) + self.names  # (I, N, C)


class _Queries(Bridge):
    """A bridge of learned queries, which read what is not masked and say something all."""

    def __init__(self, settings: BridgeSettings, source: Source, width: int, norm: float) -> None:
        inner = settings.width or width
        if inner % settings.heads:
            raise ValueError(f"bridge.heads is {settings.heads}, which does not divide its width {inner}; change one")
        super().__init__(source, inner, width, norm)
        self.queries = nn.Parameter(0.02 * torch.randn(settings.states, inner))  # (N, C)

    def states(self, length: int) -> int:
        return len(self.queries)

    def seen(self, mask: Tensor) -> Tensor:
        return mask.new_ones(len(mask), len(self.queries))


class Resampler(_Queries):
    """Learned queries through pre-norm blocks: attention among themselves, to the states, feed-forward."""

    def __init__(self, settings: BridgeSettings, source: Source, width: int, norm: float) -> None:
        super().__init__(settings, source, width, norm)
        inner = settings.width or width
        self.input = nn.Linear(source.width, inner)
        self.input_norm = nn.LayerNorm(inner, eps=1e-6)
        layout = Layout(inner, settings.heads, 4 * inner, settings.dropout, 0.0, norm_eps=1e-6, pre_norm=True)
        self.blocks = Stack(layout, settings.depth, cross=True)

    def read(self, states: Tensor, mask: Tensor | None) -> Tensor:
        states = self.input_norm(self.input(states))  # (I, L, C)
        states = states + self.source.positions(states.shape[1], states.shape[2], states.device).to(states.dtype)
        readable = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask
        contexts = [
            (*block.cross_attention.project(states), readable[:, None, None, :]) for block in self.blocks.blocks
        ]
        return self.blocks(self.queries.expand(len(states), -1, -1), None, contexts)  # (I, N, C)


class QFormer(_Queries):
    """Transformers' Q-Former, of BLIP-2, with cross-attention in every layer."""

    def __init__(self, settings: BridgeSettings, source: Source, width: int, norm: float) -> None:
        super().__init__(settings, source, width, norm)
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        inner = settings.width or width
        config = Blip2QFormerConfig(
            hidden_size=inner,
            num_hidden_layers=settings.depth,
            num_attention_heads=settings.heads,
            intermediate_size=4 * inner,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
            cross_attention_frequency=1,
            encoder_hidden_size=source.width,
        )
        self.model = Blip2QFormerModel(config)

    def read(self, states: Tensor, mask: Tensor | None) -> Tensor:
        queries = self.queries.expand(len(states), -1, -1)
        read = self.model(query_embeds=queries, encoder_hidden_states=states, encoder_attention_mask=mask)
        return read.last_hidden_state  # (I, N, C)


_KINDS = {"mlp": MLPBridge, "mean": MeanBridge, "linear": LinearBridge, "resampler": Resampler, "qformer": QFormer}
