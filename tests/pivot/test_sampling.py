"""From noise to pictures: guidance, equal noise for equal seeds, schedulers that fit what was trained."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from cclm.pivot.noise import NoiseSettings
from cclm.pivot.sampling import SamplingOptions, TextStates, sample, sampler

CONFIG = {"num_train_timesteps": 100}


class Oracle(nn.Module):
    """Knows the picture: all cells have the mean of the text's states, and the noise is what is not that."""

    def __init__(self, prediction: str, share: torch.Tensor) -> None:
        super().__init__()
        self.prediction, self.share, self.seen = prediction, share, []

    def forward(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        self.seen.append((timesteps[0].item(), mask))
        clean = (states.mean(2) * mask).sum(1) / mask.sum(1)
        clean = clean.view(-1, 1, 1, 1).expand_as(noisy)
        if self.prediction == "flow_prediction":
            return (noisy - clean) / (timesteps / 100).view(-1, 1, 1, 1)
        kept = self.share[timesteps.long()].view(-1, 1, 1, 1)
        noise = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
        return {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * clean,
        }[self.prediction]


def painted(
    prediction: str, scheduler: str | None, guidance: float = 1.0, steps: int = 20, known: float = 0.5
) -> torch.Tensor:
    noise = NoiseSettings(CONFIG | {"prediction_type": prediction}).build(None, False)
    oracle = Oracle(prediction, getattr(noise.scheduler, "alphas_cumprod", torch.ones(100)))
    states = torch.tensor([[known, known, 9.0], [-0.25, -0.25, -0.25]]).unsqueeze(2).expand(-1, -1, 4)
    texts = TextStates(states, torch.tensor([[True, True, False], [True] * 3]))
    negative = TextStates(torch.zeros(2, 1, 4), torch.ones(2, 1, dtype=torch.bool))
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    options = SamplingOptions(scheduler, steps, guidance)
    return sample(oracle, sampler(noise, scheduler), start, texts, negative, options).mean((1, 2, 3))


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++", "unipc", "euler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_the_denoiser_knows_is_what_comes_out(prediction: str, scheduler: str) -> None:
    torch.testing.assert_close(painted(prediction, scheduler), torch.tensor([0.5, -0.25]), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("prediction", "scheduler"),
    [("sample", "ddim"), ("sample", "dpmsolver++")]
    + [("flow_prediction", each) for each in (None, "flow_euler", "dpmsolver++", "FlowMatchHeunDiscreteScheduler")],
)
def test_what_a_denoiser_of_pictures_or_flows_knows_comes_out_too(prediction: str, scheduler: str | None) -> None:
    torch.testing.assert_close(painted(prediction, scheduler), torch.tensor([0.5, -0.25]), atol=0.03, rtol=0)


def test_guidance_leads_away_from_the_negative_text_by_its_factor() -> None:
    torch.testing.assert_close(painted("epsilon", "ddim", 2.0), torch.tensor([1.0, -0.5]), atol=0.06, rtol=0)


def test_two_texts_in_one_batch_keep_their_masks() -> None:
    short = TextStates(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    long = TextStates(torch.full((1, 4, 3), 2.0), torch.tensor([[True, True, True, False]]))
    both = short.above(long)
    assert both.states.shape == (2, 4, 3)
    assert both.mask.tolist() == [[True, True, False, False], [True, True, True, False]]


@pytest.mark.parametrize(
    ("prediction", "scheduler", "told"),
    [
        ("epsilon", "flow_euler", "cannot sample a model that predicts epsilon; choose ddim"),
        ("epsilon", "VQDiffusionScheduler", "cannot sample a model that predicts epsilon"),
        ("flow_prediction", "ddim", "cannot sample a model that predicts flow_prediction; choose flow_euler"),
        ("epsilon", "dimm", "scheduler='dimm'; choose one of ddim, ddpm"),
        ("epsilon", "UNet2DConditionModel", "choose one of ddim, ddpm"),
        ("epsilon", "EDMEulerScheduler", "cannot sample a model that predicts epsilon"),  # knows other noise alone
        ("flow_prediction", "DPMSolverMultistepInverseScheduler", "cannot sample a model that predicts flow"),
        ("flow_prediction", "HeliosScheduler", "HeliosScheduler"),  # knows no shift
        pytest.param(
            *("epsilon", "DPMSolverSDEScheduler", "lacks a package .*requires the torchsde library"),
            marks=pytest.mark.skipif(find_spec("torchsde") is not None, reason="torchsde is here"),
        ),
        ("sample", "EulerAncestralDiscreteScheduler", "not implemented yet: sample.; choose dpmsolver"),
    ],
)
def test_schedulers_that_do_not_fit_are_told_in_one_line(prediction: str, scheduler: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        painted(prediction, scheduler)
    assert "\n" not in str(error.value)


def test_steps_that_a_scheduler_cannot_go() -> None:
    with pytest.raises(ValueError, match="steps=2 do not fit PNDMScheduler .*; give others, as 25, or choose dpm"):
        painted("epsilon", "PNDMScheduler", steps=2)


def test_a_scheduler_that_cannot_be_made_is_blamed_itself() -> None:
    sana = {"prediction_type": "flow_prediction", "algorithm_type": "dpmsolver++"}
    with pytest.raises(ValueError, match="scheduler='SASolverScheduler' makes no SASolverScheduler .dpmsolver"):
        sampler(NoiseSettings().build(sana, False), "SASolverScheduler")


def test_no_picture_is_made_of_nan() -> None:
    with pytest.raises(ValueError, match="the denoiser gave NaN or infinity; its weights or the bridge's are damaged"):
        painted("epsilon", "ddim", known=float("nan"))


def test_options_out_of_range() -> None:
    for given in ({"steps": 0}, {"batch": 0}, {"guidance": 0.5}, {"guidance": 1e30}, {"guidance": float("nan")}):
        with pytest.raises(ValueError, match="sampling: "):
            SamplingOptions(**given)
