"""Rows of every rank, with gradients flowing back to the rank they came from."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """all_gather forward; backward sums, over ranks, the gradient that belongs to the local rows."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        ctx.count = len(rows)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # gloo has no reduce_scatter for every dtype; the batch is small beside the model
        start = dist.get_rank() * ctx.count
        return gradient[start : start + ctx.count]


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_values(values: Tensor) -> Tensor:
    """(B,) of this rank -> (ranks * B,) of all, without a gradient."""
    if ranks() == 1:
        return values
    gathered = [torch.empty_like(values) for _ in range(ranks())]
    dist.all_gather(gathered, values.contiguous())
    return torch.cat(gathered)


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """(B, E) of this rank -> (ranks * B, E) of all, and the position of this rank's first row.

    Every rank must hold the same number of rows. Without a process group it is the identity.
    """
    if ranks() == 1:
        return rows, 0
    return _Gather.apply(rows), dist.get_rank() * len(rows)
