"""A processor, drawn pictures and small datasets for the data tests."""

from __future__ import annotations

import io
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from cclm.data.shards import write_shards
from cclm.data.tokenizer import train_tokenizer
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.types import Record

WORDS = {
    "en": "one two three four five six seven eight nine ten a dog runs over green grass and red houses".split(),
    "de": "eins zwei drei vier fünf sechs sieben acht neun zehn ein Hund läuft über Gras und rote Häuser".split(),
    "fr": "un deux trois quatre cinq six sept huit neuf dix chien court sur herbe verte et maisons rouges".split(),
}


def sentence(language: str, number: int) -> str:
    """A sentence of 1 to 12 words, different for every number."""
    words = WORDS[language]
    return (
        " ".join(words[(number * 7 + i * (number % 5 + 1)) % len(words)] for i in range(number % 12 + 1)) + f" {number}"
    )


def picture(number: int, size: int = 40, kind: str = "JPEG") -> bytes:
    image = Image.linear_gradient("L").resize((size, size)).convert("RGB")
    image.paste(((number * 37) % 256, (number * 91) % 256, (number * 53) % 256), (0, 0, size // 2, size // 2))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def image_records(count: int, start: int = 0) -> Iterator[Record]:
    for number in range(start, start + count):
        captions = {"en": [sentence("en", number), sentence("en", number + 1)], "de": [sentence("de", number)]}
        yield Record(f"p{number:05d}", picture(number), captions)


def text_records(count: int) -> Iterator[Record]:
    for number in range(count):
        yield Record("", parallel={language: sentence(language, number) for language in WORDS})


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Writing a file past `limit` bytes raises OSError, as the kernel does it on a full disk, in mid-write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def processor(tmp_path_factory: pytest.TempPathFactory) -> CCLMProcessor:
    texts = [sentence(language, number) for language in WORDS for number in range(200)]
    tokenizer = train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"), 90)
    return CCLMProcessor(tokenizer, ImageSettings(image_size=32), max_tokens=24)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 image records in 6 shards."""
    folder = tmp_path_factory.mktemp("photos") / "train"
    write_shards(image_records(60), folder, samples_per_shard=10)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 five-way rows in 5 shards, 8 rows a member."""
    folder = tmp_path_factory.mktemp("texts") / "train"
    write_shards(text_records(200), folder, samples_per_shard=40, rows_per_member=8)
    return folder
