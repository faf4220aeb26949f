"""Heat against what happens as a patch or a token is there more often; words, drawings, and what is left alone."""

from __future__ import annotations

import io
import logging
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from cclm.models.explanation import match_heat, words_of
from cclm.models.heatmap import TILE, font_of, overlay, sheet
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.types import Explanation, View
from tests.data.conftest import picture
from tests.models.conftest import TINY

SWIN = {"patch_size": 4, "window_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
BACKBONES = {
    "convolutional": {"backbone": "test_resnet"},
    "vit": {"backbone": "test_vit", "backbone_options": {"patch_size": 8}},
    "swin": {"backbone": "swin_tiny_patch4_window7_224", "backbone_options": SWIN},
}
KINDS = {
    "first": {},
    "mean": {"pooling": "mean", "fuse_embeddings": True, "pre_norm": True},
}
COPIES = 500


def model_of(processor: CCLMProcessor, **settings: object) -> CCLMModel:
    torch.manual_seed(0)
    size = processor.image_size
    config = CCLMConfig(vocab_size=processor.vocab_size, **{**TINY, "image_size": size, "dropout": 0.0, **settings})
    model = CCLMModel(config).eval()
    model.processor = processor
    return model


@pytest.fixture(scope="module")
def processor(tiny_processor: CCLMProcessor) -> CCLMProcessor:
    return CCLMProcessor(tiny_processor.tokenizer, ImageSettings(image_size=64), max_tokens=24)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.open(io.BytesIO(picture(3, size=64, kind="PNG")))


@torch.no_grad()
def log_odds(model: CCLMModel, states: torch.Tensor, target: View, patches: list[int], tokens: list[int]) -> float:
    """Of a match where every patch, and every token, is there so many times."""
    times = torch.tensor(patches)
    mean = (states[:, 1:] * times[:, None]).sum(1, keepdim=True) / times.sum()
    context = model.encode_image_states(torch.cat([mean, states[:, 1:]], 1))
    rows = torch.repeat_interleave(torch.arange(len(patches) + 1), torch.tensor([COPIES, *patches]))
    seen = View(context.states[:, rows], context.mask[:, rows], context.embedding)
    words = torch.repeat_interleave(torch.arange(len(tokens)), torch.tensor(tokens))
    read = target.states[:, words]
    mask = torch.ones(read.shape[:2], dtype=torch.bool)
    fused = model.fuse(View(read, mask, model.text_embedding(read, mask)), seen)
    logits = model.match_logits(fused)[0]
    return float(logits[1] - logits[0])


@pytest.mark.parametrize("kind", KINDS)
def test_heat_is_what_more_of_a_patch_and_of_a_word_do(processor: CCLMProcessor, image: Image.Image, kind: str) -> None:
    model = model_of(processor, **KINDS[kind]).double()
    with torch.no_grad():
        states = model.image_states(processor.images([image]))
        tokens = processor.texts(["ein Hund 1"])
        target = model.encode_text(tokens.input_ids, tokens.attention_mask)
    count, length = states.shape[1] - 1, tokens.input_ids.shape[1]
    words = [[1], list(range(2, length - 1))]
    found = match_heat(model, states, target, words)
    step, once = COPIES // 50, math.log(1 + 1 / 50)

    def odds(patch: int | None, word: list[int]) -> float:
        patches = [COPIES + step * (place == patch) for place in range(count)]
        own = [50 + (place in word) for place in range(length)]
        return log_odds(model, states, target, patches, own)

    plain = odds(None, [])
    assert found.match == pytest.approx(1 / (1 + math.exp(-plain)), abs=1e-6)
    for patch in range(count):
        slope = (odds(patch, []) - plain) / once
        assert found.patches[patch] == pytest.approx(max(0, slope), rel=0.05, abs=1e-3)
        for word, own in enumerate(words):
            mixed = (odds(patch, own) - odds(patch, []) - odds(None, own) + plain) / once**2
            part = slope * len(own) / length + mixed
            assert found.words[word, patch] == pytest.approx(max(0, part), rel=0.1, abs=3e-3)
    assert found.patches.max() > 0.01 and found.words.max() > 0.01  # else nothing was compared


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_on_its_grid(processor: CCLMProcessor, image: Image.Image, backbone: str) -> None:
    model = model_of(processor, **BACKBONES[backbone])
    found = model.explain(image, "zwei Hunde 12")
    assert found.tokens == ("zwei", "Hunde", "12")
    side = found.overall.shape[0]
    assert found.heat.shape == (3, side, side) and side > 1 and found.heat.dtype == np.float32
    assert found.heat.min() >= 0 and found.heat.max(axis=(1, 2)) == pytest.approx(1) and found.overall.max() == 1
    assert found.shares.sum() == pytest.approx(1) and found.match == pytest.approx(
        model.score(image, "zwei Hunde 12")[0], abs=1e-6
    )
    # Rows and columns of the grid are those of the picture: what changes in a corner changes the states there most.
    changed = np.array(image)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corner = changed.copy()
        corner[row * 48 : row * 48 + 16, column * 48 : column * 48 + 16] = 255 - corner[row * 48, column * 48]
        with torch.no_grad():
            before, after = (model.image_states(processor.images([i]))[0, 1:] for i in (image, Image.fromarray(corner)))
        difference = (after - before).norm(dim=1).view(side, side)
        place = divmod(int(difference.argmax()), side)
        assert (place[0] >= side / 2, place[1] >= side / 2) == (bool(row), bool(column))


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_left_behind(processor: CCLMProcessor, image: Image.Image, training: bool) -> None:
    model = model_of(processor, dropout=0.5).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = model.explain(image, "ein Hund")
    with torch.inference_mode():
        again = model.explain(image, "ein Hund")
    assert np.array_equal(first.heat, again.heat) and model.training is training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    frozen = model_of(processor, dropout=0.5).requires_grad_(False)
    assert np.allclose(frozen.explain(image, "ein Hund").heat, first.heat, atol=1e-5)


def test_what_cannot_be_explained(processor: CCLMProcessor, image: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"no match head \(its heads: mlm\)"):
        model_of(processor, heads=["mlm"]).explain(image, "ein Hund")
    with pytest.raises(ValueError, match=r"texts\[0\] is blank"):
        model_of(processor).explain(image, "  ")
    two = model_of(processor, images_per_text=2)
    with pytest.raises(ValueError, match="about 1 image.* the model reads 2"):
        two.explain(image, "ein Hund")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ein Hund, zwei  Boote!", ["ein", "Hund,", "zwei", "Boote!"]),
        ("don't well-known", ["don't", "well-known"]),
        ("👩🏽\u200d🌾 Hund", ["👩🏽\u200d🌾", "Hund"]),
        ("كلب صغير", ["كلب", "صغير"]),
    ],
)
def test_words_are_those_between_blanks(processor: CCLMProcessor, text: str, words: list[str]) -> None:
    found = list(words_of(processor, text))
    assert [word for word, _ in found] == words
    rows = [row for _, own in found for row in own]
    assert rows == list(range(1, len(processor.tokens([text])[0]) - 1))  # all but the first and the last token


def test_words_of_a_cut_text(processor: CCLMProcessor) -> None:
    found = list(words_of(processor, "Hund " * 100))
    assert max(row for _, own in found for row in own) == processor.max_tokens - 2


def test_pieces_of_a_text_without_blanks(tmp_path_factory: pytest.TempPathFactory) -> None:
    from cclm.data.tokenizer import train_tokenizer

    texts = ["黑狗在雪地里跑", "白狗在水边", "黑猫在雪地里", "狗在跑", "alpha beta"] * 20
    own = CCLMProcessor(train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"), 28), ImageSettings(image_size=32))
    found = [word for word, _ in words_of(own, "黑狗在雪地里跑 alpha")]
    assert "".join(found[:-1]) == "黑狗在雪地里跑" and len(found) > 3 and found[-1] == "alpha"


def explanation(*tokens: str) -> Explanation:
    heat = np.zeros((len(tokens), 4, 4), np.float32)
    heat[:, 0, 3] = 1
    return Explanation(tokens, heat, np.full(len(tokens), 1 / len(tokens), np.float32), heat[0], 0.5)


def test_overlay_is_bright_where_it_is_hot(image: Image.Image) -> None:
    grey = Image.new("RGB", (80, 40), (128, 128, 128))
    drawn = np.asarray(overlay(grey, explanation("a").overall)).mean(-1)
    assert drawn.shape == (40, 80) and drawn[2, 77] > drawn[2, 2] + 50
    lightness = [drawn[2, column] for column in (45, 55, 65, 77)]
    assert all(a <= b for a, b in pairwise(lightness))
    for wrong in (np.full((2, 2), 1.5), np.full((2, 2), np.nan), np.zeros(3), np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"cannot be drawn; give \(h, w\) numbers from 0 to 1"):
            overlay(image, wrong)


def test_sheet_has_a_tile_for_each_word(image: Image.Image) -> None:
    few, many = (sheet(image, explanation(*["Hund"] * count)) for count in (1, 5))
    assert few.width // TILE == 3 and many.height > 1.9 * few.height
    words = (
        np.asarray(sheet(image, explanation("Hund")).convert("L")),
        np.asarray(sheet(image, explanation("Katze")).convert("L")),
    )
    assert np.abs(words[0].astype(int) - words[1]).max() > 100  # the word is on it


def test_words_that_no_font_has_are_numbered_and_told(image: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    private = "\N{LATIN SMALL LETTER A}\U0010fffd"
    assert font_of(private) is None and font_of("Hund") is not None
    with caplog.at_level(logging.WARNING):
        drawn = sheet(image, explanation("Hund", private))
    assert f"numbered: 2 {private}" in caplog.text
    assert np.array_equal(np.asarray(drawn), np.asarray(sheet(image, explanation("Hund", "2"))))
