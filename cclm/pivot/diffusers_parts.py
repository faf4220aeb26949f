"""Parts of diffusers folders: networks and schedulers, read by name; safetensors only, nothing is executed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import cached_file

from cclm.errors import first_line
from cclm.models.names import is_here, quiet

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin

_CONFIGS = {"scheduler": "scheduler_config.json"}  # what is no network has its config in a file of another name


def diffusers() -> ModuleType:
    """The package, of the extra `pivot`. Errors: ValueError, one line, where it is not installed."""
    try:
        return importlib.import_module("diffusers")
    except ImportError:
        raise ValueError("painting needs the package diffusers, which is not here; pip install 'cclm[pivot]'") from None


def part_config(folder: str, part: str) -> dict[str, Any]:
    """The config of a part of a pipeline's folder (`unet`, `transformer`, `vae`, `scheduler`), or of the part's own.

    Errors: ValueError where there is none, here or on the hub, or it is damaged.
    """
    name = _CONFIGS.get(part, "config.json")
    try:
        return json.loads(_config_file(folder, part, name).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"no {part} in {folder} ({_reason(error)}); give a diffusers pipeline's folder") from None
    except ValueError as error:
        raise ValueError(f"{folder}: the config of its {part} is damaged ({first_line(error)}); get it anew") from None


def _reason(error: OSError) -> str:
    return error.strerror or first_line(error)


def has_part(folder: str, part: str) -> bool:
    """Whether a pipeline's folder, or a hub's repository, has such a part."""
    try:
        return _config_file(folder, part, _CONFIGS.get(part, "config.json")).is_file()
    except OSError:
        return False


def _config_file(folder: str, part: str, name: str) -> Path:
    path = Path(folder)
    if path.is_dir():
        return path / part / name if (path / part).is_dir() else path / name
    if is_here(folder):
        raise FileNotFoundError("there is no such folder")
    with quiet():
        return Path(cached_file(folder, name, subfolder=part))


def read_part(folder: str, part: str, kind: str, dtype: torch.dtype = torch.float32) -> ModelMixin:
    """The network of class `kind` that is a part of a pipeline's folder, or the folder itself. Errors: ValueError."""
    network = getattr(diffusers(), kind)
    below = part if not Path(folder).is_dir() or (Path(folder) / part).is_dir() else None
    try:
        with quiet():
            return network.from_pretrained(folder, subfolder=below, use_safetensors=True, torch_dtype=dtype)
    except Exception as error:  # damaged files raise whatever the reading of them does
        raise ValueError(
            f"{folder}: its {part} cannot be loaded ({first_line(error)}); give a diffusers folder with safetensors"
        ) from None


def new_scheduler(config: dict[str, Any], kind: str, wish: str, **changes: Any) -> SchedulerMixin:
    """A scheduler of class `kind` that knows what `config` says of the noise; what else it says is left out.

    Errors: ValueError for what that class does not know, which blames the `wish` that it was made for.
    """
    scheduler = getattr(diffusers(), kind)
    try:
        with quiet():
            return scheduler.from_config(config, **changes)
    except (NotImplementedError, ValueError, TypeError, ImportError) as error:
        raise ValueError(f"{wish} makes no {kind} ({first_line(error)}); change it") from None
