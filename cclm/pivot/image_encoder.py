"""Which image encoder a language model sees through: a timm backbone, or that of a cross-view model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cclm.models.fill import load_backbone
from cclm.models.model import CCLMModel
from cclm.models.vision import ImageEncoder
from cclm.models.weights import read_weights
from cclm.pivot.bridges import GridStates
from cclm.pivot.folders import reference, resolved


@dataclass(frozen=True)
class ImageEncoderSettings:
    """`pretrained`: the folder of a cross-view model, whose image encoder it is. Without, `backbone` names one of timm,
    with `options` of its geometry, and `weights` a file of timm's names or order; `package:NAME` is the file that a
    package carries, None random weights.
    """

    backbone: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    pretrained: str | None = None

    def __post_init__(self) -> None:
        if (self.pretrained is None) == (self.backbone is None):
            given = "both" if self.pretrained else "neither"
            raise ValueError(f"image_encoder: {given} of pretrained and backbone given; name a folder or a timm model")
        if self.pretrained and (self.weights or self.options):
            raise ValueError("image_encoder.pretrained brings weights and geometry; leave weights and options out")

    @property
    def known(self) -> bool:
        """Whether its weights can be read again from where they came."""
        return bool(self.pretrained or self.weights)

    def build(self, image_size: int) -> ImageEncoder:
        """For square images of so many pixels a side.

        Errors: ValueError where there is no such backbone, its weights do not fit, or the folder is of another size.
        """
        if self.pretrained:
            model = CCLMModel.from_pretrained(self.pretrained, dtype=torch.float32)
            if model.config.image_size != image_size:
                raise ValueError(
                    f"image_encoder.pretrained {self.pretrained} is for images of {model.config.image_size} pixels, "
                    f"the processor makes {image_size}; set processor.image.image_size to {model.config.image_size}"
                )
            return model.image_encoder
        encoder = ImageEncoder(str(self.backbone), image_size, self.options)
        if self.weights:
            load_backbone(encoder.backbone, read_weights(self.weights))
        return encoder

    def referred(self, folder: Path | str) -> ImageEncoderSettings:
        """The same as a file in `folder` has them."""
        return self._moved(lambda name: reference(name, folder))

    def resolved(self, folder: Path | str) -> ImageEncoderSettings:
        """What a file in `folder` has, from here. Errors: ValueError where it is not there."""
        return self._moved(lambda name: resolved(name, folder, "image encoder"))

    def _moved(self, way: Any) -> ImageEncoderSettings:
        return replace(
            self, weights=self.weights and way(self.weights), pretrained=self.pretrained and way(self.pretrained)
        )


@torch.no_grad()
def states_of(encoder: ImageEncoder, image_size: int) -> GridStates:
    """The states that it gives of an image. Errors: ValueError where its patches are no square."""
    training = encoder.training
    states = encoder.eval()(torch.zeros(1, 3, image_size, image_size))
    encoder.train(training)
    return GridStates.of(encoder.width, states.shape[1])


def fingerprint(encoder: ImageEncoder) -> str:
    """Of its weights: whether a bridge was made for them."""
    digest = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
