"""The original's parameter groups and rates, from the weights that it started with; its loss on two processes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

from cclm.models.families import SWIN, Naming
from cclm.models.start import start_model
from cclm.models.weights import WeightFile
from cclm.objectives.base import EncodedPair
from cclm.objectives.contrastive import Contrastive
from cclm.training.optim import OptimizerSettings, build_optimizer, build_schedule, parameter_groups
from cclm.types import ImageInput, PairBatch, View
from tests.parity.conftest import Recorded, recorded, text
from tests.parity.test_pretraining import LOSS, close

SETTINGS = OptimizerSettings(lr=1e-4, new_factor=2.0, weight_decay=0.01, warmup_steps=2, as_published=True)


@pytest.fixture(scope="module")
def groups(swin: Recorded) -> tuple[list[dict], Naming]:
    """Of a CCLM-3M/4M started from a Swin and a 24-layer XLM-R, as the original was."""
    config = {name: value for name, value in swin.expected["meta"]["text_config"].items() if name != "architectures"}
    language_model = XLMRobertaForMaskedLM(XLMRobertaConfig(**config))
    stored = torch.load(swin.folder / "pretrain.th", weights_only=True)["model"]
    image = {
        name.removeprefix("vision_encoder."): v for name, v in stored.items() if name.startswith("vision_encoder.")
    }
    layers = WeightFile(Path("xlm-roberta.pth"), language_model.state_dict())
    _, model, report, _ = start_model(WeightFile(Path("swin.pth"), image), layers, 4)
    named = dict(model.named_parameters())
    return parameter_groups(named, SETTINGS, set(report.new)), Naming(SWIN, model.config, bare=False)


def test_groups_by_name(swin: Recorded, groups: tuple[list[dict], Naming]) -> None:
    ours, naming = groups
    got = {(group["lr"], group["weight_decay"]): {naming.theirs(n)[0] for n in group["names"]} for group in ours}
    want = {(g["lr"], g["weight_decay"]): set(g["names"]) for g in swin.expected["optim"]["groups"]}
    assert got == want


def test_rates_by_step(swin: Recorded, groups: tuple[list[dict], Naming]) -> None:
    ours, _ = groups
    recorded_groups, rates = swin.expected["optim"]["groups"], swin.expected["optim"]["lrs"]
    keys = [(group["lr"], group["weight_decay"]) for group in recorded_groups]
    places = [keys.index((group["lr"], group["weight_decay"])) for group in ours]
    optimizer = build_optimizer(ours, SETTINGS)
    schedule = build_schedule(optimizer, SETTINGS, len(rates))
    for step in rates:
        for group, place in zip(optimizer.param_groups, places, strict=True):
            assert group["lr"] == pytest.approx(step[place], rel=1e-12, abs=1e-18)
        optimizer.step()
        schedule.step()


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    swin = recorded("cclm_swin")
    model, blocks = swin.model(), swin.expected["blocks"]
    inputs, rows = swin.expected["image_text"]["inputs"], slice(3 * rank, 3 * rank + 3)
    image, target = (blocks[name][rows].clone().requires_grad_() for name in ("image_feat", "text_feat"))
    empty = torch.zeros(3, 0)
    views = [View(empty, empty, embedding) for embedding in (image, target)]
    batch = PairBatch("image", ImageInput(inputs["image"][rows]), text(inputs).select(torch.arange(3)))
    loss = Contrastive(as_published=True)(EncodedPair(model, batch, *views))
    loss.backward()
    stored = {"loss": loss.detach(), "image": image.grad, "text": target.grad, "scale": model.logit_scale.grad}
    torch.save(stored, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_contrastive_on_two_processes(swin: Recorded, tmp_path: Path) -> None:
    """`as_published` gives the original's feature gradients on each rank; DDP's mean its loss and temperature's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    got = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for rank, want in enumerate(swin.expected["itc_2rank"]):
        assert want["rank"] == rank
        close(got[rank]["image"], want["d_image_feat"], LOSS)
        close(got[rank]["text"], want["d_text_feat"], LOSS)
        close((got[0]["loss"] + got[1]["loss"]) / 2, want["loss"], LOSS)
        of_temperature = -(got[0]["scale"] + got[1]["scale"]) / 2 / swin.model().config.temperature
        close(of_temperature / want["d_temp"], 1.0, LOSS)
