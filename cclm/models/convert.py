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

import safetensors.torch
import torch
from torch import Tensor

from cclm.errors import first_line
from cclm.models import families
from cclm.models.adapt import adapted, adapted_config
from cclm.models.backbones import check_table, is_buffer
from cclm.models.config import CCLMConfig
from cclm.models.families import SWIN, X2VLM, X2VLM_ENGLISH, Naming, check_dimensions, geometry, is_half, recognise
from cclm.models.fill import KeyReport
from cclm.models.model import CCLMModel
from cclm.models.names import model_type
from cclm.models.plain import is_image, is_text
from cclm.models.start import start_model
from cclm.models.weights import WeightFile, read_file, read_weights
from cclm.storage import whole_file

ORIGINAL = "original.json"  # what the released file held beside weights, for the way back
KEPT = "original.safetensors"  # its tensors that a model of ours has no place for
_NEGATIVES = ("vision_proj.weight", "vision_proj.bias")  # drew wrong images while a model was trained to assign texts
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
    resized: int = 0  # relative-position tables
    original: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)  # for the way back only

    def save(self, folder: Path) -> None:
        with torch.device("meta"):  # tables that are computed stay there: no folder holds them
            model = CCLMModel(self.config)
        model.load_state_dict(self.state, assign=True)
        model.tie_weights()
        model.save_pretrained(folder)
        if self.original:
            (folder / ORIGINAL).write_text(json.dumps(self.original, ensure_ascii=False, indent=1) + "\n")
        if self.kept:
            safetensors.torch.save_file({name: value.clone() for name, value in self.kept.items()}, folder / KEPT)


def convert(source: str, options: ConvertOptions) -> Converted:
    """Read `source` and map every tensor of it.

    Errors: ValueError where it cannot be read safely, is of no known family, lacks a tensor or holds one that nothing
    explains.
    """
    config = Path(source) / "config.json"
    if config.is_file() and model_type(config) == CCLMConfig.model_type:
        raise ValueError(f"{source} is a pretrained folder already; for the way back, add --to-original")
    file = read_file(source, options.trust_pickle)
    try:
        return _resized(_converted(file, options), options.image_size)
    except KeyError as error:
        raise ValueError(f"{file.path}: it has no {error.args[0]}; fetch it again") from None
    except ValueError as error:
        told = str(error)
        raise ValueError(
            told if told.startswith((str(file.path), str(options.text))) else f"{file.path}: {told}"
        ) from None


def _converted(file: WeightFile, options: ConvertOptions) -> Converted:
    check_dimensions(file.tensors)
    plain = is_image(file.tensors) or is_text(file.tensors)
    family = "" if plain else recognise(file.tensors)
    if plain or family == X2VLM_ENGLISH:
        text = read_file(options.text, options.trust_pickle) if options.text else None
        if text is not None:
            check_dimensions(text.tensors)
        started = start_model(file, text, options.num_heads)
        return Converted(started.family, started.model.config, started.model.state_dict(), *started[2:])
    if options.text:
        raise ValueError("it has its own text layers; leave --text out")
    return _released(file, family, options.num_heads)


def _resized(found: Converted, image_size: int | None) -> Converted:
    if image_size in (None, found.config.image_size):
        return found
    config = adapted_config(found.config, {"image_size": image_size})
    state, _ = adapted(found.state, found.config, config)
    original = dict(found.original)
    if "image_res" in original.get("config", {}):
        original["config"] = original["config"] | {"image_res": image_size}
    resized = sum(value.shape != found.state[name].shape for name, value in state.items())
    return replace(found, config=config, state=state, resized=resized, original=original)


def _released(file: WeightFile, family: str, num_heads: int | None) -> Converted:
    weights = file.tensors
    try:
        shape = geometry(family, weights, file.config, num_heads)
    except KeyError as error:
        raise ValueError(f"a {family} checkpoint without {error.args[0]}; fetch it again") from None
    naming, report = shape.naming, KeyReport()
    with torch.device("meta"):
        wanted = CCLMModel(naming.config).state_dict()
    state: dict[str, Tensor] = {}
    for name, like in wanted.items():
        theirs = [other for other in naming.theirs(name) if other in weights]
        if not theirs:
            report.new.append(naming.theirs(name)[0])
            continue
        state[name] = _one({other: weights[other] for other in theirs}, like)
        report.filled.append(name)
        report.taken += [(other, name) for other in theirs]
    if report.new:
        raise ValueError(
            f"{len(report.new)} tensor(s) of a {family} checkpoint are missing, first {report.new[0]}; fetch it again"
        )
    if "logit_scale" in state:
        state["logit_scale"] = -state["logit_scale"].log()
    if naming.config.tie_word_embeddings and "mlm_head.decoder.weight" in state:
        _check_tied(state)
    report.left_over = _left_over(naming, weights, {name for name, _ in report.taken})
    kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in weights.items()}
    original = {"family": family, "bare": naming.bare, "key": file.key, "config": _plain(file.config), "tensors": kinds}
    original |= {"prefix": file.prefix} if file.prefix else {}
    kept = {name: weights[name] for name in _NEGATIVES if name in report.left_over}
    return Converted(family, naming.config, state, report, shape.guessed, original=original, kept=kept)


def _one(named: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """The tensor that all of `named` are. Errors: ValueError where they differ, or are of another shape."""
    (first, value), *others = named.items()
    for other, copy in others:
        if not torch.equal(value, copy):
            raise ValueError(f"{other} should equal {first}, which it is tied to; fetch the file again")
    if value.shape != like.shape:
        raise ValueError(f"{first} is {tuple(value.shape)} and not {tuple(like.shape)}; fetch it again")
    return value


def _check_tied(state: dict[str, Tensor]) -> None:
    if not torch.equal(state["mlm_head.decoder.weight"], state["embeddings.word.weight"]):
        raise ValueError("its decoder is not tied to the word embeddings, as CCLM's is; fetch it again")
    state["mlm_head.decoder.weight"] = state["embeddings.word.weight"]


def _left_over(naming: Naming, weights: Mapping[str, Tensor], used: set[str]) -> dict[str, str]:
    """Why each other tensor has no place. Errors: ValueError for one that nothing explains."""
    found, known = {}, families.tables(naming)
    for name, value in weights.items():
        if name in used:
            continue
        if is_buffer(name):
            found[name] = check_table(name, value, known)
        elif name in _NEGATIVES and "assign" in (naming.config.heads or ()):
            found[name] = "it only drew wrong images while the model was trained to assign texts"
        else:
            raise ValueError(f"nothing explains {name} in a {naming.family} checkpoint; is it of a changed model?")
    return found


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
    model, known = CCLMModel.from_pretrained(folder), _known(folder / ORIGINAL)
    naming = _naming(model, known)
    weights = _theirs(model, naming, read_weights(folder))
    if (folder / KEPT).is_file():
        weights |= read_weights(folder / KEPT)
    kinds = known.get("tensors") or {name: str(weights[name].dtype).removeprefix("torch.") for name in sorted(weights)}
    if missing := [name for name in kinds if name not in weights and not is_buffer(name)]:
        raise ValueError(f"{folder}: no tensor of ours is {missing[0]} of the original; convert the checkpoint again")
    kept = {name: weights[name].to(getattr(torch, kind)) for name, kind in kinds.items() if name in weights}
    if target is not None:
        with whole_file(target) as partial:
            _write(kept, known, partial, target.suffix == ".safetensors")
    return len(kept)


def _write(weights: dict[str, Tensor], known: Mapping[str, Any], path: Path, safe: bool) -> None:
    key, config, prefix = known.get("key", "model"), known.get("config"), known.get("prefix", "")
    weights = {f"{prefix}{name}": value for name, value in weights.items()}
    if safe:  # which holds no tensor twice, and nothing beside them
        safetensors.torch.save_file({name: value.clone().contiguous() for name, value in weights.items()}, path)
        return
    content = {key: weights} | ({"config": config} if config else {}) if key else weights
    with open(path, "wb") as file:  # torch's own writer does not say that a disk is full
        torch.save(content, file)


def _known(path: Path) -> dict[str, Any]:
    """What the released file held, where the folder was converted from one."""
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(getattr(torch, kind), torch.dtype) for kind in known["tensors"].values()):
            raise TypeError("no kinds of tensors")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}); convert the checkpoint again") from None
    return known


def _naming(model: CCLMModel, known: Mapping[str, Any]) -> Naming:
    config, family = model.config, SWIN if "swin" in model.config.backbone else X2VLM
    fits = config.position_offset == (0 if family == SWIN else 2) and not config.pre_norm and config.pooling == "first"
    fits &= family == X2VLM or is_half(config.text_layers, config.fusion_layers)
    fits &= not list(model.image_adapter.parameters()) and config.tie_word_embeddings == (family == SWIN)
    if not fits or "swin" not in config.backbone and "beit" not in config.backbone:
        raise ValueError(
            f"a model with backbone {config.backbone}, position_offset {config.position_offset}, pooling "
            f"{config.pooling}, {config.text_layers} text and {config.fusion_layers} fusion layers, image states "
            f"{model.image_encoder.width} and text states {config.hidden_size} wide is of no "
            "released family; only converted models, and those trained from them, go back"
        )
    return Naming(family, config, known.get("bare", family == X2VLM or "mlm" not in config.heads))


def _theirs(model: CCLMModel, naming: Naming, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under their names, as `stored`: loading a model brings them all to one precision."""
    config = naming.config
    weights: dict[str, Tensor] = {}
    for name in model.state_dict():
        value = stored[model.all_tied_weights_keys.get(name, name)]
        if name == "logit_scale":
            value = _temperature(value, config.temperature)
        weights |= dict.fromkeys(naming.theirs(name), value)
    return weights | families.tables(naming)


def _temperature(logit_scale: Tensor, first: float) -> Tensor:
    """The original's `temp`, exact where it has not been trained since: a logarithm and back is not."""
    exact = torch.tensor(first, dtype=logit_scale.dtype)
    return exact if torch.equal(-exact.log(), logit_scale) else torch.tensor(math.exp(-float(logit_scale)))
