"""What a denoiser is asked for, checked against the formulas of each prediction type; diffusers agrees by sampling."""

from __future__ import annotations

import pytest
import torch

from cclm.pivot.noise import Noise, NoiseSettings


def noise(prediction: str, **settings: object) -> Noise:
    return NoiseSettings({"prediction_type": prediction, "num_train_timesteps": 50}, **settings).build(None, True)


def drawn(prediction: str, **settings: object):
    process, clean = noise(prediction, **settings), torch.randn(64, 3, 4, 4)
    return process, clean, process.draw(clean, torch.Generator().manual_seed(5))


def kept(process: Noise, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of picture and noise at each timestep."""
    share = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 50), 0)[timesteps].view(-1, 1, 1, 1)
    return share.sqrt(), (1 - share).sqrt()


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_targets_of_variance_preserving_noise(prediction: str) -> None:
    process, clean, found = drawn(prediction)
    signal, deviation = kept(process, found.timesteps)
    eps = (found.cells - signal * clean) / deviation
    assert eps.std().item() == pytest.approx(1.0, abs=0.05)
    wanted = {"epsilon": eps, "sample": clean, "v_prediction": signal * eps - deviation * clean}[prediction]
    torch.testing.assert_close(found.target, wanted, atol=1e-4, rtol=1e-4)
    assert len(found.timesteps.unique()) > 25
    assert found.timesteps.min() >= 0 and found.timesteps.max() < 50
    assert bool((found.weight == 1).all())


def test_targets_of_flow_matching_lie_on_the_line_from_picture_to_noise() -> None:
    process, clean, found = drawn("flow_prediction")
    sigma = (found.timesteps / 50).view(-1, 1, 1, 1)
    torch.testing.assert_close(found.cells - sigma * found.target, clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.cells + (1 - sigma) * found.target, clean + found.target, atol=1e-5, rtol=1e-5)
    assert (clean + found.target).std().item() == pytest.approx(1.0, abs=0.05)


def test_flow_matching_by_other_names_and_with_a_shift() -> None:
    fromsana = {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction", "flow_shift": 3.0}
    process = NoiseSettings().build(fromsana, False)
    assert process.prediction == "flow_prediction"
    assert process.scheduler.sigmas[500].item() == pytest.approx(3 * 0.5 / (1 + 2 * 0.5), abs=1e-3)
    named = NoiseSettings({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}).build(None, False)
    torch.testing.assert_close(named.scheduler.sigmas, process.scheduler.sigmas)


@pytest.mark.parametrize("floor", [0.0, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_min_snr_makes_errors_of_the_picture_count_alike_whatever_is_predicted(prediction: str, floor: float) -> None:
    """An error of what is predicted, turned into one of the picture by the definition of each, counts the SNR, held."""
    if prediction == "epsilon" and floor:
        with pytest.raises(ValueError, match="snr_floor is of no use where the noise is predicted"):
            drawn(prediction, min_snr=5.0, snr_floor=floor)
        return
    process, _, found = drawn(prediction, min_snr=5.0, snr_floor=floor)
    if prediction == "flow_prediction":
        sigma = found.timesteps / 50
        ratio, share = ((1 - sigma) / sigma) ** 2, sigma
    else:
        signal, deviation = (factor.flatten() for factor in kept(process, found.timesteps))
        ratio = (signal / deviation) ** 2
        share = {"epsilon": deviation / signal, "sample": torch.ones(64), "v_prediction": deviation}[prediction]
    torch.testing.assert_close(found.weight, ratio.clamp(floor, 5.0) * share**2, atol=1e-5, rtol=1e-3)


def test_min_snr_is_finite_where_all_is_noise() -> None:
    config = {"rescale_betas_zero_snr": True, "num_train_timesteps": 2}
    process = NoiseSettings(config, min_snr=5.0).build(None, False)
    found = process.draw(torch.randn(16, 3, 2, 2), torch.Generator().manual_seed(0))
    assert process.scheduler.alphas_cumprod[1] == 0
    assert bool(found.weight.isfinite().all())


def test_all_chance_comes_from_the_generator() -> None:
    process, clean, first = drawn("epsilon")
    torch.randn(3)
    again = process.draw(clean, torch.Generator().manual_seed(5))
    assert torch.equal(again.cells, first.cells) and torch.equal(again.timesteps, first.timesteps)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scheduler": {"prediction_typ": "sample"}}, "did you mean 'prediction_type'"),
        ({"scheduler": {"prediction_type": "noise"}}, "prediction_type is 'noise'; known: epsilon"),
        ({"scheduler": {"beta_schedule": "steep"}}, "noise.scheduler makes no DDPMScheduler"),
        ({"min_snr": 0.0}, "give a number above 0"),
        ({"snr_floor": 1.0}, "give 0 up to noise.min_snr, which is None"),
        ({"snr_floor": 6.0, "min_snr": 5.0}, "give 0 up to noise.min_snr, which is 5.0"),
        ({"density": "normal"}, "choose one of uniform, logit_normal"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        NoiseSettings(**settings).build(None, False)
    assert "\n" not in str(error.value)
