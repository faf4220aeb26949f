"""The closed list that a model's labels or answers come from."""

from __future__ import annotations

import json
from pathlib import Path


def read_labels(path: str | Path) -> list[str]:
    """Labels of a file: a JSON list, a JSON mapping label -> row (IGLUE's trainval_ans2label.json), or lines of text.

    Errors: ValueError where it is missing, damaged, empty, or names one twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"no labels in {path} ({error}); give a JSON list or a text of one label a line") from None
    if isinstance(found, dict):
        if sorted(found.values()) != list(range(len(found))):
            raise ValueError(f"labels {path}: a mapping must number them from 0 to {len(found) - 1}; write a list")
        found = sorted(found, key=found.__getitem__)
    if not isinstance(found, list) or not found or not all(isinstance(label, str) and label for label in found):
        raise ValueError(f"labels {path}: give a list of labels, none of them empty")
    if len(set(found)) != len(found):
        twice = next(label for label in found if found.count(label) > 1)
        raise ValueError(f"labels {path}: {twice!r} comes twice; name each once")
    return found
