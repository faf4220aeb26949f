"""Noise for training: how much of it, what the denoiser must say of it, and how much each amount counts.

Shapes: B pictures of C channels and h x w cells.
"""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cclm.pivot.diffusers_parts import diffusers, new_scheduler
from cclm.types import TensorData

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
DENSITIES = ("uniform", "logit_normal")
_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
# Plain pipelines of Stable Diffusion set these two so, whatever a config says.
_PLAIN = {"clip_sample": False, "steps_offset": 1}


@dataclass(frozen=True)
class NoiseSettings:
    """`scheduler`: a diffusers scheduler's config, over that of the pretrained folder where there is one; what is
    predicted is its `prediction_type`: epsilon (the noise), sample (the picture), v_prediction, or flow_prediction
    (flow matching: noise minus picture, as Sana's and all FlowMatch schedulers').

    `min_snr`: an error of the picture counts by the signal-to-noise ratio, cut at this (5 is usual) and not below
    `snr_floor` (1 keeps weight where all is noise and places are decided; of no use to epsilon, which then says nothing
    of the picture). None: all the same.
    `density` of flow matching's amounts: uniform or logit_normal.
    """

    scheduler: dict[str, Any] = field(default_factory=dict)
    min_snr: float | None = None
    density: str = "uniform"
    snr_floor: float = 0.0

    def __post_init__(self) -> None:
        if self.min_snr is not None and self.min_snr <= 0:
            raise ValueError(f"noise.min_snr is {self.min_snr}; give a number above 0 (5 is usual), or null")
        if not 0 <= self.snr_floor <= (self.min_snr or 0.0):
            raise ValueError(
                f"noise.snr_floor is {self.snr_floor}; give 0 up to noise.min_snr, which is {self.min_snr}"
            )
        if self.density not in DENSITIES:
            raise ValueError(f"noise.density is {self.density!r}; choose one of {', '.join(DENSITIES)}")

    @property
    def tells_process(self) -> bool:
        """Whether `scheduler` alone says how the noise grows and what is predicted of it."""
        flows = prediction_of(self.scheduler) == "flow_prediction"
        return flows or {"prediction_type", "beta_schedule"} <= self.scheduler.keys()

    def build(self, pretrained: dict[str, Any] | None, pixels: bool) -> Noise:
        """`pretrained`: the scheduler's config of a pipeline's folder. `pixels`: what is denoised lies in [-1, 1], and
        is kept there while sampling. Errors: ValueError for an unknown option or prediction.
        """
        _check_options(self.scheduler)
        # Sampling begins with pure noise only if the steps are counted from the end.
        own = {"timestep_spacing": "trailing"} if pretrained is None else pretrained
        bound = {"thresholding": True, "sample_max_value": 1.0} if pixels else {}
        return Noise(own | bound | self.scheduler | _PLAIN, self)


@dataclass(frozen=True)
class Noised(TensorData):
    """Pictures with noise, and what is to be predicted."""

    cells: Tensor  # (B, C, h, w)
    timesteps: Tensor  # (B,)
    target: Tensor  # (B, C, h, w)
    weight: Tensor  # (B,) float32


class Noise:
    """The process that the denoiser learns to undo. `prediction`: what it says of its input."""

    def __init__(self, config: dict[str, Any], settings: NoiseSettings) -> None:
        self.settings = settings
        self.prediction = prediction_of(config)
        if settings.snr_floor and self.prediction == "epsilon":
            raise ValueError(
                "noise.snr_floor is of no use where the noise is predicted; set it to 0, or predict sample"
            )
        if self.prediction == "flow_prediction":
            changes = {
                "shift": float(config.get("shift", config.get("flow_shift", 1.0))),
                "use_dynamic_shifting": False,
            }
            self.scheduler = new_scheduler(config, "FlowMatchEulerDiscreteScheduler", "noise.scheduler", **changes)
        else:
            self.scheduler = new_scheduler(config, "DDPMScheduler", "noise.scheduler")

    def draw(self, clean: Tensor, generator: torch.Generator) -> Noised:
        """Noise on pictures (B, C, h, w), each with an amount of its own; all chance comes from `generator`."""
        noise = torch.randn(clean.shape, generator=generator, device=generator.device).to(clean)
        if self.prediction == "flow_prediction":
            return self._flowing(clean, noise, generator)
        count = self.scheduler.config.num_train_timesteps
        steps = torch.randint(count, (len(clean),), generator=generator, device=generator.device).to(clean.device)
        noisy = self.scheduler.add_noise(clean, noise, steps)
        target = {
            "epsilon": lambda: noise,
            "sample": lambda: clean,
            "v_prediction": lambda: self.scheduler.get_velocity(clean, noise, steps),
        }[self.prediction]()
        kept = self.scheduler.alphas_cumprod.to(clean.device)[steps]  # (B,) the share of variance that is picture
        return Noised(noisy, steps, target, self._weight(kept / (1 - kept), 1 - kept))

    def _flowing(self, clean: Tensor, noise: Tensor, generator: torch.Generator) -> Noised:
        """On the straight line from picture to noise (flow matching)."""
        shape, place = (len(clean),), generator.device
        if self.settings.density == "logit_normal":
            share = torch.randn(shape, generator=generator, device=place).sigmoid()
        else:
            share = torch.rand(shape, generator=generator, device=place)
        rows = (share * self.scheduler.config.num_train_timesteps).long().cpu()
        sigmas = self.scheduler.sigmas[rows].to(clean.device)  # (B,)
        timesteps = self.scheduler.timesteps[rows].to(clean.device)
        amount = sigmas.view(-1, 1, 1, 1).to(clean)
        noisy = (1 - amount) * clean + amount * noise
        return Noised(noisy, timesteps, noise - clean, self._weight(((1 - sigmas) / sigmas) ** 2, sigmas**2))

    def _weight(self, ratio: Tensor, variance: Tensor) -> Tensor:
        """(B,): an error of the picture counts the ratio within its bounds; what is predicted errs by a share of that.

        `ratio`: of signal to noise, `variance`: of the noise. With x the picture and s^2 the variance, an error e of
        the noise is one of e / sqrt(ratio) of x; one of velocity or flow is one of s e.
        """
        limit = self.settings.min_snr
        if limit is None:
            return torch.ones_like(ratio)
        held = ratio.clamp(self.settings.snr_floor, limit)
        if self.prediction == "epsilon":
            return (limit / ratio).clamp(max=1.0)  # held / ratio, and 1 where all is noise
        return held if self.prediction == "sample" else held * variance


def _check_options(given: dict[str, Any]) -> None:
    """Errors: ValueError for what no scheduler heeds; diffusers would take and forget it."""
    known = {"_class_name", "_diffusers_version"}
    for kind in _SCHEDULERS:
        known |= inspect.signature(getattr(diffusers(), kind).__init__).parameters.keys()
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(
                f"noise.scheduler: no scheduler has the option {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else "; see diffusers' DDPMScheduler")
            )


def prediction_of(config: dict[str, Any]) -> str:
    """What a scheduler's config has predicted. Errors: ValueError for anything that is not known here."""
    flows = str(config.get("_class_name", "")).startswith("FlowMatch")
    named = "flow_prediction" if flows else config.get("prediction_type", "epsilon")
    if named not in PREDICTIONS:
        raise ValueError(f"the scheduler's prediction_type is {named!r}; known: {', '.join(PREDICTIONS)}")
    return named
