"""Box objective: where in the whole image is what the text tells of?"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss

from cclm.objectives.base import Draft, EncodedPair, Objective
from cclm.types import RegionInput, RegionView, View


class Box(Objective):
    """L1 distance plus one minus the generalised IoU, over texts about a part (reference/cclm.md 2.4).

    Errors: ValueError on a stream whose context is not regions.
    """

    def forward(self, pair: EncodedPair, draft: Draft | None = None, view: View | None = None) -> Tensor:
        given = pair.batch.context
        if not isinstance(given, RegionInput) or not isinstance(pair.context, RegionView):
            raise ValueError(
                f"stream {pair.batch.stream}: box learns from regions, this stream has none; draw its pairs with "
                "cclm.data.pairs.Regions, or leave box out"
            )
        predicted = pair.model.boxes(pair.model.fuse(pair.target, pair.context.whole))  # (B, 4)
        return sum(box_losses(predicted.float(), given.boxes, ~given.whole))


def box_losses(predicted: Tensor, wanted: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and 1 - GIoU of boxes (B, 4) of centre and size, mean over the rows `counted` (B,) bool; 0 where none is."""
    share = counted.to(predicted.dtype) / counted.sum().clamp(min=1)
    distance = (predicted - wanted).abs().sum(1)
    corners = [box_convert(boxes, "cxcywh", "xyxy") for boxes in (predicted, wanted)]
    apart = generalized_box_iou_loss(*corners, reduction="none")
    return torch.dot(distance, share), torch.dot(apart, share)
