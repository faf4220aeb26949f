"""Filling the halves of a new model: XLM-R for the text layers, timm-like weights for the backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from cclm.models.model import CCLMModel

# XLM-R's names inside one layer -> ours.
_LAYER_NAMES = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "expand",
    "output.dense": "contract",
    "output.LayerNorm": "feed_forward_norm",
}
_EMBEDDING_NAMES = {
    "embeddings.word_embeddings.weight": "embeddings.word.weight",
    "embeddings.position_embeddings.weight": "embeddings.position.weight",
    "embeddings.token_type_embeddings.weight": "embeddings.token_type.weight",
    "embeddings.LayerNorm.weight": "embeddings.norm.weight",
    "embeddings.LayerNorm.bias": "embeddings.norm.bias",
}
_LM_HEAD_NAMES = {
    "lm_head.dense.weight": "mlm_head.dense.weight",
    "lm_head.dense.bias": "mlm_head.dense.bias",
    "lm_head.layer_norm.weight": "mlm_head.norm.weight",
    "lm_head.layer_norm.bias": "mlm_head.norm.bias",
    "lm_head.bias": "mlm_head.decoder.bias",
}


@dataclass
class KeyReport:
    """What became of tensors: ours that were filled, ours that none filled, and the source's that have no place."""

    filled: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_over: dict[str, str] = field(default_factory=dict)  # name -> why

    def __str__(self) -> str:
        return f"{len(self.filled)} filled, {len(self.new)} newly initialised, {len(self.left_over)} left over"


def load_backbone(
    backbone: nn.Module, weights: Mapping[str, Tensor], without: str = r"^(classifier|head|_?fc)\."
) -> KeyReport:
    """Fill a timm backbone from weights with timm's names, or the same tensors in the same order under other names.

    The second form covers ports such as `efficientnet_lite_pytorch`; shape and leaf name of every tensor must agree.
    Errors: ValueError naming the first tensor that does not.
    """
    left_over = [name for name in weights if re.search(without, name)]
    source = {name: value for name, value in weights.items() if name not in left_over}
    ours = backbone.state_dict()
    if set(source) != set(ours):
        if len(source) != len(ours):
            raise ValueError(
                f"the weights hold {len(source)} tensors, the image backbone {len(ours)}; choose its own file"
            )
        source = dict(zip(ours, source.items(), strict=True))
        for name, (other, value) in source.items():
            if value.shape != ours[name].shape or name.rsplit(".", 1)[-1] != other.rsplit(".", 1)[-1]:
                raise ValueError(
                    f"weight {other} {tuple(value.shape)} does not fit {name} {tuple(ours[name].shape)} of the backbone"
                )
        source = {name: value for name, (_, value) in source.items()}
    backbone.load_state_dict(source)
    return KeyReport(sorted(source), [], dict.fromkeys(left_over, "the classifier of its former task"))


def load_xlm_roberta(model: CCLMModel, weights: Mapping[str, Tensor]) -> KeyReport:
    """Fill embeddings and text layers (and the fusion layers' self-attention, where XLM-R has layers left) verbatim.

    `weights` is the state_dict of XLMRobertaModel or XLMRobertaForMaskedLM. XLM-R's first `text_layers` layers become
    the text encoder; further ones start the fusion, which is how CCLM cuts both from one stack (reference/cclm.md 1.4).
    Errors: ValueError where a shape differs.
    """
    config, report = model.config, KeyReport()
    ours = model.state_dict()
    for name, value in weights.items():
        bare = name.removeprefix("roberta.").removeprefix("bert.")
        target = _EMBEDDING_NAMES.get(bare) or _LM_HEAD_NAMES.get(bare) or _layer_target(bare, config.text_layers)
        if target not in ours:
            report.left_over[name] = _why_left(bare)
            continue
        if ours[target].shape != value.shape:
            raise ValueError(
                f"{name} {tuple(value.shape)} does not fit {target} {tuple(ours[target].shape)}; "
                "set vocab_size, hidden_size, intermediate_size and max_positions as in its config.json"
            )
        ours[target].copy_(value)
        report.filled.append(target)
    return report


def every_layer(weights: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
    """The last of every `step` layers, numbered anew: of 24 layers and step 2, layers 1, 3 .. 23 become 0 .. 11."""
    kept = {}
    for name, value in weights.items():
        if layer := re.search(r"(?<=encoder\.layer\.)\d+", name):
            group, place = divmod(int(layer[0]), step)
            if place != step - 1:
                continue
            name = f"{name[: layer.start()]}{group}{name[layer.end() :]}"
        kept[name] = value
    return kept


def _why_left(name: str) -> str:
    """Errors: ValueError for a tensor that XLM-R has not."""
    reasons = {
        r"embeddings\.position_ids": "computed, not learned",
        r"pooler\..*": "we pool without it",
        r"lm_head\.decoder\..*": "tied to the word embeddings, or to lm_head.bias",
        r"lm_head\..*": "the model has no masked-language head",
        r"encoder\.layer\.\d+\..*": "more layers than the model has",
    }
    for pattern, reason in reasons.items():
        if re.fullmatch(pattern, name):
            return reason
    raise ValueError(f"the text weights hold {name}, which XLM-R has not; give XLM-R's own file")


def _layer_target(name: str, text_layers: int) -> str | None:
    match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
    if not match or match[2] not in _LAYER_NAMES:
        return None
    layer = int(match[1])
    stack, index = ("text_encoder", layer) if layer < text_layers else ("fusion", layer - text_layers)
    return f"{stack}.blocks.{index}.{_LAYER_NAMES[match[2]]}.{match[3]}"
