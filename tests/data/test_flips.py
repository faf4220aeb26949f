"""Images of statements change left and right only where nothing is said of either."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cclm.data.batches import BatchStream, StreamConfig
from cclm.data.pairs import Statements
from cclm.data.readers import CachedStates, ImageRequest, PixelReader
from cclm.data.shards import write_shards
from cclm.data.state_cache import CacheSettings, cached_states
from cclm.data.stream import Share
from cclm.data.tokenizer import train_tokenizer
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.types import Record, Statement

SAID = {
    "Is the dog LEFT of the tree?": "no",
    "Where is the dog?": "right",
    "Is there a dog?": "yes",
    "What is it?": "dog",
}


def half_red() -> bytes:
    """Red on the left, blue on the right."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4, 0] = pixels[:, 4:, 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def processor(folder: Path) -> CCLMProcessor:
    tokenizer = train_tokenizer([text for text in SAID for _ in range(20)], folder / "tokenizer", 30)
    return CCLMProcessor(tokenizer, ImageSettings(image_size=8, crop_scale=(1.0, 1.0), flip=0.0))


def shards(folder: Path) -> str:
    said = tuple(Statement({"en": text}, {label: 1.0}) for text, label in SAID.items())
    write_shards([Record(f"r{n}", image=half_red(), statements=said) for n in range(4)], folder / "train")
    return str(folder / "train")


def flipped(folder: Path, drawer: Statements) -> dict[str, set[bool]]:
    """Label of each statement, and whether its image was flipped, over eight epochs."""
    made = processor(folder)
    config = StreamConfig(shards(folder), drawer, batch_size=16, bucket=1)
    batches = BatchStream("said", config, made, PixelReader(made, train=True), 0, Share())
    found: dict[str, set[bool]] = {label: set() for label in SAID.values()}
    for _ in range(8):
        batch = next(batches)
        assert batch.labels is not None
        blue_left = batch.context.pixel_values[:, 2, 0, 0] > batch.context.pixel_values[:, 2, 0, -1]
        for label, flip in zip(batch.labels.names, blue_left.tolist(), strict=True):
            found[label].add(flip)
    return found


def test_what_is_said_of_sides_keeps_them(tmp_path: Path) -> None:
    found = flipped(tmp_path, Statements(flip_unless=["left", "right"]))
    assert found == {"no": {False}, "right": {False}, "yes": {False, True}, "dog": {False, True}}


def test_nothing_is_flipped_unasked(tmp_path: Path) -> None:
    assert set().union(*flipped(tmp_path, Statements()).values()) == {False}


def test_cached_states_are_not_flipped_silently(tmp_path: Path) -> None:
    settings = CacheSettings(str(tmp_path / "cache"), "encoder")
    cache = cached_states(
        shards(tmp_path), lambda pixels: torch.zeros(len(pixels), 2, 3), processor(tmp_path), settings
    )
    request = ImageRequest("r0", (), 0)
    batch = CachedStates(cache, train=True).start(request)
    batch.add(request)
    with pytest.raises(ValueError, match="leave flip_unless out"):
        batch.add(replace(request, flip=True))
