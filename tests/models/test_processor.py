"""The processor against the tokenizer and the transforms it wraps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from cclm.data.tokenizer import train_tokenizer
from cclm.models.processor import CCLMProcessor, ImageSettings
from tests.data.conftest import WORDS, sentence


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> CCLMProcessor:
    texts = [sentence(language, number) for language in WORDS for number in range(200)]
    tokenizer = train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"), 90)
    return CCLMProcessor(tokenizer, ImageSettings(image_size=24, crop_scale=(0.3, 0.6), augment=True), max_tokens=12)


def test_texts_are_what_the_tokenizer_says(processor: CCLMProcessor) -> None:
    texts = [sentence("en", 3), sentence("de", 11), "a"]
    expected = processor.tokenizer(texts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    got = processor.texts(texts)
    assert torch.equal(got.input_ids, expected["input_ids"])
    assert torch.equal(got.attention_mask, expected["attention_mask"].bool())
    assert processor.texts(["a"]).input_ids.shape[1] < got.input_ids.shape[1] == 12  # trimmed to the longest
    assert processor.texts(texts, max_tokens=5).input_ids.shape[1] == 5


def test_images_are_resized_and_normalised(processor: CCLMProcessor) -> None:
    grey = Image.new("RGB", (31, 17), (51, 102, 204))
    pixels = processor.images([grey, grey])
    settings = processor.settings
    expected = (torch.tensor([51, 102, 204]) / 255 - torch.tensor(settings.mean)) / torch.tensor(settings.std)
    assert pixels.shape == (2, 3, 24, 24)
    assert torch.allclose(pixels[1, :, 5, 5], expected, atol=1e-5)


def test_augmentation_depends_on_the_generator_alone(processor: CCLMProcessor) -> None:
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")

    def draw(seed: int) -> torch.Tensor:
        return processor.images([image], train=True, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    first = draw(1)
    torch.rand(5)
    assert torch.equal(draw(1), first) and not torch.equal(draw(2), first)
    torch.set_rng_state(before)
    assert torch.equal(torch.get_rng_state(), before)


def test_saved_and_loaded_it_prepares_the_same(processor: CCLMProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = CCLMProcessor.from_pretrained(tmp_path)
    image = Image.linear_gradient("L").convert("RGB")
    assert loaded.settings == processor.settings and loaded.max_tokens == 12
    got, expected = (each(images=[image], text=["ein Hund"]) for each in (loaded, processor))
    assert got.keys() == {"pixel_values", "input_ids", "attention_mask"}
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_one_image_or_text_is_a_batch_of_one(processor: CCLMProcessor) -> None:
    image = Image.linear_gradient("L").convert("RGB")
    one, many = processor(images=image, text="ein Hund"), processor(images=[image], text=["ein Hund"])
    assert one["pixel_values"].shape == (1, 3, 24, 24) and all(torch.equal(one[name], many[name]) for name in many)


def test_transparent_is_white(processor: CCLMProcessor) -> None:
    glass, white = Image.new("RGBA", (24, 24), (200, 0, 0, 0)), Image.new("RGB", (24, 24), "white")
    assert torch.equal(processor.images([glass]), processor.images([white]))


def test_a_folder_without_a_processor_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no processor_config.json in .*; a pretrained folder"):
        CCLMProcessor.from_pretrained(tmp_path)
