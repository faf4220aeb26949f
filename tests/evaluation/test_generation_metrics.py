"""Distances and scores of generated pictures against torchmetrics itself and cases worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.multimodal.clip_score import CLIPScore

from cclm.evaluation.generation_metrics import (
    clip_scores,
    frechet_distance,
    hits,
    kernel_distance,
    matched,
    mismatched,
)


class Network(nn.Module):
    """A feature network of torchmetrics' kind: pictures (B, 3, 4, 4) uint8 -> (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 5).double()
        self.num_features = 5

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layer(pictures.flatten(1).double() / 255)


def pictures(seed: int, count: int, brightest: int = 256) -> Tensor:
    return torch.randint(brightest, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def unit(*rows: list[float]) -> Tensor:
    return nn.functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


def test_distances_are_those_of_torchmetrics_with_the_network_in_it() -> None:
    torch.manual_seed(0)
    network, real, generated = Network(), pictures(0, 40), pictures(1, 30, brightest=128)
    with torch.no_grad():
        theirs = FrechetInceptionDistance(network)
        kernel = KernelInceptionDistance(network, subsets=1, subset_size=30)
        for metric in (theirs, kernel):
            metric.update(real, real=True)
            metric.update(generated, real=False)
        features = network(real), network(generated)
    assert frechet_distance(*features) == pytest.approx(float(theirs.compute()), rel=1e-9)
    assert frechet_distance(*features) > 0.01 > abs(frechet_distance(features[0], features[0]))
    # Of more real than generated pictures a subset is drawn: by the seed, and never by what was drawn before.
    assert kernel_distance(*features, seed=3) == kernel_distance(*features, seed=3) != kernel_distance(*features)
    torch.default_generator.manual_seed(0)
    expected = float(kernel.compute()[0])
    assert kernel_distance(*features, seed=0) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_two_normals_by_hand() -> None:
    # One feature: (difference of means)^2 + (difference of standard deviations)^2.
    real, generated = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [9.0]])
    assert frechet_distance(real, generated) == pytest.approx(5.0**2 + (18**0.5 - 2**0.5) ** 2)


def test_kernel_distance_by_hand() -> None:
    real, generated = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]])
    kernel = lambda x, y: (x * y + 1) ** 3  # noqa: E731
    across = sum(kernel(x, y) for x in (1, 2) for y in (0, 1)) / 4
    assert kernel_distance(real, generated) == pytest.approx(kernel(1, 2) + kernel(0, 1) - 2 * across)


def test_sets_that_have_no_distance_are_refused() -> None:
    two = torch.ones(2, 3)
    for real, generated, message in (
        (two, two[:1], "features of generated pictures have shape"),
        (two, torch.ones(2, 4), "of one network"),
        (two, torch.full((2, 3), torch.nan), "generated pictures hold NaN"),
    ):
        for distance in (frechet_distance, kernel_distance):
            with pytest.raises(ValueError, match=message):
                distance(real, generated)


def test_clip_score_is_that_of_torchmetrics_with_the_model_in_it() -> None:
    generator = torch.Generator().manual_seed(0)
    seen, read = (nn.functional.normalize(torch.randn(6, 8, generator=generator), dim=-1) for _ in range(2))

    class Processor:
        def __call__(self, text: list[str] | None = None, images: list[Tensor] | None = None, **_: object) -> dict:
            rows = torch.tensor([int(one if text is not None else one.flatten()[0]) for one in text or images or ()])
            return {"pixel_values" if text is None else "input_ids": rows, "attention_mask": torch.ones(len(rows), 1)}

    class Model(nn.Module):
        config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=9))

        def get_image_features(self, pixel_values: Tensor) -> Tensor:
            return 3 * seen[pixel_values]

        def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return 5 * read[input_ids]

    theirs = CLIPScore(model_name_or_path=lambda: (Model(), Processor()))
    theirs.update([torch.full((3, 2, 2), row, dtype=torch.uint8) for row in range(6)], [str(row) for row in range(6)])
    pairs = clip_scores(seen, read)
    assert max(0.0, float(matched(pairs).mean())) == pytest.approx(float(theirs.compute()), rel=1e-5)
    assert float(mismatched(pairs).mean()) == pytest.approx(float((pairs.sum() - pairs.trace()) / 30))


def test_r_precision_of_perfect_blind_and_random_pictures() -> None:
    texts = torch.eye(20, dtype=torch.float64)
    assert matched(hits(texts, texts, 1)).tolist() == [1.0] * 20
    assert float(mismatched(hits(texts, texts, 10)).mean()) == pytest.approx(9 / 19)
    # One picture for every prompt: each finds its text with the probability of chance, wherever that stands.
    same = unit(*[[1.0] * 20] * 20)
    assert matched(hits(same, texts, 5)).tolist() == [0.25] * 20
    generator = torch.Generator().manual_seed(0)
    embeddings = [nn.functional.normalize(torch.randn(100, 16, generator=generator), dim=-1) for _ in range(2)]
    found = hits(*embeddings, 10)
    assert torch.allclose(found.sum(1), torch.full((100,), 10.0, dtype=torch.float64))
    assert 0.02 < float(matched(found).mean()) < 0.2


def test_hits_by_hand_with_ties() -> None:
    texts = unit([1, 0], [1, 0], [0, 1])
    found = hits(unit([1, 0], [0, 1], [1, 0.1]), texts, 1)
    assert found.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]
    assert hits(unit([1, 0], [0, 1], [1, 0.1]), texts, 2).tolist() == [[1, 1, 0], [0.5, 0.5, 1], [1, 1, 0]]
    assert matched(found).tolist() == [0.5, 0.0, 0.0] and mismatched(found).tolist() == [0.25, 0.5, 0.5]
