"""Frozen readers: only the layers that are read are kept, and they say what the whole model says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.pivot.language_model import LanguageModelSettings
from cclm.pivot.text_encoders import TextEncoder, TextEncoderSettings
from tests.pivot.conftest import FAMILIES

TEXTS = ["un chat dort", "a red ball and a dog", "ball"]


def encoder(folder: Path, **settings: object) -> tuple[TextEncoder, CCLMProcessor]:
    chosen = TextEncoderSettings(str(folder), **settings)
    processor = chosen.processor(ImageSettings(16), 24)
    return chosen.build(processor), processor


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, 2, None])
def test_states_are_those_of_the_whole_model(
    language_models: Callable[..., Path], family: str, layer: int | None
) -> None:
    folder = language_models(family)
    made, processor = encoder(folder, layer=layer)
    text, tokenizer = processor.texts(TEXTS), processor.tokenizer
    whole = LanguageModelSettings(str(folder)).build(
        len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    )
    (wanted,) = whole.states(text.input_ids, text.attention_mask, [2 if layer is None else layer])
    found = made(text.input_ids, text.attention_mask)
    assert torch.equal(found, wanted) and not found.requires_grad
    assert made.width == 32 and not any(parameter.requires_grad for parameter in made.parameters())
    layers = {name.split(".layers.")[1][0] for name in made.state_dict() if ".layers." in name}
    layers |= {name.split(".h.")[1][0] for name in made.state_dict() if ".h." in name}
    assert len(layers) == min(2, 3 if layer is None else layer + 1)
    depth = 2 if layer is None else layer
    assert made.fingerprint == whole.fingerprint().replace(".", f"-{depth}.")


def test_a_fingerprint_tells_models_and_layers_apart(language_models: Callable[..., Path]) -> None:
    found = {
        encoder(language_models("llama", seed), layer=layer)[0].fingerprint for seed in (0, 1) for layer in (1, 2, None)
    }
    assert len(found) == 4  # the last layer is the second


@pytest.fixture(scope="module")
def cross_view(tmp_path_factory: pytest.TempPathFactory, language_models: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("cclm")
    read = TextEncoderSettings(str(language_models("llama"))).processor(ImageSettings(32), 16)
    processor = CCLMProcessor(read.tokenizer, ImageSettings(32), 16, "caption", 9)
    torch.manual_seed(0)
    options = {"hidden_size": 32, "text_layers": 2, "fusion_layers": 1, "num_heads": 2, "intermediate_size": 64}
    sizes = {"image_size": 32, "vocab_size": processor.vocab_size, "embedding_size": 16, "max_positions": 40}
    CCLMModel(CCLMConfig(backbone="test_resnet", **options, **sizes)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_text_encoder_of_a_cross_view_model(cross_view: Path) -> None:
    made, processor = encoder(cross_view)
    assert (processor.max_tokens, processor.text_cleaning, processor.max_words) == (16, "caption", 9)
    assert processor.image_size == 16  # what is painted, not what that model sees
    text = processor.texts(TEXTS)
    wanted = CCLMModel.from_pretrained(cross_view).eval().encode_text(text.input_ids, text.attention_mask).states
    assert torch.equal(made(text.input_ids, text.attention_mask), wanted) and made.width == 32
    assert {name.split(".")[0] for name in made.state_dict()} == {"embeddings", "layers"}


def test_what_is_wrong_is_told_in_one_line(cross_view: Path, language_models: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"layer 3: this language model has 0 \(its embeddings\) to 2"):
        encoder(language_models("llama"), layer=3)
    with pytest.raises(ValueError, match="leave layer and quantize out"):
        encoder(cross_view, layer=1)
    with pytest.raises(ValueError, match="no tokenizer at runs/nowhere"):
        encoder(Path("runs/nowhere"))
