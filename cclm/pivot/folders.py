"""Folders of models that are made of others: what trained, and where the rest lies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from cclm.models.weights import read_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def reference(name: str, folder: Path | str) -> str:
    """What a file in `folder` calls `name`: by the way to it where it lies on this machine, else as it is."""
    if not Path(name).exists():
        return name
    way = os.path.relpath(Path(name).resolve(), Path(folder).resolve())
    return way if way.startswith(os.pardir) else os.path.join(os.curdir, way)


def resolved(name: str, folder: Path | str) -> str:
    """What a reference in `folder` is called from here."""
    return os.path.relpath(Path(folder).resolve() / name) if name.startswith(os.curdir) else name


def write_config(folder: Path | str, model_type: str, content: Mapping[str, Any]) -> None:
    text = json.dumps({"model_type": model_type, **content}, indent=1, ensure_ascii=False)
    (Path(folder) / CONFIG).write_text(text + "\n", encoding="utf-8")


def read_config(folder: Path | str, model_type: str) -> dict[str, Any]:
    """Errors: ValueError where there is no such folder, and for one of another kind of model."""
    file = Path(folder) / CONFIG
    if not file.is_file():
        what = f"no {CONFIG} in" if Path(folder).is_dir() else "no pretrained folder at"
        raise ValueError(f"{what} {folder}; train one with `cclm fit` or check the path")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); export the model again") from None
    if kind != model_type:
        raise ValueError(f"{folder} holds a model of type {kind}, not {model_type}; give another")
    return content


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, a shared one once, and the tables and statistics that a state_dict holds."""
    stored = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in stored}
    return dict(model.named_parameters()) | buffers


def write_weights(folder: Path | str, model: nn.Module, names: set[str]) -> None:
    state = named_state(model)
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(names)}
    safetensors.torch.save_file(tensors, Path(folder) / WEIGHTS, {"format": "pt"})


def fill(folder: Path | str, model: nn.Module) -> set[str]:
    """Put the weights of a folder into the model where it has them; which they are.

    Errors: ValueError for a tensor that has no place there, or another shape.
    """
    ours, theirs = named_state(model), read_weights(Path(folder) / WEIGHTS)
    for name, value in theirs.items():
        if name not in ours:
            raise ValueError(f"{folder} holds {name}, for which this model has no place; give the settings it has")
        if value.shape != ours[name].shape:
            told = f"{tuple(value.shape)} in {folder} and {tuple(ours[name].shape)} in this model"
            raise ValueError(f"{name} is {told}; give the settings it has")
        ours[name].data.copy_(value)
    return set(theirs)


def held(model: nn.Module) -> set[str]:
    """What of the model training changes: parameters that require a gradient, and the statistics beside them."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    modules = {name.rpartition(".")[0] for name in trained}
    statistics = named_state(model).keys() - {name for name, _ in model.named_parameters()}
    return trained | {name for name in statistics if name.rpartition(".")[0] in modules}
