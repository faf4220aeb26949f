"""Any timm backbone as an image encoder: pixels -> states with a pooled first state.

Shapes: B images, L patches or grid cells, W the backbone's width.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ImageEncoder(nn.Module):
    """A timm backbone without its classifier; convolutional, hierarchical or plain ViT.

    Class and register tokens are used inside the backbone and dropped; the first state is the mean of the others, as in
    both CCLM families (reference/cclm.md 1.1, 1.6).
    """

    def __init__(self, backbone: str, image_size: int, options: dict[str, Any] | None = None) -> None:
        """Errors: ValueError where timm does not know `backbone` (names the nearest)."""
        super().__init__()
        if not timm.is_model(backbone):
            near = ", ".join(timm.list_models(f"*{backbone.split('_')[0]}*")[:5]) or "see timm.list_models()"
            raise ValueError(f"vision backbone {backbone!r} is not a timm model; near it: {near}")
        options = dict(options or {})
        if _takes_image_size(backbone):
            options.setdefault("img_size", image_size)
        self.backbone = timm.create_model(backbone, pretrained=False, num_classes=0, **options)
        for module in self.backbone.modules():
            module.initialised_by_timm = True  # read by CCLMModel._init_weights
        self.width: int = self.backbone.num_features
        self.channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        self.prefix_tokens: int = getattr(self.backbone, "num_prefix_tokens", 0)
        self.checkpointing = False

    def forward(self, pixel_values: Tensor) -> Tensor:
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)  # convolutions: 1.7 x faster on a CPU
        if self.checkpointing and self.training:
            features = checkpoint(self.backbone.forward_features, pixel_values, use_reentrant=False)
        else:
            features = self.backbone.forward_features(pixel_values)
        if features.dim() == 4:  # a map: (B, W, h, w), or (B, h, w, W)
            states = features.flatten(1, 2) if self.channels_last else features.flatten(2).transpose(1, 2)
        else:
            states = features[:, self.prefix_tokens :]
        # Pooled ViTs normalise after pooling (fc_norm); their patches come out of the last block unnormalised.
        states = getattr(self.backbone, "fc_norm", nn.Identity())(states)
        return torch.cat([states.mean(1, keepdim=True), states], dim=1)  # (B, 1 + L, W)


def _takes_image_size(backbone: str) -> bool:
    """Transformers with a position table are built for one resolution; convolutions take any."""
    return timm.models.model_entrypoint(backbone).__module__.rsplit(".", 1)[-1] in {
        "vision_transformer",
        "swin_transformer",
        "swin_transformer_v2",
        "beit",
        "eva",
        "deit",
    }
