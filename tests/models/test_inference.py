"""embed_images, embed_texts and score against the parts called by hand, one input at a time; and what they refuse."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.models.encoding import EncodingOptions
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings
from tests.data.conftest import image_records, picture, sentence
from tests.models.conftest import TINY

SMALL = EncodingOptions(image_batch=3, text_batch=4, pair_batch=5)


@pytest.fixture
def model(pretrained: Path) -> CCLMModel:
    """As loaded: in eval mode, and with nothing said of its processor."""
    return CCLMModel.from_pretrained(pretrained)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.open(io.BytesIO(picture(number, size=24 + number, kind="PNG"))) for number in range(7)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of very different lengths, in three languages, one of them twice."""
    return [sentence(language, number) for number in (11, 0, 5) for language in ("en", "de", "fr")] + ["zwei", "zwei"]


@torch.inference_mode()
def by_hand(model: CCLMModel, image: Image.Image, text: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Embeddings (E,) of an image and a text, and the probability that they match."""
    inputs = model.processor(images=image, text=text)
    seen = model.encode_image(inputs["pixel_values"])
    read = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
    match = model.match_logits(model.fuse(read, seen)).softmax(-1)[0, 1]
    return seen.embedding[0].numpy(), read.embedding[0].numpy(), float(match)


def test_embeddings_are_those_of_one_input_at_a_time(
    model: CCLMModel, images: list[Image.Image], texts: list[str]
) -> None:
    seen, read = model.embed_images(images, encoding=SMALL), model.embed_texts(texts, encoding=SMALL)
    assert seen.shape == (7, 8) and read.shape == (11, 8) and seen.dtype == read.dtype == np.float32
    assert np.allclose(np.linalg.norm(seen, axis=1), 1, atol=1e-6)
    for row, image in zip(seen, images, strict=True):
        assert np.allclose(row, by_hand(model, image, "a")[0], atol=1e-5)
    for row, text in zip(read, texts, strict=True):
        assert np.allclose(row, by_hand(model, images[0], text)[1], atol=1e-5)
    assert np.ptp(seen, axis=0).max() > 1e-2 and np.ptp(read, axis=0).max() > 1e-2  # they do differ
    assert np.array_equal(read[-1], read[-2])


def test_scores_are_those_of_one_pair_at_a_time(model: CCLMModel, images: list[Image.Image], texts: list[str]) -> None:
    chosen = [images[number] for number in (0, 3, 0, 6, 5, 4, 0, 1, 2, 6, 3)]
    scores = model.score(chosen, texts, encoding=SMALL)
    expected = [by_hand(model, image, text)[2] for image, text in zip(chosen, texts, strict=True)]
    assert scores.dtype == np.float32 and np.allclose(scores, expected, atol=1e-5) and np.ptp(expected) > 1e-2
    beside_all = model.score(images[2], texts)
    assert np.allclose(beside_all, [by_hand(model, images[2], text)[2] for text in texts], atol=1e-5)
    of_all = model.score(images, "zwei Hunde")
    assert np.allclose(of_all, [by_hand(model, image, "zwei Hunde")[2] for image in images], atol=1e-5)


def test_keys_and_values_of_an_image_are_computed_once(
    model: CCLMModel, images: list[Image.Image], texts: list[str]
) -> None:
    seen = []
    handle = model.image_encoder.register_forward_hook(lambda module, inputs, states: seen.append(len(states)))
    projected, project = [], model.project
    model.project = lambda view: projected.append(len(view.mask)) or project(view)
    model.score([images[0], images[1]] * 5, texts[:10])
    handle.remove()
    assert sum(seen) == sum(projected) == 2


def test_a_file_is_what_is_in_it(model: CCLMModel, images: list[Image.Image], tmp_path: Path) -> None:
    glass = Image.new("RGBA", (20, 20), (200, 10, 10, 0))  # transparent: white, whoever opens it
    for number, image in enumerate([*images[:2], glass]):
        image.save(tmp_path / f"{number}.png")
    images[2].save(tmp_path / "2.webp", lossless=True)
    paths = [tmp_path / "0.png", str(tmp_path / "1.png"), str(tmp_path / "2.webp"), tmp_path / "2.png"]
    opened = [*images[:3], Image.open(tmp_path / "2.png")]
    got = model.embed_images(paths)
    assert np.allclose(got, model.embed_images(opened), atol=1e-6)
    assert np.allclose(got[3], model.embed_images(Image.new("RGB", (32, 32), "white"))[0], atol=1e-5)
    assert model.embed_images(paths[0]).shape == (1, 8) and model.embed_texts("a dog").shape == (1, 8)


def test_the_mode_and_precision_of_the_model_come_back(model: CCLMModel, images: list[Image.Image]) -> None:
    expected = model.embed_images(images)
    model.train()
    assert np.array_equal(model.embed_images(images), expected) and model.training
    half = model.embed_images(images, encoding=EncodingOptions(precision="bfloat16"))
    assert half.dtype == np.float32 and 0 < np.abs(half - expected).max() < 0.1


@pytest.mark.parametrize("changes", [{}, {"pooling": "mean", "fuse_embeddings": True}], ids=["first", "mean"])
@pytest.mark.parametrize(("kind", "digits"), [(torch.float16, 3e-3), (torch.bfloat16, 3e-2)], ids=str)
def test_a_model_in_half_precision_gives_the_same_to_its_rounding(
    tiny_processor: CCLMProcessor,
    images: list[Image.Image],
    tmp_path: Path,
    kind: torch.dtype,
    digits: float,
    changes: dict,
) -> None:
    torch.manual_seed(0)
    CCLMModel(CCLMConfig(vocab_size=tiny_processor.vocab_size, **TINY, **changes)).to(kind).save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    half, whole = CCLMModel.from_pretrained(tmp_path), CCLMModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert (half.dtype, whole.dtype) == (kind, torch.float32)
    for ask in (
        lambda model: model.embed_images(images),
        lambda model: model.embed_texts(["ein Hund", "a dog in the snow"]),
        lambda model: model.score(images, "a dog"),
    ):
        got, expected = ask(half), ask(whole)
        assert got.dtype == np.float32 and 0 < np.abs(got - expected).max() < digits
    assert np.array_equal(whole.to(kind).embed_images(images), half.embed_images(images))


def test_the_verbs_compute_in_float32_whatever_is_stored(pretrained: Path, tmp_path: Path) -> None:
    half, whole, photos = tmp_path / "half", tmp_path / "whole", tmp_path / "photos"
    for folder, kind in ((half, torch.float16), (whole, torch.float32)):
        CCLMModel.from_pretrained(pretrained).half().to(kind).save_pretrained(folder)
        CCLMProcessor.from_pretrained(pretrained).save_pretrained(folder)
    write_shards(image_records(12), photos)
    found = []
    for folder in (half, whole):
        out = tmp_path / f"{folder.name}_out"
        main(["embed", "--model", str(folder), "--source", str(photos), "--output", str(out), "--dtype", "float32"])
        data = ["--data", str(photos), "--rerank", "3", "--output", str(out / "report.json")]
        main(["evaluate", "retrieval", "--model", str(folder), *data])
        (file,) = (out / "img_emb").iterdir()
        found.append((np.load(file), json.loads((out / "report.json").read_text())["languages"]))
    assert np.allclose(found[0][0], found[1][0], atol=1e-6) and found[0][1] == found[1][1]
    assert len(found[0][0]) == 12


def test_the_processor_is_the_one_beside_the_weights(
    model: CCLMModel, pretrained: Path, tiny_processor: CCLMProcessor, images: list[Image.Image], tmp_path: Path
) -> None:
    assert model.processor.settings == tiny_processor.settings and model.processor is model.processor
    other = CCLMProcessor(tiny_processor.tokenizer, ImageSettings(image_size=32, mean=(0.1, 0.1, 0.1)), max_tokens=24)
    given = model.embed_images(images, other)
    assert np.abs(given - model.embed_images(images)).max() > 1e-3
    model.processor = other
    assert np.array_equal(model.embed_images(images), given)

    fresh = CCLMModel(model.config.__class__(vocab_size=tiny_processor.vocab_size, **TINY))
    with pytest.raises(ValueError, match="was not loaded from a folder, so it knows no processor; give one"):
        fresh.embed_texts(["a"])
    assert fresh.embed_texts(["a"], tiny_processor).shape == (1, 8)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no processor_config\.json in "):
        CCLMModel.from_pretrained(tmp_path).embed_texts(["a"])
    tiny = CCLMModel(CCLMConfig(vocab_size=50, **TINY))
    with pytest.raises(ValueError, match="use the tokenizer that the model was trained with"):
        tiny.processor = tiny_processor
    with pytest.raises(ValueError, match="use the tokenizer that the model was trained with"):
        tiny.embed_texts("a", tiny_processor)


def test_pictures_that_are_refused(model: CCLMModel, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(picture(1)[:-60])
    (tmp_path / "text.png").write_text("no picture")
    whole = Image.open(io.BytesIO(picture(2)))
    for given, message in (
        ([], "no images given"),
        (["nowhere.jpg"], r"images\[0\]: there is no file 'nowhere.jpg'"),
        ([tmp_path], r"images\[0\]: there is no file"),
        ([picture(1)], r"images\[0\] is of type bytes; give PIL images or paths"),
        ([tmp_path / "broken.jpg"], r"images\[0\], .*broken.jpg: image not readable; give another or leave it out"),
        (
            [whole, Image.open(tmp_path / "broken.jpg")],
            r"images\[1\]: image not readable; give another or leave it out",
        ),
        ([whole, whole, Image.new("RGB", (0, 4))], r"images\[2\]: image without pixels; give another"),
        (tmp_path / "text.png", r"text.png: image not readable"),
    ):
        with pytest.raises(ValueError, match=message):
            model.embed_images(given, encoding=EncodingOptions(image_batch=1))
        with pytest.raises(ValueError, match=message):
            model.score(given, ["a"] * (1 if isinstance(given, Path) else max(1, len(given))))


def test_texts_that_are_refused(model: CCLMModel, images: list[Image.Image]) -> None:
    for given, message in (
        ([], "no texts given"),
        (["a", " \n"], r"texts\[1\] is blank"),
        ("", r"texts\[0\] is blank"),
        (["a", float("nan")], r"texts\[1\] is of type float; give strings"),
        (["a", "a\ud800"], r"texts\[1\] holds half a character, '\\ud800'; decode it again or remove it"),
    ):
        with pytest.raises(ValueError, match=message):
            model.embed_texts(given)
    with pytest.raises(ValueError, match="7 images, 2 texts: no pairs"):
        model.score(images, ["a", "b"])
    cleaning = CCLMProcessor(model.processor.tokenizer, ImageSettings(image_size=32), 24, "caption")
    for ask in (model.embed_texts, partial(model.score, images)):
        with pytest.raises(
            ValueError, match=r"texts\[1\] is '!\?', of which the model's text cleaning \(caption\) leaves"
        ):
            ask(["a", "!?"] if ask == model.embed_texts else ["a", "!?"] + ["a"] * 5, cleaning)
    assert model.embed_texts(["!?"]).shape == (1, 8)  # the model's own processor cleans nothing


@pytest.mark.parametrize("tokens", [0, 2, -1])
def test_too_few_tokens_are_refused(model: CCLMModel, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"max_tokens is {tokens}; give 3 or more"):
        EncodingOptions(max_tokens=tokens)
    with pytest.raises(ValueError, match=f"max_tokens is {tokens}; a text has at least 3"):
        model.processor.texts(["a"], max_tokens=tokens)
    least = model.embed_texts(["ein Hund", "zwei Boote"], encoding=EncodingOptions(max_tokens=3))
    assert np.abs(least[0] - least[1]).max() > 1e-3


def test_models_without_the_part_that_is_asked_for(tiny_processor: CCLMProcessor, images: list[Image.Image]) -> None:
    bare = CCLMModel(CCLMConfig(vocab_size=tiny_processor.vocab_size, **{**TINY, "embedding_size": 0}, heads=["match"]))
    bare.processor = tiny_processor
    for ask in (lambda: bare.embed_images(images), lambda: bare.embed_texts("a")):
        with pytest.raises(ValueError, match=r"no projections \(config.embedding_size is 0\)"):
            ask()
    assert bare.score(images, "a dog").shape == (7,)  # matching needs no embeddings
    headless = CCLMModel(CCLMConfig(vocab_size=tiny_processor.vocab_size, **TINY, heads=["mlm"]))
    headless.processor = tiny_processor
    with pytest.raises(ValueError, match=r"no match head \(its heads: mlm\)"):
        headless.score(images, "a dog")
    assert headless.embed_images(images).shape == (7, 8)


def test_a_bar_is_drawn_on_request(model: CCLMModel, capsys: pytest.CaptureFixture) -> None:
    model.embed_texts(["a", "b"])
    assert capsys.readouterr().err == ""
    model.embed_texts(["a", "b"], progress=True)
    drawn = capsys.readouterr()
    assert "embedding texts" in drawn.err and not drawn.out
