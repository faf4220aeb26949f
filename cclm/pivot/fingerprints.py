"""Which weights are these: fingerprints of parts that lie elsewhere than what was made for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import ModelMixin


def fingerprint(
    geometry: str, parameters: Iterable[Tensor], whole: Iterable[Tensor] = (), quantised: bool = False
) -> str:
    """Two digests, "vectors.layers": of the geometry, what is given `whole` and all vectors (biases, norms); and of
    the first row of every other weight, where a training that leaves the vectors alone shows. The latter is empty
    where the layers are `quantised`. Values count as bfloat16: loaded so, a model has the fingerprint that it has in
    float32.
    """
    parameters = list(parameters)
    vectors = [value for value in parameters if value.dim() < 2]
    rows = [] if quantised else [value[0] for value in parameters if value.dim() > 1]
    return f"{_digest(geometry, [*whole, *vectors])}.{_digest('', rows) if rows else ''}"


def fingerprint_of(network: ModelMixin) -> str:
    """The same of a network of diffusers."""
    own = {name: value for name, value in network.config.items() if not name.startswith("_")}
    return fingerprint(json.dumps(own, sort_keys=True, default=str), network.parameters())


def agree(made: str, known: str) -> bool:
    """Whether two fingerprints may be of the same weights: layers count where both tell of them."""
    (vectors, _, layers), (others, _, other_layers) = made.partition("."), known.partition(".")
    return vectors == others and (layers == other_layers or not (layers and other_layers))


def _digest(geometry: str, values: Iterable[Tensor]) -> str:
    digest = hashlib.sha256(geometry.encode())
    for value in values:
        rounded = value.detach().to(torch.bfloat16).cpu().contiguous().view(torch.int16)
        digest.update(rounded.numpy().tobytes())
    return digest.hexdigest()
