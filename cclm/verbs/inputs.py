"""What several verbs are given: a model's folder, a device, languages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cclm.errors import first_line

if TYPE_CHECKING:
    import torch
    from jsonargparse import ArgumentParser

    from cclm.models.model import CCLMModel
    from cclm.models.processor import CCLMProcessor


def load(folder: Path, device: str) -> tuple[CCLMModel, CCLMProcessor]:
    """The model in float32, ready to encode on the device, and its processor. Errors: ValueError, one line.

    Whatever it is stored in: half precision is slow on a CPU, and elsewhere a matter of `--encoding.precision`.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from cclm.models.model import CCLMModel

    transformers_logging.disable_progress_bar()
    place = device_named(device)
    model = CCLMModel.from_pretrained(folder, dtype=torch.float32).eval().to(place)
    return model, model.processor


def add_inputs(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="a pretrained folder")
    parser.add_argument("--data", type=str, required=True, help="a split folder of shards, a tar or a pattern")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ..")


def device_named(name: str) -> torch.device:
    """Errors: ValueError for a device that this machine, or this build of torch, has not."""
    import torch

    try:
        torch.ones(1, device=name).cpu()  # there and back: a device such as `meta` holds nothing
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {name!r} here ({first_line(error).split('. ')[0]}); use cpu") from None
    return torch.device(name)


def codes(languages: list[str] | str | None) -> tuple[str, ...] | None:
    """Languages as the command line has them, `de,fr` or `[de, fr]`, each once; None for all.

    Errors: ValueError where none is named.
    """
    if languages is None:
        return None
    parts = languages.split(",") if isinstance(languages, str) else languages
    found = tuple(dict.fromkeys(filter(None, map(str.strip, parts))))
    if not found:
        raise ValueError(f"languages are {languages!r}, which names none; give de,fr .., or leave them out for all")
    return found
