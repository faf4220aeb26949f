"""Contrastive losses over two gloo processes are those of one process with the whole batch, gradients included."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cclm.objectives.base import EncodedPair, Objective
from cclm.objectives.contrastive import Contrastive
from cclm.objectives.sigmoid import Sigmoid
from cclm.types import PairBatch, TextInput
from tests.models.test_model import texts, tiny

OBJECTIVES: dict[str, type[Objective]] = {"contrastive": Contrastive, "sigmoid": Sigmoid}


def _loss_and_gradients(name: str, rows: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model, objective = tiny(), OBJECTIVES[name]()
    context, target = (
        TextInput(ids[rows], mask[rows]) for ids, mask in (texts(8, 6), [part.flip(0) for part in texts(8, 9)])
    )
    pairs = PairBatch("s", context, target)
    loss = objective(EncodedPair(model, pairs, context.encode(model), target.encode(model)), None, None)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _rank(rank: int, port: int, name: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    loss, gradients = _loss_and_gradients(name, slice(4 * rank, 4 * rank + 4))
    for value in (loss, *gradients.values()):  # what DDP does
        dist.all_reduce(value)
        value /= 2
    if rank == 0:
        torch.save({"loss": loss, "gradients": gradients}, Path(folder) / "two.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_equal_one(name: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (port, name, str(tmp_path)), nprocs=2)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    loss, gradients = _loss_and_gradients(name, slice(0, 8))
    assert torch.allclose(two["loss"], loss, atol=1e-6)
    assert two["gradients"].keys() == gradients.keys() and len(gradients) > 30
    for parameter, gradient in gradients.items():
        assert torch.allclose(two["gradients"][parameter], gradient, atol=1e-5), parameter
