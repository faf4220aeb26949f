"""Region data trains through `cclm fit`: from drawn squares and their captions the model learns where they are."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from cclm.data.shards import write_shards
from cclm.data.tokenizer import train_tokenizer
from cclm.models.model import CCLMModel
from cclm.types import Record, Region
from tests.training.conftest import Run, objective

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 40), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SIZE = 64


def drawn(number: int) -> Record:
    """A square of some colour anywhere in a grey picture, a region with a caption of its own."""
    draw = random.Random(number)
    image = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
    colour, side = draw.choice(list(COLOURS)), draw.randint(18, 36)
    x, y = draw.randint(0, SIZE - side), draw.randint(0, SIZE - side)
    ImageDraw.Draw(image).rectangle((x, y, x + side - 1, y + side - 1), fill=COLOURS[colour])
    out = io.BytesIO()
    image.save(out, "PNG")
    region = Region((x, y, side, side), {"en": [f"a {colour} square"]})
    return Record(f"r{number}", out.getvalue(), regions=(region,), size=(SIZE, SIZE))


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions")
    write_shards((drawn(number) for number in range(300)), folder / "train", samples_per_shard=100)
    write_shards((drawn(number) for number in range(1000, 1040)), folder / "dev")
    train_tokenizer([f"a {colour} square" for colour in COLOURS], folder / "tokenizer", 20)
    return folder


def test_boxes_are_learned(fit: Run, regions: Path) -> None:
    """All four objectives run on regions, and predicted boxes come near the true ones."""
    stream = {"shards": str(regions / "train"), "batch_size": 32, "max_tokens": 12}
    pairs = {"class_path": "cclm.data.pairs.Regions", "init_args": {"languages": ["en"]}}
    names = ("contrastive", "Contrastive"), ("matching", "Matching"), ("masked_lm", "MaskedLM"), ("box", "Box")
    folder = fit(
        trainer__max_steps=240,
        processor__tokenizer=str(regions / "tokenizer"),
        processor__max_tokens=12,
        processor__image={"image_size": SIZE},
        model__network__config__heads=["match", "mlm", "box"],
        model__network__config__dropout=0.0,
        model__network__config__attention_dropout=0.0,
        model__optimizer={"lr": 6e-3, "warmup_steps": 20},
        model__objectives={"regions": {name: objective(name, kind) for name, kind in names}},
        model__weights={"regions/contrastive": 0.1, "regions/matching": 0.1, "regions/masked_lm": 0.1},
        data__streams={"regions": stream | {"pairs": pairs}},
    )
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    boxes = [float.fromhex(step["losses"]["train/regions/box"]) for step in steps]
    assert sum(boxes[-20:]) < 0.8 * sum(boxes[:20]), (sum(boxes[:20]) / 20, sum(boxes[-20:]) / 20)
    assert CCLMModel.from_pretrained(folder / "model").config.heads == ["match", "mlm", "box"]
