"""Classification objective: which of the model's labels is said of the target, read in the light of the context?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.models.config import CCLMConfig
from cclm.objectives.base import Draft, EncodedPair, Objective
from cclm.types import ImagesInput, Labels, PairBatch, View


class Classification(Objective):
    """Cross-entropy of each label of a pair by its weight, summed, over the pairs (XVNLI, NLVR2, closed xGQA).

    Errors: ValueError on a stream without statements, or for a label that is not among config.labels.
    """

    def forward(self, pair: EncodedPair, draft: Draft | None = None, view: View | None = None) -> Tensor:
        labels = labels_of(pair.batch)
        context = pair.batch.context
        pair.model.check_images(context.pixel_values.shape[1] if isinstance(context, ImagesInput) else 1)
        logits = pair.model.class_logits(pair.target, pair.model.readings(pair.context))[labels.owner]  # (R, C)
        classes = torch.tensor(class_rows(labels.names, pair.model.config), device=logits.device)
        losses = F.cross_entropy(logits.float(), classes, reduction="none")
        return torch.dot(losses, labels.weight) / len(pair.batch)


def labels_of(batch: PairBatch) -> Labels:
    """Errors: ValueError on a stream without statements."""
    if batch.labels is None:
        raise ValueError(
            f"stream {batch.stream}: its pairs carry no labels; draw them with cclm.data.pairs.Statements from records "
            "that hold statements"
        )
    return batch.labels


def class_rows(names: tuple[str, ...], config: CCLMConfig) -> list[int]:
    """Where each of `names` stands among the model's labels. Errors: ValueError for one that does not."""
    rows = {label: row for row, label in enumerate(config.labels or ())}
    if unknown := [name for name in names if name not in rows]:
        raise ValueError(
            f"label {unknown[0]!r} is not among the model's {len(rows)} labels; list it in model.network.labels"
        )
    return [rows[name] for name in names]
