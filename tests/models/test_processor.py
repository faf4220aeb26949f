"""The processor against the tokenizer and the transforms it wraps."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cclm.data.tokenizer import train_tokenizer
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.models.text_cleaning import clean_text
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


def test_text_cleaning_is_the_originals(shared: Path) -> None:
    cases = torch.load(shared / "oracle" / "cclm_swin" / "expected.pt", weights_only=True)["text_norm"]
    assert len(cases) == 5
    for case in cases:
        for cleaning, words in (("caption", 30), ("caption", 3), ("question", 30)):
            assert clean_text(case["raw"], cleaning, words) == case[f"{cleaning}{words}"]


def test_cleaning_by_example() -> None:
    assert clean_text("<person>  Plays 'BALL'-games/now; ", "caption", None) == "person plays ball games now"
    assert clean_text("<person>  Plays 'BALL'-games; ", "question", None) == "<person>  plays  ball  games"
    assert clean_text("Is  it A.", "question", 2) == "is "  # the empty word between two blanks counts, as it did
    assert clean_text("One  TWO three", "none", None) == "One  TWO three"
    assert clean_text(" ?! ", "caption", 30) == ""


def test_texts_are_cleaned_before_they_are_tokenised(processor: CCLMProcessor) -> None:
    cleaning = CCLMProcessor(processor.tokenizer, processor.settings, 12, "caption", 2)
    assert torch.equal(cleaning.texts(["A, dog! runs"]).input_ids, processor.texts(["a dog"]).input_ids)
    assert torch.equal(
        cleaning.texts(["A, dog! runs"], clean=False).input_ids, processor.texts(["A, dog! runs"]).input_ids
    )
    assert cleaning.texts(["..."]).input_ids.tolist() == [[0, 2]]  # nothing is left: an empty text
    assert cleaning.texts(["...", "a dog"]).attention_mask.sum(1).tolist()[0] == 2


def test_cleaning_is_saved_and_old_folders_have_none(processor: CCLMProcessor, tmp_path: Path) -> None:
    CCLMProcessor(processor.tokenizer, processor.settings, 12, "question", 30).save_pretrained(tmp_path)
    loaded = CCLMProcessor.from_pretrained(tmp_path)
    assert (loaded.text_cleaning, loaded.max_words) == ("question", 30)
    path = tmp_path / "processor_config.json"
    stored = json.loads(path.read_text())
    del stored["text_cleaning"], stored["max_words"]
    path.write_text(json.dumps(stored))
    loaded = CCLMProcessor.from_pretrained(tmp_path)
    assert (loaded.text_cleaning, loaded.max_words) == ("none", None)


def test_wrong_texts_and_settings_are_one_line(processor: CCLMProcessor) -> None:
    for texts in ("a dog", []):
        with pytest.raises(ValueError, match="give a list of at least one"):
            processor.texts(texts)
    with pytest.raises(ValueError, match="text_cleaning is 'captions'; allowed: none, caption, question"):
        CCLMProcessor(processor.tokenizer, text_cleaning="captions")
    with pytest.raises(ValueError, match="max_words is 0; give 1 or more"):
        CCLMProcessor(processor.tokenizer, max_words=0)


def test_cropped_images_are_neither_cropped_nor_flipped_again(processor: CCLMProcessor) -> None:
    image = Image.linear_gradient("L").rotate(90).resize((48, 48)).convert("RGB")  # a flip would be seen
    plain = processor.images([image])
    settings = replace(processor.settings, augment=False)
    still = CCLMProcessor(processor.tokenizer, settings, 12)
    assert torch.equal(still.images([image], True, torch.Generator().manual_seed(0), cropped=True), plain)
    seen = [processor.images([image], True, torch.Generator().manual_seed(seed), cropped=True) for seed in range(12)]
    assert torch.equal(seen[3], processor.images([image], True, torch.Generator().manual_seed(3), cropped=True))
    assert 1 < len({tuple(pixels.flatten().tolist()) for pixels in seen}) < 12
    for pixels in seen:  # columns still rise from one side to the other, whatever happened to the colours
        columns = pixels[0, 0].mean(0)
        assert (columns.diff().sign() == plain[0, 0].mean(0).diff().sign()[0]).float().mean() > 0.5


def test_what_a_call_refuses_is_one_line(processor: CCLMProcessor) -> None:
    whole, cut = Image.linear_gradient("L"), io.BytesIO()
    whole.convert("RGB").save(cut, "JPEG")
    broken = Image.open(io.BytesIO(cut.getvalue()[:-60]))
    for given, message in (
        ({}, "neither images nor text given; give at least one of them"),
        ({"images": "a dog"}, r"images are 'a dog'; give a list of at least one PIL image \(texts go in text=\)"),
        ({"images": []}, r"images are \[\]; give a list of at least one PIL image"),
        ({"images": [whole, "x.jpg"]}, r"images\[1\] is of type str; give PIL images, Image.open\(path\)"),
        ({"images": [whole, broken]}, r"images\[1\]: image not readable; give another or leave it out"),
        ({"images": Image.new("RGB", (3, 0))}, r"images\[0\]: image without pixels; give another or leave it out"),
        ({"text": []}, r"texts are \[\]; give a list of at least one"),
        ({"text": ["a", None]}, r"texts\[1\] is of type NoneType; give strings"),
        ({"text": ["a", "b", "\udc00"]}, r"texts\[2\] holds half a character, '\\udc00'; decode it again or remove it"),
    ):
        for cleaning in ("none", "caption"):
            with pytest.raises(ValueError, match=f"^{message}"):
                CCLMProcessor(processor.tokenizer, processor.settings, 12, cleaning)(**given)


HUB_NAMES = """
import sys
from cclm import CCLMModel, CCLMProcessor
model = CCLMModel.from_pretrained("someone/pretrained", revision="draft")
assert model.embed_texts(["a dog"]).shape == (1, 8) and model.processor.max_tokens == 24
assert CCLMProcessor.from_pretrained("someone/pretrained", revision="draft").max_tokens == 24
for load in (CCLMModel.from_pretrained, CCLMProcessor.from_pretrained):
    for name in ("someone/pretrained", "someone/other"):  # no main revision was ever fetched; nothing at all
        try:
            load(name)
        except ValueError as error:
            assert name in str(error) and "check the" in str(error) and "\\n" not in str(error), error
        else:
            sys.exit(f"{name} was loaded")
"""


def test_hub_names_are_loaded_from_the_cache_at_the_models_revision(pretrained: Path, tmp_path: Path) -> None:
    """Offline, in a process of its own: the library reads both settings once."""
    cached = tmp_path / "models--someone--pretrained"
    shutil.copytree(pretrained, cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "draft").write_text("a" * 40)
    told = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", HUB_NAMES], env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
