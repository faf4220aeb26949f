"""A tiny pretrained folder of the real classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cclm.data.tokenizer import train_tokenizer
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings
from tests.data.conftest import WORDS, sentence

TINY = {
    "hidden_size": 16,
    "text_layers": 1,
    "fusion_layers": 2,
    "num_heads": 2,
    "intermediate_size": 32,
    "embedding_size": 8,
    "max_positions": 40,
    "backbone": "test_resnet",
    "image_size": 32,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="session")
def tiny_processor(tmp_path_factory: pytest.TempPathFactory) -> CCLMProcessor:
    texts = [sentence(language, number) for language in WORDS for number in range(200)]
    tokenizer = train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"), 90)
    return CCLMProcessor(tokenizer, ImageSettings(image_size=32), max_tokens=24)


@pytest.fixture(scope="session")
def pretrained(tiny_processor: CCLMProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as `cclm fit` exports."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    CCLMModel(CCLMConfig(vocab_size=tiny_processor.vocab_size, **TINY)).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder
