"""Tiny parts of a model that sees: a tokenizer with tags, language models of three families, pictures."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cclm.data.tokenizer import train_tokenizer
from cclm.models.processor import ImageSettings
from cclm.pivot.bridges import BridgeSettings
from cclm.pivot.image_encoder import ImageEncoderSettings
from cclm.pivot.image_to_text import Built, ImageToTextSettings
from cclm.pivot.language_model import LanguageModelSettings
from cclm.pivot.processor import PivotProcessorSettings
from tests.data.conftest import WORDS, sentence

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {  # positions by rotation, with norms and groups of heads, by bias
    "llama": SMALL | {"intermediate_size": 48, "max_position_embeddings": 96},
    "qwen3": SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    "bloom": SMALL,
}
TEMPLATE = "<image><2{code}>"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pivot") / "tokenizer"
    sentences = [sentence(language, n) for language in WORDS for n in range(200)]
    train_tokenizer(sentences, folder, 90, languages=sorted(WORDS))
    return folder


@pytest.fixture(scope="session")
def language_models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Callable[[str], Path]:
    """The folder of a tiny language model of a family."""
    folder = tmp_path_factory.mktemp("language_models")

    def at(family: str, seed: int = 0) -> Path:
        path = folder / f"{family}{seed}"
        if not path.exists():
            torch.manual_seed(seed)
            config = {"model_type": family} | FAMILIES[family]
            built = PivotProcessorSettings(str(tokenizer)).build().tokenizer
            ids = built.bos_token_id, built.eos_token_id, built.pad_token_id
            model = LanguageModelSettings(config=config).build(len(built), *ids)
            model.save_pretrained(path)
            built.save_pretrained(path)
        return path

    return at


@pytest.fixture(scope="session")
def encoder_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    from cclm.models.vision import ImageEncoder

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "weights.safetensors"
    save_file(ImageEncoder("test_resnet", 32).backbone.state_dict(), path)
    return path


@pytest.fixture
def build(language_models: Callable[[str], Path], encoder_weights: Path, tokenizer: Path) -> Callable[..., Built]:
    """A model of a family: frozen parts from files, a new bridge of 4 states."""

    def built(family: str = "llama", **changes: object) -> Built:
        parts = {
            "language_model": LanguageModelSettings(pretrained=str(language_models(family))),
            "image_encoder": ImageEncoderSettings("test_resnet", weights=str(encoder_weights)),
            "bridge": BridgeSettings("resampler", states=4, depth=1, heads=2),
        }
        settings = PivotProcessorSettings(str(tokenizer), ImageSettings(image_size=32), 24, template=TEMPLATE)
        torch.manual_seed(1)
        made = ImageToTextSettings(**(parts | changes)).build(32, settings.build)
        made.model.eval().processor = made.processor
        return made

    return built


def picture(seed: int) -> Image.Image:
    """Noise in large squares."""
    draw = random.Random(seed)
    small = Image.new("RGB", (4, 4))
    small.putdata([tuple(draw.randrange(256) for _ in range(3)) for _ in range(16)])
    return small.resize((32, 32), Image.Resampling.NEAREST)
