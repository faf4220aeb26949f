"""Numbers about generated pictures, from features and embeddings: how far two sets lie apart, how well pairs match.

What matches a picture with a text is scored for all pairs, (N, N). The mean of the diagonal is the number; that of all
others is the same number with mismatched captions, the floor by which it is to be read.
Shapes: N pictures, each with a text of its own; M pictures; F features; E embedding.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, where there are more pictures than one holds


class _Given(nn.Identity):
    """In the place of a feature network of torchmetrics: features are computed once, and handed in as the pictures."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """FID of features (N, F) and (M, F): 0 where means and covariances are equal (Heusel et al. 2017).

    The fewer the pictures, the larger it is: numbers of equally many compare. Errors: ValueError for fewer than 2.
    """
    _check_sets(real, generated)
    distance = FrechetInceptionDistance(_Given(real.shape[1]))
    distance.update(real.double(), real=True)
    distance.update(generated.double(), real=False)
    return float(distance.compute())


def kernel_distance(real: Tensor, generated: Tensor, seed: int = 0) -> float:
    """KID of features (N, F) and (M, F): unbiased however few pictures there are, and then perhaps below 0 (Binkowski
    et al. 2018). The mean over 100 subsets of 1,000, drawn by `seed`; over all at once where there are fewer.

    Errors: ValueError for fewer than 2.
    """
    _check_sets(real, generated)
    fewest = min(len(real), len(generated))
    count, size = (SUBSETS, SUBSET_SIZE) if fewest > SUBSET_SIZE else (1, fewest)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps features in memory, where they are already
        torch.default_generator.manual_seed(seed)  # torchmetrics draws from there only
        distance = KernelInceptionDistance(_Given(real.shape[1]), subsets=count, subset_size=size)
        distance.update(real.double(), real=True)
        distance.update(generated.double(), real=False)
        return float(distance.compute()[0])


def _check_sets(real: Tensor, generated: Tensor) -> None:
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != real.shape[1]:
            raise ValueError(
                f"features of {name} pictures have shape {tuple(features.shape)}, of real ones {tuple(real.shape)}; "
                "give (pictures, features) of one network, for 2 pictures or more"
            )
        if not bool(features.isfinite().all()):
            raise ValueError(f"features of {name} pictures hold NaN or infinity: the feature network has overflowed")


def similarities(pictures: Tensor, others: Tensor) -> Tensor:
    """Cosines (N, M) float64 of unit-norm embeddings (N, E) and (M, E)."""
    return pictures.double() @ others.double().T


def clip_scores(pictures: Tensor, texts: Tensor) -> Tensor:
    """100 x cosine (N, N) of every picture with every text; 0 for a negative mean is left to whoever reads it.

    The mean of the diagonal is torchmetrics' CLIPScore with this model as its CLIP (Hessel et al. 2021 have 250 for
    100). Unit-norm embeddings (N, E) both.
    """
    return 100 * similarities(pictures, texts)


def hits(pictures: Tensor, texts: Tensor, k: int) -> Tensor:
    """Which of the texts are among the k that a picture finds: (N, N) float64, a probability where texts tie.

    The diagonal tells R-precision: does a generated picture find its own text among N? Each row sums to k.
    """
    scores = similarities(pictures, texts).float()  # rounded, so that equal texts tie
    ordered = scores.sort(1).values
    after = torch.searchsorted(ordered, scores, right=True)
    above = scores.shape[1] - after  # (N, N): texts that score higher than this one
    tied = after - torch.searchsorted(ordered, scores)
    return ((k - above).clamp(min=0) / tied.double()).clamp(max=1)


def matched(pairs: Tensor) -> Tensor:
    """Of each picture with its own text, (N,): the diagonal of all pairs (N, N)."""
    return pairs.diagonal()


def mismatched(pairs: Tensor) -> Tensor:
    """Of each picture with a text that is not its own, (N,): the mean of the other N - 1 of its row."""
    return (pairs.sum(1) - pairs.diagonal()) / (len(pairs) - 1)
