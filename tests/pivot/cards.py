"""What every card of a pivot must be: read by the hub, true of no single machine, with code and commands that run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from cclm.cli import main
from tests.pivot.conftest import picture


def checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModelCard, dict[str, Any]]:
    """The card of `folder`, and the names that its code has left. Its `cclm generate` commands have run, too."""
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name in ("cclm", "transformers") and card.data.pipeline_tag and card.data.license
    assert not re.search(r"[`\s(]/\w", card.text), "an absolute path"
    place = folder.parent / "elsewhere"
    place.mkdir(exist_ok=True)
    for name in ("ball.jpg", "1.jpg", "2.jpg"):
        picture(1).save(place / name)
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    exec(block(card, "python").replace("this folder", str(folder)), names)
    for command in block(card, "bash").splitlines():
        words = arguments(command, folder)
        if words[0] == "generate":
            main(words)
    return card, names


def block(card: ModelCard, language: str) -> str:
    return card.text.split(f"```{language}\n")[1].split("\n```")[0]


def arguments(command: str, folder: Path) -> list[str]:
    """Of `cclm`, as a shell would split the line."""
    first, *words = shlex.split(command.replace("this folder", str(folder)), comments=True)
    assert first == "cclm"
    return words
