"""Noise -> pictures, step by step, in the light of a text, by any fitting scheduler of diffusers.

Shapes: B pictures of C channels and h x w cells, N states of each one's text, D their width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.errors import first_line
from cclm.pivot.denoisers import Denoiser
from cclm.pivot.diffusers_parts import diffusers, new_scheduler
from cclm.pivot.noise import Noise
from cclm.types import TensorData

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

SHORT = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
}
MOST_GUIDANCE = 1000  # 4 to 8 are usual; numbers that leave float32 are of no use to anyone


@dataclass(frozen=True)
class SamplingOptions:
    """`scheduler`: ddim, dpmsolver++, euler, unipc, flow_euler or the name of a diffusers class; None: ddim, and
    flow_euler for what was trained by flow matching. `guidance`: how far away from `negative` (the empty caption) the
    text leads, 1 for not at all, None for as far as the model says. `batch`: pictures at once.
    """

    scheduler: str | None = None
    steps: int = 25
    guidance: float | None = None
    negative: str = ""
    batch: int = 16

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampling: {name}={getattr(self, name)}; give 1 or more")
        if self.guidance is not None and not 1 <= self.guidance <= MOST_GUIDANCE:
            raise ValueError(f"sampling: guidance={self.guidance}; give 1 (none) to {MOST_GUIDANCE} (4 to 8 are usual)")


@dataclass(frozen=True)
class TextStates(TensorData):
    """What a denoiser reads of texts."""

    states: Tensor  # (B, N, D)
    mask: Tensor  # (B, N) bool

    def __len__(self) -> int:
        return len(self.states)

    def repeated(self, count: int) -> TextStates:
        """A single text's for so many pictures."""
        return TextStates(self.states.expand(count, -1, -1), self.mask.expand(count, -1))

    def above(self, other: TextStates) -> TextStates:
        """Both in one batch, the shorter ones padded."""
        longest = max(self.states.shape[1], other.states.shape[1])
        padded = [
            (F.pad(each.states, (0, 0, 0, longest - each.states.shape[1])), _padded(each.mask, longest))
            for each in (self, other)
        ]
        return TextStates(*(torch.cat(parts) for parts in zip(*padded, strict=True)))


def _padded(mask: Tensor, length: int) -> Tensor:
    return F.pad(mask, (0, length - mask.shape[1]))


def sampler(noise: Noise, name: str | None) -> SchedulerMixin:
    """The scheduler that undoes what `noise` does. Errors: ValueError for an unknown one, and one that cannot."""
    library = diffusers()
    flows = noise.prediction == "flow_prediction"
    kind = SHORT.get(name or ("flow_euler" if flows else "ddim"), name)
    found = getattr(library, kind, None)
    if isinstance(found, library.utils.DummyObject):
        with _blamed(f"scheduler={name!r} lacks a package"):
            found()  # tells which package it lacks
    if not (isinstance(found, type) and issubclass(found, library.SchedulerMixin)):
        raise ValueError(f"sampling: scheduler={name!r}; choose one of {', '.join(SHORT)} or a scheduler of diffusers")
    options = inspect.signature(found.__init__).parameters
    config, wish = dict(noise.scheduler.config), f"sampling: scheduler={name!r}" if name else "noise.scheduler"
    like_ours = kind in library.schedulers.KarrasDiffusionSchedulers.__members__ and "beta_schedule" in options
    if kind.startswith("FlowMatch") if flows else like_ours:
        return new_scheduler(config, kind, wish)
    if flows and "flow_shift" in options and "Inverse" not in kind:  # those go from pictures to noise
        changes = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": config["shift"]}
        return new_scheduler(config, kind, wish, **changes)
    raise ValueError(
        f"sampling: scheduler={name!r} cannot sample a model that predicts {noise.prediction}; choose "
        + ("flow_euler, dpmsolver++ or unipc" if flows else "ddim, dpmsolver++, euler or unipc")
    )


@contextmanager
def _blamed(what: str, cure: str = "choose dpmsolver++") -> Iterator[None]:
    """Whatever schedulers raise, in many ways, becomes one line."""
    try:
        yield
    except (ArithmeticError, AssertionError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}" if isinstance(error, LookupError) else first_line(error)
        raise ValueError(f"sampling: {what} ({reason}); {cure}") from None


def sample(
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    start: Tensor,
    texts: TextStates,
    negative: TextStates,
    options: SamplingOptions,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise (B, C, h, w) of deviation 1 and the states of B texts and B negative ones -> cells (B, C, h, w).

    `generator`: for schedulers that add noise on the way. Errors: ValueError for a scheduler that cannot, and for NaN.
    """
    kind = type(scheduler).__name__
    with _blamed(f"steps={options.steps} do not fit {kind}", "give others, as 25, or choose dpmsolver++"):
        scheduler.set_timesteps(options.steps, device=start.device)
    guidance = options.guidance or 1.0
    guided = guidance > 1
    read = negative.above(texts) if guided else texts
    read = read.to(start.device)
    chance = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    cells = start * getattr(scheduler, "init_noise_sigma", 1.0)
    for time in scheduler.timesteps:
        seen = torch.cat([cells, cells]) if guided else cells  # (2 B, C, h, w)
        if hasattr(scheduler, "scale_model_input"):
            seen = scheduler.scale_model_input(seen, time)
        told = denoiser(seen, time.expand(len(seen)), read.states, read.mask).float()
        if guided:
            without, within = told.chunk(2)
            told = without + guidance * (within - without)
        with _blamed(f"{kind} cannot undo this noise"):
            cells = scheduler.step(told, time, cells, **chance, return_dict=False)[0]
    if not cells.isfinite().all():
        raise ValueError(
            "sampling: the denoiser gave NaN or infinity; its weights or the bridge's are damaged, or guidance, "
            f"{guidance:g}, is too high"
        )
    return cells
