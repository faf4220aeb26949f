"""Filling the halves of a new model: XLM-R for the text layers, timm-like weights for the backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from cclm.models.backbones import check_table, layer_count
from cclm.models.families import bare_text, xlm_roberta_names, xlm_roberta_sources
from cclm.models.model import CCLMModel
from cclm.models.weights import Weights

_CLASSIFIER = re.compile(r"(classifier|head|_?fc)(\.fc)?\.(weight|bias)")
_NEARLY_NONE = 0.1  # of the names; weights under other names are placed by their order
_Value = TypeVar("_Value")


@dataclass
class KeyReport:
    """What became of tensors: ours that were filled, ours that none filled, and the source's that have no place."""

    filled: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_over: dict[str, str] = field(default_factory=dict)  # name -> why
    taken: list[tuple[str, str]] = field(default_factory=list)  # the source's, and ours that it filled or is a twin of

    def __str__(self) -> str:
        return f"{len(self.filled)} filled, {len(self.new)} newly initialised, {len(self.left_over)} left over"


def load_backbone(backbone: nn.Module, weights: Weights) -> KeyReport:
    """Fill a timm backbone from weights with timm's names, or the same tensors in the same order under other names.

    The second form covers ports such as `efficientnet_lite_pytorch`, and is for weights hardly any name of which is
    timm's; shape and leaf name of every tensor must agree. Errors: ValueError naming the first tensor that does not.
    """
    left_over = [name for name in weights if _CLASSIFIER.fullmatch(name)]
    names = [name for name in weights if not _CLASSIFIER.fullmatch(name)]
    ours = backbone.state_dict()
    alike = len(set(names) & set(ours))
    if alike > _NEARLY_NONE * len(ours):
        if strange := [name for name in names if name not in ours]:
            raise ValueError(f"the image backbone has no place for {strange[0]}; is it of a changed model?")
        if missing := [name for name in ours if name not in weights]:
            raise ValueError(f"the weights lack {missing[0]} of the image backbone; fetch the file again")
        sources = {name: name for name in names}
    elif len(names) == len(ours):
        sources = dict(zip(ours, names, strict=True))
    else:
        raise ValueError(f"the weights hold {len(names)} tensors, the image backbone {len(ours)}; choose its own file")
    for name, other in sources.items():
        if weights[other].shape != ours[name].shape or name.rsplit(".", 1)[-1] != other.rsplit(".", 1)[-1]:
            raise ValueError(
                f"weight {other} {tuple(weights[other].shape)} does not fit {name} {tuple(ours[name].shape)} of the "
                "backbone; choose its own file"
            )
    backbone.load_state_dict({name: weights[other] for name, other in sources.items()})
    taken = [(other, name) for name, other in sources.items()]
    return KeyReport(sorted(sources), [], dict.fromkeys(left_over, "the classifier of its former task"), taken)


def load_xlm_roberta(model: CCLMModel, weights: Weights) -> KeyReport:
    """Fill embeddings and text layers (and the fusion layers' self-attention, where XLM-R has layers left) verbatim.

    `weights` is the state_dict of XLMRobertaModel or XLMRobertaForMaskedLM. XLM-R's first `text_layers` layers become
    the text encoder; further ones start the fusion, which is how CCLM cuts both from one stack (reference/cclm.md 1.4).
    Errors: ValueError where a tensor is missing, is none of XLM-R's, is of another shape or differs from its twin.
    """
    check_xlm_roberta(weights)
    theirs, report = {bare_text(name): name for name in weights}, KeyReport()
    for target, ours in model.state_dict().items():
        found = [theirs[name] for name in xlm_roberta_sources(target, model.config) if name in theirs]
        for name in found:
            value = weights[name]
            if ours.shape != value.shape:
                raise ValueError(
                    f"{name} {tuple(value.shape)} does not fit {target} {tuple(ours.shape)}; "
                    "set vocab_size, hidden_size, intermediate_size and max_positions as in its config.json"
                )
            if not torch.equal(value, weights[found[0]]):
                raise ValueError(f"{name} should equal {found[0]}, which it is tied to; fetch the file again")
            report.taken.append((name, target))
        if found:
            ours.copy_(weights[found[0]])
            report.filled.append(target)
    used = {name for name, _ in report.taken}
    report.left_over = {name: _why_left(bare, weights[name]) for bare, name in theirs.items() if name not in used}
    return report


def check_xlm_roberta(weights: Weights) -> int:
    """How many layers an XLM-R has. Errors: ValueError where it lacks a tensor, or has one that none has."""
    theirs = {bare_text(name): name for name in weights}
    layers = layer_count(theirs, "encoder.layer")
    head = any(name.startswith("lm_head.") for name in theirs)
    wanted = xlm_roberta_names(layers, head)
    either = {"lm_head.bias": "lm_head.decoder.bias"}
    extra = r"embeddings\.position_ids|pooler\.dense\.(weight|bias)|lm_head\.decoder\.(weight|bias)"
    known = set(wanted)
    for bare, name in theirs.items():
        if bare not in known and not re.fullmatch(extra, bare):
            raise ValueError(f"the text weights hold {name}, which XLM-R has not; give XLM-R's own file")
    if missing := [name for name in wanted if name not in theirs and either.get(name) not in theirs]:
        raise ValueError(f"the text weights lack {missing[0]}; fetch the file again")
    return layers


def every_layer(weights: Mapping[str, _Value], step: int) -> dict[str, _Value]:
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


def _why_left(bare: str, value: Tensor) -> str:
    """Of a tensor that XLM-R has. Errors: ValueError for positions that are not counted from 0."""
    if bare == "embeddings.position_ids":
        return check_table(bare, value, {bare: torch.arange(value.shape[-1])[None]})
    if bare.startswith("pooler."):
        return "we pool without it"
    if bare == "lm_head.decoder.weight":
        return "the model spells words with a table of its own, or has no masked-language head"
    return "the model has no masked-language head" if bare.startswith("lm_head.") else "more layers than the model has"
