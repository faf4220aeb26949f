"""Which parameters train, at which rate, with which decay, and how the rate moves over the run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its schedule. The defaults are CCLM's (reference/cclm.md 3.4).

    `frozen` and `rates` name parts by the start of their parameters' names (`image_encoder`, `fusion` ..); `new_factor`
    multiplies the rate of parameters that no pretrained weights filled. `as_published`: the warm-up starts with a step
    at rate 0, and vectors that are neither biases nor norms by name decay too (logit_scale, layer scales, the norm
    within a matching head), as in the original.
    """

    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    schedule: str = "linear"
    warmup_steps: int = 2500
    new_factor: float = 1.0
    clip_norm: float = 1.0
    rates: dict[str, float] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)
    as_published: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optimizer.schedule is {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps is {self.warmup_steps}; give 0 or more")


def freeze(model: nn.Module, parts: list[str]) -> None:
    """Stop training the parameters whose names start with one of `parts`. Errors: ValueError for a part without any."""
    for part in parts:
        _check_part(dict(model.named_parameters()), part, "frozen")
    for name, parameter in model.named_parameters():
        if any(_belongs(name, part) for part in parts):
            parameter.requires_grad_(False)


def parameter_groups(named: dict[str, nn.Parameter], settings: OptimizerSettings, new: set[str]) -> list[dict]:
    """Groups for AdamW: by rate (part, new or not) and by decay (biases, norms and scalars have none).

    `new`: names of parameters that pretrained weights did not fill. Each group lists its parameters' `names`.
    """
    for part in settings.rates:
        _check_part(named, part, "rates")
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in named.items():
        if not parameter.requires_grad:
            continue
        lr = next((rate for part, rate in settings.rates.items() if _belongs(name, part)), settings.lr)
        lr *= settings.new_factor if name in new else 1.0
        vector = parameter.dim() <= 1 and not settings.as_published
        decay = 0.0 if vector or re.search(r"bias|norm", name) else settings.weight_decay
        group = groups.setdefault((lr, decay), {"params": [], "names": [], "lr": lr, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ValueError("optimizer.frozen leaves nothing to train; remove a part from it")
    return list(groups.values())


def build_optimizer(groups: list[dict], settings: OptimizerSettings) -> AdamW:
    """Fused AdamW: one kernel instead of a loop over tensors, on CPU and GPU alike."""
    return AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def build_schedule(optimizer: AdamW, settings: OptimizerSettings, total_steps: int) -> LambdaLR:
    """Linear warm-up, then linear or cosine decay to 0 at `total_steps`, or constant."""
    warmup = settings.warmup_steps

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup if settings.as_published else (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if settings.schedule == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1.0 if settings.schedule == "constant" else 1.0 - progress

    return LambdaLR(optimizer, factor)


def _belongs(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def _check_part(named: dict[str, nn.Parameter], part: str, where: str) -> None:
    if not any(_belongs(name, part) for name in named):
        parts = sorted({name.split(".")[0] for name in named})
        raise ValueError(f"optimizer.{where} names {part!r}, no such part of the model; parts: {', '.join(parts)}")
