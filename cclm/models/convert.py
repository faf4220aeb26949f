"""Released checkpoints <-> our pretrained folders, with an account of every tensor. The `cclm convert` verb.

CCLM-3M/4M and CCLM-X2VLM, pretrained or fine-tuned, become the same function to rounding; X2-VLM, Swin, BEiT-v2 and
XLM-R start a model whose other parts are new (reference/cclm.md 6).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cclm.models import families
from cclm.models.adapt import adapted, adapted_config
from cclm.models.config import CCLMConfig
from cclm.models.families import SWIN, X2VLM, X2VLM_ENGLISH, Naming, geometry, recognise
from cclm.models.fill import KeyReport
from cclm.models.model import CCLMModel
from cclm.models.plain import is_image, is_text
from cclm.models.start import start_model
from cclm.models.weights import WeightFile, read_file
from cclm.storage import whole_file

ORIGINAL = "original.json"  # what the released file held beside weights, for the way back
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertOptions:
    """`image_size`: pixels, None as trained. `num_heads`: of the text layers, None to infer.

    `text`: XLM-R's folder or file, where the source has no multilingual text layers. `trust_pickle`: run code in it.
    """

    image_size: int | None = None
    num_heads: int | None = None
    text: str | None = None
    trust_pickle: bool = False


@dataclass(frozen=True)
class Converted:
    """A model on its way into a folder."""

    family: str
    config: CCLMConfig
    state: dict[str, Tensor]
    report: KeyReport
    guessed: dict[str, str] = field(default_factory=dict)
    original: dict[str, Any] = field(default_factory=dict)

    def model(self) -> CCLMModel:
        with torch.device("meta"):
            model = CCLMModel(self.config)
        model.load_state_dict(self.state, assign=True)
        model.tie_weights()
        return model

    def save(self, folder: Path) -> None:
        self.model().save_pretrained(folder)
        if self.original:
            (folder / ORIGINAL).write_text(json.dumps(self.original, ensure_ascii=False, indent=1) + "\n")


def convert(source: str, options: ConvertOptions) -> Converted:
    """Read `source` and map every tensor of it.

    Errors: ValueError where it cannot be read safely, is of no known family, lacks a tensor or holds one that nothing
    explains.
    """
    file = read_file(source, options.trust_pickle)
    if is_image(file.tensors) or is_text(file.tensors):
        return _started(file, options)
    family = recognise(file.tensors)
    if family == X2VLM_ENGLISH:
        return _started(file, options)
    if options.text:
        raise ValueError(f"{source} has its own text layers; leave --text out")
    found = _released(file, family, options.num_heads)
    if options.image_size is None or options.image_size == found.config.image_size:
        return found
    config = adapted_config(found.config, {"image_size": options.image_size})
    state, _ = adapted(found.state, found.config, config)
    return replace(found, config=config, state=state)


def _started(file: WeightFile, options: ConvertOptions) -> Converted:
    text = read_file(options.text, options.trust_pickle).tensors if options.text else None
    family, model, report = start_model(file, text, options.num_heads)
    state = model.state_dict()
    if options.image_size is None or options.image_size == model.config.image_size:
        return Converted(family, model.config, state, report)
    config = adapted_config(model.config, {"image_size": options.image_size})
    return Converted(family, config, adapted(state, model.config, config)[0], report)


def _released(file: WeightFile, family: str, num_heads: int | None) -> Converted:
    weights = file.tensors
    try:
        shape = geometry(family, weights, file.config, num_heads)
    except KeyError as error:
        raise ValueError(f"{file.path}: a {family} checkpoint without {error}; fetch it again") from None
    naming, report = shape.naming, KeyReport()
    with torch.device("meta"):
        wanted = CCLMModel(naming.config).state_dict()
    state, used = {}, set()
    for name, like in wanted.items():
        theirs = [other for other in naming.theirs(name) if other in weights]
        if not theirs:
            report.new.append(naming.theirs(name)[0])
            continue
        state[name] = _one(file.path, {other: weights[other] for other in theirs}, like)
        report.filled.append(name)
        used.update(theirs)
    if report.new:
        raise ValueError(
            f"{file.path}: {len(report.new)} tensors of a {family} checkpoint are missing, first {report.new[0]}; "
            "fetch it again"
        )
    if "logit_scale" in state:
        state["logit_scale"] = -state["logit_scale"].log()
    if naming.config.tie_word_embeddings and "mlm_head.decoder.weight" in state:
        _check_tied(file.path, state)
    report.left_over = {name: _why_left(naming, name, file.path) for name in weights if name not in used}
    original = {"family": family, "bare": naming.bare, "config": _plain(file.config), "names": list(weights)}
    return Converted(family, naming.config, state, report, shape.guessed, original)


def _one(path: Path, named: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """The tensor that all of `named` are. Errors: ValueError where they differ, or are of another shape."""
    (first, value), *others = named.items()
    for other, copy in others:
        if not torch.equal(value, copy):
            raise ValueError(f"{path}: {other} should equal {first}, which it is tied to; fetch the file again")
    if value.shape != like.shape:
        raise ValueError(f"{path}: {first} is {tuple(value.shape)} and not {tuple(like.shape)}; fetch it again")
    return value


def _check_tied(path: Path, state: dict[str, Tensor]) -> None:
    if not torch.equal(state["mlm_head.decoder.weight"], state["embeddings.word.weight"]):
        raise ValueError(f"{path}: its decoder is not tied to the word embeddings, as CCLM's is; fetch it again")
    state["mlm_head.decoder.weight"] = state["embeddings.word.weight"]


def _why_left(naming: Naming, name: str, path: Path) -> str:
    """Errors: ValueError for a tensor that nothing explains."""
    if families.is_buffer(name):
        return "computed, not learned"
    if name in ("vision_proj.weight", "vision_proj.bias"):
        return "it only drew wrong images while the model was trained to assign texts"
    raise ValueError(f"{path}: nothing explains {name} in a {naming.family} checkpoint; is it of a changed model?")


def _plain(value: Any) -> Any:
    """What JSON can hold of a checkpoint's configuration; the rest in words."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


# -- and back ------------------------------------------------------------------------------------------------------


def to_original(folder: Path, target: Path | None) -> int:
    """Write the released layout of a pretrained folder of ours, bit-equal to what was read; the number of tensors.

    `target` None: only see whether it can be done.
    Errors: ValueError for a model that no family holds.
    """
    model = CCLMModel.from_pretrained(folder)
    stored = folder / ORIGINAL
    known = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    naming = _naming(model.config, known)
    weights = _theirs(model, naming)
    names = known.get("names") or sorted(weights)
    if missing := [name for name in names if name not in weights]:
        raise ValueError(f"{folder}: no tensor of ours is {missing[0]} of the original; convert the checkpoint again")
    ordered = {name: weights[name] for name in [*names, *(name for name in weights if name not in set(names))]}
    kept = ordered if not known else {name: ordered[name] for name in names}
    content = {"model": kept} | ({"config": known["config"]} if known.get("config") else {})
    if target is not None:
        with whole_file(target) as partial:
            torch.save(content, partial)
    return len(kept)


def _naming(config: CCLMConfig, known: Mapping[str, Any]) -> Naming:
    family = SWIN if "swin" in config.backbone else X2VLM
    fits = config.position_offset == (0 if family == SWIN else 2) and not config.pre_norm and config.pooling == "first"
    if not fits or "swin" not in config.backbone and "beit" not in config.backbone:
        raise ValueError(
            f"a model with backbone {config.backbone}, position_offset {config.position_offset} and pooling "
            f"{config.pooling} is of no released family; only converted models, and those trained from them, go back"
        )
    return Naming(family, config, known.get("bare", family == X2VLM or "mlm" not in config.heads))


def _theirs(model: CCLMModel, naming: Naming) -> dict[str, Tensor]:
    config = naming.config
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name == "logit_scale":
            value = _temperature(value, config.temperature)
        weights |= dict.fromkeys(naming.theirs(name), value)
    positions = torch.arange(config.max_positions)[None]  # (1, P)
    weights[f"{naming.text}.embeddings.position_ids"] = positions
    if model.answer_decoder is not None:
        weights["text_decoder.bert.embeddings.position_ids"] = positions
    weights |= {
        f"vision_encoder.{name}": value
        for name, value in model.image_encoder.backbone.named_buffers()
        if families.is_buffer(name)
    }
    return weights


def _temperature(logit_scale: Tensor, first: float) -> Tensor:
    """The original's `temp`, exact where it has not been trained since: a logarithm and back is not."""
    exact = torch.tensor(first, dtype=logit_scale.dtype)
    return exact if torch.equal(-exact.log(), logit_scale) else torch.tensor(math.exp(-float(logit_scale)))
