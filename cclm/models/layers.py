"""Transformer blocks of the text encoder and of the fusion: attention, one block for all, embeddings.

Shapes: B texts, L tokens, S states of the context, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

# What cross-attention reads: keys, values (B, H, S, D / H) and a mask that broadcasts to (B, H, L, S).
ProjectedContext = tuple[Tensor, Tensor, Tensor]
Part = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """Geometry that all blocks of a stack share."""

    width: int
    heads: int
    intermediate: int
    dropout: float
    attention_dropout: float  # above 0, torch has no fused attention on a CPU
    norm_eps: float
    pre_norm: bool


@dataclass(frozen=True)
class Vocabulary:
    """Geometry of the embedding tables."""

    size: int
    max_positions: int
    pad_token_id: int
    position_offset: int


class Dropout(nn.Module):
    """Dropout that is cheap on a CPU too, where torch draws a number per element on one core: a third of a small step.

    There one 64-bit draw serves eight elements, which rounds the rate to a multiple of 1/256.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, states: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return states
        if states.device.type != "cpu":
            return F.dropout(states, self.rate)
        dropped = round(self.rate * 256)
        draws = torch.empty(-(-states.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = draws.view(torch.uint8)[: states.numel()].view(states.shape) >= dropped
        return states * (keep * (256 / (256 - dropped)))


class Attention(nn.Module):
    """Multi-head attention; the keys and values may be projected ahead of time (`project`) and reused.

    `projects=False`: it has no projections of its own and reads what another block's have made.
    """

    def __init__(self, width: int, heads: int, dropout: float, projects: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"hidden_size {width} does not divide into num_heads {heads}; choose a multiple")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width) if projects else None
        self.value = nn.Linear(width, width) if projects else None
        self.out = nn.Linear(width, width)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, D / H)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D / H) of `states` (B, S, D)."""
        return self._split(self.key(states)), self._split(self.value(states))

    def forward(self, states: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """`states` (B, L, D) read `keys`, `values`; `mask` broadcasts to (B, H, L, S), True = may be read."""
        dropout = self.dropout if self.training else 0.0
        queries = self._split(self.query(states))  # (B, H, L, D / H)
        # On a CPU the fused kernel's backward is several times slower in bf16 than plain products are.
        plain = queries.dtype == torch.bfloat16 and queries.device.type == "cpu" and torch.is_grad_enabled()
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            mixed = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, L, D)


class Block(nn.Module):
    """Self-attention, cross-attention where it reads a context, feed-forward; residual around each.

    `pre_norm=False` normalises after each residual sum (BERT, XLM-R); True before each part, which lets small
    models from scratch learn several times faster. A stack of pre-norm blocks ends in a norm of its own.
    """

    def __init__(self, layout: Layout, cross: bool, projects: bool = True) -> None:
        super().__init__()
        width, eps = layout.width, layout.norm_eps
        self.pre_norm = layout.pre_norm
        self.attention = Attention(width, layout.heads, layout.attention_dropout)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.cross_attention = Attention(width, layout.heads, layout.attention_dropout, projects) if cross else None
        self.cross_attention_norm = nn.LayerNorm(width, eps=eps) if cross else None
        self.expand = nn.Linear(width, layout.intermediate)
        self.contract = nn.Linear(layout.intermediate, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = Dropout(layout.dropout)

    def forward(self, states: Tensor, mask: Tensor | None, context: ProjectedContext | None = None) -> Tensor:
        """`states` (B, L, D), `mask` (B, 1, 1, L) bool; without a context the cross-attention is skipped."""
        return self.read(self.attend(states, mask), context)

    def attend(self, states: Tensor, mask: Tensor | None, first: int | None = None) -> Tensor:
        """The part that reads no context: self-attention. Of the `first` states only, or all: (B, first or L, D)."""

        def part(x: Tensor) -> Tensor:
            return self.attention(x[:, :first], *self.attention.project(x), mask)

        return self._residual(states, self.attention_norm, part, first)

    def read(self, states: Tensor, context: ProjectedContext | None) -> Tensor:
        """The rest: cross-attention, where there is a context, and feed-forward; for each state by itself."""
        if context is not None:
            assert self.cross_attention is not None, "a text layer was handed a context"
            cross = self.cross_attention
            states = self._residual(states, self.cross_attention_norm, lambda x: cross(x, *context))
        return self._residual(states, self.feed_forward_norm, lambda x: self.contract(F.gelu(self.expand(x))))

    def _residual(self, states: Tensor, norm: nn.LayerNorm, part: Part, first: int | None = None) -> Tensor:
        if self.pre_norm:
            return states[:, :first] + self.dropout(part(norm(states)))
        return norm(states[:, :first] + self.dropout(part(states)))


class Stack(nn.Module):
    """Blocks in a row, with the closing norm that pre-norm blocks need.

    `interleaved` n: each layer is n blocks, of which only the first projects keys and values of a context.
    """

    def __init__(self, layout: Layout, layers: int, cross: bool, interleaved: int = 1) -> None:
        super().__init__()
        count = layers * interleaved
        self.blocks = nn.ModuleList(Block(layout, cross, index % interleaved == 0) for index in range(count))
        self.norm = nn.LayerNorm(layout.width, eps=layout.norm_eps) if layout.pre_norm else nn.Identity()
        self.checkpointing = False

    def forward(self, states: Tensor, mask: Tensor | None, contexts: list[ProjectedContext] | None = None) -> Tensor:
        """`states` (B, L, D), `mask` (B, L) or (B, L, L) bool or None; a context per block, or none at all."""
        attend = _attended(mask)
        for index, block in enumerate(self.blocks):
            context = None if contexts is None else contexts[index]
            if self.checkpointing and self.training:
                states = checkpoint(block, states, attend, context, use_reentrant=False)
            else:
                states = block(states, attend, context)
        return self.norm(states)

    def ahead(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """As far as `forward` comes before it reads a context (B, L, D): the same for any that `resumed` then reads."""
        return self.blocks[0].attend(states, _attended(mask))

    def resumed(
        self, states: Tensor, mask: Tensor | None, contexts: list[ProjectedContext], first: int | None = None
    ) -> Tensor:
        """What `forward` makes of states that `ahead` has begun; the `first` of them, or all: (B, first or L, D)."""
        attend, last = _attended(mask), len(self.blocks) - 1
        for index, (block, context) in enumerate(zip(self.blocks, contexts, strict=True)):
            told = first if index == last else None
            states = block.attend(states, attend, told) if index else states[:, :told]
            states = block.read(states, context)
        return self.norm(states)


def _attended(mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    return mask[:, None] if mask.dim() == 3 else mask[:, None, None, :]  # (B, 1, L or 1, L)


class Embeddings(nn.Module):
    """Word + position + type embeddings of XLM-R, normalised.

    `position_offset` 0 counts positions from 0 and gives pads one too, as CCLM-3M/4M was trained; otherwise real
    tokens count from `position_offset` (XLM-R: 2) and pads all take `pad_token_id` (reference/cclm.md 1.3).
    """

    def __init__(self, layout: Layout, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.offset, self.pad = vocabulary.position_offset, vocabulary.pad_token_id
        self.word = nn.Embedding(vocabulary.size, layout.width, padding_idx=vocabulary.pad_token_id)
        self.position = nn.Embedding(vocabulary.max_positions, layout.width)
        self.token_type = nn.Embedding(1, layout.width)
        self.norm = nn.LayerNorm(layout.width, eps=layout.norm_eps)
        self.dropout = Dropout(layout.dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.shape[1] + self.offset > self.position.num_embeddings:
            raise ValueError(
                f"a text has {input_ids.shape[1]} tokens, the model holds {self.position.num_embeddings - self.offset};"
                " truncate it (processor max_tokens)"
            )
        if self.offset:
            real = input_ids.ne(self.pad)
            positions = (real.cumsum(1) + (self.offset - 1)).where(real, self.pad)
        else:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        states = self._words(input_ids) + self.position(positions) + self.token_type.weight
        return self.dropout(self.norm(states))  # (B, L, D)

    def _words(self, input_ids: Tensor) -> Tensor:
        """On a CPU the gradient of each lookup comes as the rows it touches, added to one dense gradient of the table.

        Else every lookup fills a table of its own with zeros, and adds it: 1 GB for XLM-R's vocabulary.
        """
        table = self.word.weight
        rows_only = table.device.type == "cpu" and torch.is_grad_enabled() and table.requires_grad
        if rows_only and not getattr(table, "takes_rows", False):  # weights that were loaded are another tensor
            table.register_post_accumulate_grad_hook(_densify)  # where nothing dense came to be added to
            table.takes_rows = True
        return F.embedding(input_ids, table, self.pad, sparse=rows_only)  # (B, L, D)


def _densify(table: Tensor) -> None:
    if table.grad is not None and table.grad.is_sparse:
        table.grad = table.grad.to_dense()
