"""A run's folder: a result per cell (task, language, protocol, regime, shots), under a name made of what it depends on.

cells/<key>.json           a result, in the form that scripts rely on
predictions/<key>.jsonl    what the model said of every item
Every file is whole or absent, and one of the same name says the same: several runs may write to one folder at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from cclm.evaluation import predictions
from cclm.evaluation.items import TestSet
from cclm.evaluation.pictures import PictureFiles
from cclm.evaluation.result import Result
from cclm.evaluation.scoring import Scored
from cclm.storage import remove_remains, whole_file

CELLS, PREDICTIONS = "cells", "predictions"
FORM = 1  # of what goes into a key
DIGITS = 12  # of its hash


def texts_hash(test: TestSet) -> str:
    """SHA-256 in hex of all that a test asks and wants: ids, texts, image names, labels, the protocol."""
    others = ("spared", "notes", "wording")  # the last is told by the settings of those who read it
    parts = [f"{f.name}={getattr(test, f.name)!r}" for f in fields(test) if f.name not in others]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def pictures_hash(test: TestSet, pictures: PictureFiles) -> str:
    """SHA-256 in hex of the pictures that a test is about; "" for none. Errors: SampleError for one that lacks."""
    names = sorted(test.images())
    seen = "\0".join(f"{name}={pictures.digest(name)}" for name in names)
    return hashlib.sha256(f"{pictures.note}\0{seen}".encode()).hexdigest() if names else ""


def key_of(
    sha256: str, test: TestSet, pictures: PictureFiles, regime: str, shots: str, settings: Mapping[str, object]
) -> str:
    """The name of a cell of the model with this hash; another as soon as that, items, texts, pictures or settings are
    others."""
    content = {
        "form": FORM,
        "model": sha256,
        "ids": test.fingerprint(),
        "texts": texts_hash(test),
        "pictures": pictures_hash(test, pictures),
        "settings": settings,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]
    parts = (test.task, test.language, test.protocol.name, regime, shots, digest)
    return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class RunFolder:
    """Where results are kept."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> Self:
        """Without what killed runs left half written. Errors: ValueError, before the work, where it cannot write."""
        try:
            for part in (CELLS, PREDICTIONS):
                (root / part).mkdir(parents=True, exist_ok=True)
                if not os.access(root / part, os.W_OK):
                    raise PermissionError(13, "you may not write there")
                remove_remains(root / part)
        except OSError as error:
            raise ValueError(f"run folder {root} cannot be written ({error.strerror}); choose another") from None
        return cls(root)

    def find(self, key: str) -> Result | None:
        """The result of a cell, where it is there. Errors: ValueError for a damaged one."""
        path = self.root / CELLS / f"{key}.json"
        return _read(path) if path.is_file() else None

    def renew(self, key: str) -> None:
        """Make a cell the newest of its test, where one of other texts, pictures or weights was written since."""
        own = self.root / CELLS / f"{key}.json"
        others = (self.root / CELLS).glob(f"{key.rpartition('-')[0]}-{'?' * DIGITS}.json")
        if any(other.stat().st_mtime_ns > own.stat().st_mtime_ns for other in others):
            os.utime(own)

    def write(self, key: str, scored: Scored) -> None:
        """The predictions first: a cell that is there is complete."""
        predictions.write(scored.items, self.root / PREDICTIONS / f"{key}.jsonl")
        self.tell(key, scored.result)

    def tell(self, key: str, result: Result) -> None:
        """Write a result, or write it anew where the same model goes by another name."""
        text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with whole_file(self.root / CELLS / f"{key}.json") as path:
            path.write_text(text, encoding="utf-8")


def _read(path: Path) -> Result:
    try:
        return Result.of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and it is made again") from None
