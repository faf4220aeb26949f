"""Made-up pictures and embeddings for tests of indices."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from cclm.retrieval.index import ImageIndex, build_index
from cclm.retrieval.manifest import ModelSource
from cclm.retrieval.metadata import Entry, Rows
from cclm.retrieval.plan import Budget

DIM = 16
LANGUAGES = ("en", "de", "fr", "cs")


def vector_of(key: str, version: int = 0) -> np.ndarray:
    """The embedding (E,) of a picture's version, unit norm: whoever knows the key knows it."""
    seed = np.frombuffer(f"{key}/{version}".encode(), np.uint8)
    found = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return found / np.linalg.norm(found)


def entry_of(key: str, version: int = 0) -> Entry:
    number = sum(key.encode()) + version
    languages = [language for place, language in enumerate(LANGUAGES) if number >> place & 1]
    return Entry(
        key,
        {language: [f"{language} caption {version} of {key}"] for language in languages},
        path=f"{'holiday' if number % 3 else 'work'}/{key}.jpg",
        size=1000 + number,
        width=None if number % 11 == 0 else 100 * (number % 10),
        height=480,
        date=datetime(2024, 1, 1) + timedelta(days=number),
        sha256=f"{number % 97:064x}",
    )


def rows_of(keys: list[str], version: int = 0) -> Rows:
    return Rows.of([entry_of(key, version) for key in keys], np.stack([vector_of(key, version) for key in keys]))


def names(first: int, last: int) -> list[str]:
    return [f"k{number:04}" for number in range(first, last)]


def model_in(folder: Path, weights: bytes = b"weights") -> ModelSource:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    return ModelSource.of(folder)


def index_in(folder: Path, keys: list[str], budget: Budget | None = None) -> Path:
    """An index of these pictures, its model beside it."""
    build_index([rows_of(keys)], folder / "index", model_in(folder / "model"), [folder], budget=budget)
    return folder / "index"


def contents(index: ImageIndex) -> dict[str, int]:
    """The version of each picture that is there, told from its embedding; and that its entry is the same one's."""
    found = {}
    for segment in index.segments:
        rows = np.arange(segment.segment.rows) if segment.live is None else np.flatnonzero(segment.live)
        for entry, vector in zip(segment.metadata.entries(rows), segment.vectors(rows), strict=True):
            versions = [
                version for version in range(40) if np.allclose(vector_of(entry.key, version), vector, atol=1e-3)
            ]
            assert len(versions) == 1 and entry.key not in found, entry.key
            assert entry == entry_of(entry.key, versions[0])
            found[entry.key] = versions[0]
    return found
