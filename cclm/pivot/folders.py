"""Folders of models that are made of others: what trained, and where the rest lies."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from torch import Tensor, nn

from cclm.models.names import model_type
from cclm.models.weights import read_weights
from cclm.pivot.fingerprints import agree
from cclm.pivot.notes import TrainingNotes

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_GIVEN = ("language model", "text encoder")  # parts that may be named anew where a model is loaded

T = TypeVar("T")


def reference(name: str, folder: Path | str) -> str:
    """What a file in `folder` calls `name`: by the way to it where it lies on this machine, else as it is."""
    if not Path(name).exists():
        return name
    way = os.path.relpath(Path(name).resolve(), Path(folder).resolve())
    return way if way.startswith(os.pardir) else os.path.join(os.curdir, way)


def resolved(name: str, folder: Path | str, part: str) -> str:
    """What a reference in `folder` to a `part` of its model is called from here. Errors: ValueError, not there."""
    if not name.startswith(os.curdir):
        return name
    way = os.path.relpath(Path(folder).resolve() / name)
    if not Path(way).exists():
        given = ", give --language_model" if part in _GIVEN else ""
        raise ValueError(
            f"{folder} needs a part that is not there: no {part} at {way}; move it along{given}, or correct {CONFIG}"
        )
    return way


def write(folder: Path | str, model_type: str, content: Mapping[str, Any], model: nn.Module, names: set[str]) -> None:
    """A config.json of `content`, and the tensors of the model that have these names."""
    told = {"model_type": model_type, **content, "tensors": sorted(names)}
    text = json.dumps(told, indent=1, ensure_ascii=False)
    (Path(folder) / CONFIG).write_text(text + "\n", encoding="utf-8")
    state = named_state(model)
    tensors = {name: state[name].detach().cpu().contiguous() for name in told["tensors"]}
    safetensors.torch.save_file(tensors, Path(folder) / WEIGHTS, {"format": "pt"})


def read_config(folder: Path | str, model_type: str, read: Callable[[dict[str, Any]], T]) -> T:
    """What `read` makes of a folder's config.json.

    Errors: ValueError where there is no such folder, it is damaged, or of another kind of model.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        what = f"no {CONFIG} in" if Path(folder).is_dir() else "no pretrained folder at"
        raise ValueError(f"{what} {folder}; train one with `cclm fit` or check the path")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file, error) from None
    if kind != model_type:
        raise ValueError(f"{folder} holds a model of type {kind}, not {model_type}; give another")
    try:
        return read(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} is damaged ({error}); export the model again")


def read_own(folder: Path | str, read: Callable[[Path | str], T]) -> T:
    """What `read` makes of a folder in which we wrote it. Errors: ValueError where it is damaged or gone."""
    try:
        return read(folder)
    except ValueError as error:  # ends with the cure of files that somebody else gave
        reason = str(error).rpartition("; ")[0] or str(error)
        raise ValueError(f"{folder} is damaged: {reason}; export it again") from None


def check_plain(folder: Path) -> None:
    """Errors: ValueError for a folder of a model of ours, where a library's own is wanted."""
    kind = model_type(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if str(kind).startswith("cclm"):
        raise ValueError(f"{folder} holds a model of type {kind}; name the folder of what it was made with instead")


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, a shared one once, and the tables and statistics that a state_dict holds."""
    stored = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in stored}
    return dict(model.named_parameters()) | buffers


def take(
    folder: Path | str, model_type: str, model: nn.Module, fingerprints: Mapping[str, str]
) -> tuple[set[str], TrainingNotes]:
    """Put what trained in a folder into the model, whose other parts have these fingerprints: which tensors they are,
    and the folder's notes.

    Errors: ValueError where it is damaged, was made for other parts, or does not fit.
    """

    def told(content: dict[str, Any]) -> tuple[dict[str, str], set[str], TrainingNotes]:
        made = dict(**content["fingerprints"])
        if odd := made.keys() ^ fingerprints.keys():
            raise KeyError(f"fingerprints: {', '.join(sorted(odd))}")
        return made, set(content["tensors"]), TrainingNotes.of(content)

    made, names, notes = read_config(folder, model_type, told)
    for part, known in fingerprints.items():
        if not agree(made[part], known):
            what = part.replace("_", " ") + (", or another layer of it," if part == "text_encoder" else "")
            raise ValueError(f"{folder} was trained with another {what} than the one that is given; give that")
    return _fill(folder, model, names), notes


def _fill(folder: Path | str, model: nn.Module, names: set[str]) -> set[str]:
    """Put the weights of a folder, which must have all of these names, where the model has them."""
    ours, theirs = named_state(model), read_own(folder, lambda folder: read_weights(Path(folder) / WEIGHTS))
    if lacking := sorted(names - theirs.keys()):
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        raise ValueError(f"{folder} is damaged: {WEIGHTS} lacks {lacking[0]}{more}; export it again")
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
