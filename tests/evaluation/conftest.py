"""A tiny model and processor of the real classes, and image records to run them on."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from cclm.data.tokenizer import train_tokenizer
from cclm.evaluation import metrics
from cclm.evaluation.retrieval import directions
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.types import Record

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "yellow": (230, 220, 40)}
GERMAN = {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb"}
SHAPES = ("wide", "tall")


def picture(colour: str, shape: str, shade: int) -> bytes:
    """A PNG: a block of one colour, more or less bright, on grey."""
    image = Image.new("RGB", (32, 32), (128, 128, 128))
    box = (0, 8, 32, 24) if shape == "wide" else (8, 0, 24, 32)
    image.paste(tuple(min(255, channel + shade) for channel in COLOURS[colour]), box)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def scores_of(
    images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor | list[int], draws: int = 0
) -> dict[str, dict[str, object]]:
    """Both directions from embeddings (N, E), (T, E) and each text's image row (T,), as an evaluation scores them."""
    both = directions(owners, len(images))
    found = metrics.search(texts, images, both[0].relevance)
    return {way.name: way.scores(one.ranks, draws, seed=0) for way, one in zip(both, found, strict=True)}


@pytest.fixture(scope="session")
def records() -> list[Record]:
    """24 pictures; English captions for all (1 to 3), German for half, French only as parallel sentences."""
    made = []
    for number in range(24):
        colour, shape, shade = list(COLOURS)[number % 4], SHAPES[number // 4 % 2], 5 * (number // 8)
        english = [f"a {shape} {colour} block {number}", f"{colour} and {shape} number {number}", f"{colour} {number}"]
        captions = {"en": english[: 1 + number % 3]}
        if number % 2:
            captions["de"] = [f"ein Block in {GERMAN[colour]} {number}"]
        made.append(
            Record(
                f"r{number:02}", picture(colour, shape, shade), captions, {"fr": f"bloc {number}", "en": f"n {number}"}
            )
        )
    return made


@pytest.fixture(scope="session")
def processor(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> CCLMProcessor:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    sentences = [text for record in records for texts in record.captions.values() for text in texts]
    random.Random(0).shuffle(sentences)
    return CCLMProcessor(train_tokenizer(sentences, folder / "t", 44), ImageSettings(image_size=32), max_tokens=24)


@pytest.fixture(scope="session")
def model(processor: CCLMProcessor) -> CCLMModel:
    torch.manual_seed(0)
    config = CCLMConfig(
        vocab_size=processor.vocab_size,
        hidden_size=16,
        text_layers=1,
        fusion_layers=2,
        num_heads=2,
        intermediate_size=32,
        embedding_size=8,
        max_positions=40,
        backbone="test_resnet",
        image_size=32,
        initializer_range=0.3,
    )
    return CCLMModel(config)
