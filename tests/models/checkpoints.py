"""Checkpoints in the released layouts: the recorded ones, and ones of any other geometry with drawn weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.models.convert import to_original
from cclm.models.model import CCLMConfig, CCLMModel

ORACLE = Path(__file__).resolve().parents[3] / "shared" / "oracle"
ALL = ("cclm_swin/pretrain", "cclm_swin/finetuned_xvnli", "cclm_swin/finetuned_nlvr", "cclm_swin/finetuned_vqa")
ALL = (*ALL, "cclm_x2vlm/pretrain")
NEEDED = "needs the recorded reference checkpoints, which are not beside this checkout"


def oracle(name: str) -> Path:
    file = ORACLE / f"{name}.th"
    if not file.is_file():
        pytest.skip(NEEDED)
    return file


@dataclass(frozen=True)
class Shape:
    """A geometry of one of the two families; heads of the text layers as the image encoder's let one expect."""

    name: str
    swin: bool
    width: int
    image_heads: tuple[int, ...]
    depths: tuple[int, ...]
    image_size: int
    text: dict[str, Any]
    options: dict[str, Any]

    def config(self, **changes: Any) -> CCLMConfig:
        swin = {"embed_dim": self.width // 2 ** (len(self.depths) - 1), "depths": list(self.depths)}
        beit = {"embed_dim": self.width, "depth": self.depths[0]}
        heads: Any = list(self.image_heads) if self.swin else self.image_heads[0]
        backbone = {"num_heads": heads, "drop_path_rate": 0.1, **(swin if self.swin else beit), **self.options}
        settings = {
            "hidden_size": self.width,
            "intermediate_size": 2 * self.width,
            "backbone": "swin_base_patch4_window7_224" if self.swin else "beitv2_base_patch16_224",
            "backbone_options": backbone,
            "image_size": self.image_size,
            "position_offset": 0 if self.swin else 2,
            "tie_word_embeddings": self.swin,
            "fusion_norm_eps": 1e-5 if self.swin else 1e-12,
            "heads": ["match", "mlm", "box"],
        }
        return CCLMConfig(**(settings | self.text | changes))


def drawn(config: CCLMConfig, seed: int = 0) -> CCLMModel:
    """A model whose every tensor is drawn: none is all zeros or ones, so that exchanged ones are seen."""
    torch.manual_seed(seed)
    model = CCLMModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.08)
    return model


def released(model: CCLMModel, file: Path) -> dict[str, Tensor]:
    """Write `model` as a released checkpoint and give its state dict."""
    model.save_pretrained(file.with_suffix(".folder"))
    to_original(file.with_suffix(".folder"), file)
    return torch.load(file, weights_only=True)["model"]


def outputs(model: CCLMModel, seed: int = 1) -> dict[str, Tensor]:
    """What a model makes of drawn pictures and texts, part by part; with the heads that it has."""
    config, draw = model.config, torch.Generator().manual_seed(seed)
    pictures = torch.randn(2, config.images_per_text, 3, config.image_size, config.image_size, generator=draw)
    ids = torch.randint(5, config.vocab_size - 1, (2, 9), generator=draw)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:], ids[1, 6:] = False, config.pad_token_id
    kind = model.image_encoder.backbone.patch_embed.proj.weight.dtype
    with torch.inference_mode():
        text = model.encode_text(ids, mask)
        images = model.encode_images(pictures.to(kind))
        found = {"text": text.states, "text embedding": text.embedding, "images": images.states}
        found["image embedding"] = images.embedding
        if config.images_per_text == 1:
            found["fused"] = fused = model.fuse(text, images)
            found |= {"match": model.match_logits(fused)} if model.match_head else {}
            found |= {"boxes": model.boxes(fused)} if model.box_head else {}
            found |= {"words": model.mlm_logits(fused, torch.tensor([[1, 3], [2, 4]]))} if model.mlm_head else {}
        if model.class_head:
            found["classes"] = model.class_logits(text, model.readings(images))
    return found
