"""A tiny pretrained folder, and embedding with it, for the tests of embeddings and engines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cclm.data.tokenizer import train_tokenizer
from cclm.evaluation.embedding import EmbedOptions
from cclm.evaluation.extraction import Extraction
from cclm.models.encoding import EncodingOptions
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.retrieval.embeddings import Embeddings
from cclm.retrieval.engines import EngineOptions
from cclm.verbs.inputs import load
from tests.data.conftest import WORDS, sentence


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Random weights of the real classes."""
    texts = [sentence(language, number) for language in WORDS for number in range(200)]
    tokenizer = train_tokenizer(texts, folder.with_name(f"{folder.name}_tokenizer"), 90)
    processor = CCLMProcessor(tokenizer, ImageSettings(image_size=32), max_tokens=24)
    torch.manual_seed(seed)
    config = CCLMConfig(
        vocab_size=processor.vocab_size,
        hidden_size=16,
        text_layers=1,
        fusion_layers=1,
        num_heads=2,
        intermediate_size=32,
        embedding_size=8,
        max_positions=40,
        backbone="test_resnet",
        image_size=32,
        initializer_range=0.3,
    )
    CCLMModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def load_together(folder: Path, device: str) -> tuple[CCLMModel, CCLMProcessor]:
    """Load once two processes are at it, so that neither does all the work while the other one starts."""
    there = folder.with_name("loading")
    there.mkdir(exist_ok=True)
    (there / str(os.getpid())).touch()
    waited = time.monotonic()
    while len(list(there.iterdir())) < 2:
        assert time.monotonic() < waited + 120
        time.sleep(0.05)
    return load(folder, device)


def everything(receipts: Iterable[Any], count: int) -> Iterable[Any]:
    return receipts


def embed(
    source: Path | str | list[str],
    folder: Path,
    model: Path,
    engine: EngineOptions | None = None,
    told: list[str] | None = None,
    shown: Callable[[Iterable[Any], int], Iterable[Any]] = everything,
    **changed: Any,
) -> Embeddings:
    """Embed in this process; `changed` are options. What a user would be told is added to `told`."""
    per_part, loading = changed.pop("pictures_per_part", 1000), changed.pop("loading", load)
    options = replace(EmbedOptions(dtype="float32", encoding=EncodingOptions(image_batch=8)), **changed)
    given = source if isinstance(source, list) else str(source)
    extraction = Extraction(folder, model, given, options, loading, pictures_per_part=per_part)
    return extraction.run(engine or EngineOptions(), [].append if told is None else told.append, shown)


def contents(folder: Path) -> dict[str, bytes]:
    """What readers of the layout see: name -> bytes."""
    kinds = ("img_emb", "text_emb", "metadata")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for kind in kinds for path in folder.glob(f"{kind}/*")
    }


def receipts(folder: Path) -> dict[str, int]:
    """Part -> when its receipt was written."""
    return {path.stem: path.stat().st_mtime_ns for path in sorted((folder / "parts").glob("*.json"))}
