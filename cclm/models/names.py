"""Pretrained folders and hub names: which is it, and what kind of model lies there?"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cclm.storage import check_replaceable

# What a pretrained folder of any of our models consists of; other tokenizers than ours have more files than one.
EXPORTED = (
    *("README.md", "config.json", "generation_config.json", "modules.json", "original.json", "choice.json"),
    *("processor_config.json", "pivot_processor.json", "chat_template.jinja"),
    *("original.safetensors", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("sentencepiece.bpe.model", "vocab.txt", "vocab.json", "merges.txt"),
)


def check_export(folder: Path | str, kind: str) -> None:
    """Before the work. Errors: ValueError for a folder that holds anything but a former export of this kind of model,
    as its config.json calls it.
    """
    config = check_replaceable(folder, EXPORTED) / "config.json"
    if config.is_file() and model_type(config) != kind:
        raise ValueError(f"output {folder} holds a model of another kind, which is not replaced; choose another")


def is_here(name: str) -> bool:
    """Whether `name` can only mean a folder of this machine: the hub's are `name` or `owner/name`.

    A forgotten step must be told at once, not after the hub has been asked for `data/tokenizer` six times.
    """
    path = Path(name).expanduser()
    return (
        path.is_absolute()
        or name.startswith((".", "~"))
        or len(path.parts) > 2
        or (len(path.parts) == 2 and (path.parts[0] in ("data", "runs") or Path(path.parts[0]).is_dir()))
    )


def as_seen_from(folder: Path, name: str) -> str:
    """What a file in `folder` calls it: an absolute path, true of one machine alone, by the way to it."""
    return os.path.relpath(name, folder.absolute()) if os.path.isabs(name) else name


def model_type(config: Path) -> str | None:
    """What a config.json says it is of. Errors: ValueError where it is damaged."""
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config} is damaged ({error}); export the model again") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries log tables and every retry before they raise; what is wrong is told once, by us."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
