"""Dual encoders of transformers: CLIP and its kin.

Shapes: N images, T texts, E embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.errors import first_line
from cclm.evaluation.embedder import Images, System
from cclm.models.encoding import EncodingOptions, batches, inference
from cclm.models.names import quiet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """How a family was trained to read. `tokens`: of a text, where its position table would allow more. `padded`: every
    text to the full length, and pads are read. `lower`: in lower case (SigLIP 2 is far worse otherwise; its tokenizer
    does it itself in newer releases only).
    """

    tokens: int | None = None
    padded: bool = False
    lower: bool = False


FAMILIES = {
    "clip": Family(),
    "metaclip_2": Family(),
    "altclip": Family(tokens=77),
    "chinese_clip": Family(tokens=52),
    "siglip": Family(tokens=64, padded=True, lower=True),  # also what most checkpoints of SigLIP 2 call themselves
    "siglip2": Family(tokens=64, padded=True, lower=True),
}


class DualEncoder:
    """`Embedder` of a model with `get_image_features` and `get_text_features`."""

    def __init__(self, model: torch.nn.Module, processor: object, encoding: EncodingOptions) -> None:
        self.model, self.processor, self.encoding = model, processor, encoding
        self.family = FAMILIES[model.config.model_type]
        positions = model.config.text_config.max_position_embeddings
        self.tokens = min(self.family.tokens or positions, positions, encoding.max_tokens or positions)

    def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
        order = sorted(range(len(texts)), key=lambda row: (len(texts[row]), texts[row]))  # so that little is padding
        parts = []
        for rows in batches(order, self.encoding.text_batch):
            chosen = [texts[row].lower() if self.family.lower else texts[row] for row in rows]
            tokens = self.processor.tokenizer(
                chosen,
                padding="max_length" if self.family.padded else True,
                truncation=True,
                max_length=self.tokens,
                padding_side="right",
                return_tensors="pt",
            )
            if self.family.padded:
                tokens.pop("attention_mask", None)  # it was trained to read the pads
            parts.append(self._unit(self.model.get_text_features, dict(tokens)))
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def embed_images(self, images: Images) -> Tensor:
        return self._unit(
            self.model.get_image_features, dict(self.processor.image_processor(list(images), return_tensors="pt"))
        )

    def _unit(self, features: object, inputs: dict[str, Tensor]) -> Tensor:
        with inference(self.model, self.encoding) as device:
            found = features(**{name: value.to(device) for name, value in inputs.items()})
            found = getattr(found, "pooler_output", found)  # releases before 5 give the tensor itself
            return F.normalize(found.float(), dim=-1).cpu()


def open_dual_encoder(name: str, sha256: str, device: torch.device, encoding: EncodingOptions) -> System:
    """Errors: ValueError, one line, where weights or processor are missing or damaged."""
    from transformers import AutoModel, AutoProcessor

    try:
        with quiet():
            model, report = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
            processor = AutoProcessor.from_pretrained(name)
    except Exception as error:  # damaged files raise whatever the reading of them does
        raise ValueError(f"{name} cannot be loaded ({first_line(error)}); check the path or name") from None
    if missing := sorted(map(str, report["missing_keys"])):
        raise ValueError(f"{name}: {len(missing)} missing tensors, first {missing[0]}; fetch the model again")
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise ValueError(f"{name} has no processor of images and texts; save one beside the weights")
    adapter = DualEncoder(model.eval().to(device), processor, encoding)
    return System.of(adapter, name, f"{model.config.model_type} dual encoder", sha256)
