"""Retrieval evaluation: directions, languages, reranking, and what it refuses."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from PIL import Image

from cclm.evaluation.encoding import image_identity, pixel_views
from cclm.evaluation.report import Provenance, Report
from cclm.evaluation.retrieval import RetrievalOptions, directions, evaluate_retrieval
from cclm.models.encoding import EncodingOptions, encode_images, encode_texts, match_scores
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.types import Record, View
from tests.evaluation.conftest import scores_of

PROVENANCE = Provenance("runs/tiny", "0" * 64, "data/tiny/test", "1" * 64, "2026-01-02")


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def evaluate(
    model: torch.nn.Module, processor: CCLMProcessor, records: Iterable[Record], options: RetrievalOptions | None = None
) -> Report:
    return evaluate_retrieval(model, processor, records, pixel_views(model, processor, decode), PROVENANCE, options)


def test_directions_and_their_galleries() -> None:
    # Text 0 -> image 0 first; text 1 -> image 1 second; text 2 -> image 2 third. Image 3 has no text.
    images = torch.eye(4)
    texts = torch.tensor([[0.9, 0.1, 0.2, 0.0], [0.8, 0.5, 0.1, 0.0], [0.5, 0.6, 0.4, 0.0], [0.3, 0.9, 0.0, 0.0]])
    scores = scores_of(images, texts, torch.tensor([0, 1, 2, 1]))
    to_image, to_text = scores["text_to_image"], scores["image_to_text"]
    assert (to_image["queries"], to_image["gallery"]) == (4, 4)
    assert (to_text["queries"], to_text["gallery"]) == (3, 4)
    assert to_image["R@1"] == 50.0 and to_image["median_rank"] == 1.5
    assert to_image["mean_reciprocal_rank"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1) / 4)
    # Image 0 finds text 0; image 1 finds text 3, its own though not its first; image 2 finds text 2.
    assert to_text["R@1"] == 100.0
    assert to_image["chance"]["R@1"] == pytest.approx(25.0)
    assert to_text["chance"]["R@1"] == pytest.approx(100 * (1 + 2 + 1) / 3 / 4)
    assert not any(name.endswith("_interval") for name in to_image)


def test_a_text_of_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the gallery of 2"):
        directions(torch.tensor([0, 2]), 2)


def test_report_equals_metrics_of_embeddings_encoded_one_by_one(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record]
) -> None:
    options = RetrievalOptions(draws=50, encoding=EncodingOptions(image_batch=7, text_batch=5))
    report = evaluate(model, processor, iter(records), options)
    model.eval()
    with torch.inference_mode():
        images = torch.cat([model.encode_image(processor.images([decode(r.image)])).embedding for r in records])
        texts, owners = [], []
        for row, record in enumerate(records):
            for caption in record.captions["en"]:
                tokens = processor.texts([caption])
                texts.append(model.encode_text(tokens.input_ids, tokens.attention_mask).embedding)
                owners.append(row)
    expected = scores_of(images, torch.cat(texts), owners, draws=50)
    for direction, scores in expected.items():
        assert report.languages["en"][direction]["R@5"] == pytest.approx(scores["R@5"])
        assert report.languages["en"][direction]["R@5_interval"] == pytest.approx(scores["R@5_interval"])
        assert report.languages["en"][direction]["median_rank"] == pytest.approx(scores["median_rank"])
    assert list(report.languages) == ["en", "de", "fr"]
    assert report.languages["de"]["text_to_image"]["queries"] == 12
    assert report.languages["de"]["text_to_image"]["gallery"] == 24
    assert report.texts["de"] == {"source": "captions", "left_out": 0, "images_without_text": 12}
    assert report.texts["fr"]["source"] == "parallel"


def test_views_may_come_from_states_computed_before(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record]
) -> None:
    with torch.inference_mode():
        states = {r.key: model.eval().image_states(processor.images([decode(r.image)])) for r in records}

    def look_up(batch: tuple[Record, ...]) -> View:
        return model.encode_image_states(torch.cat([states[record.key] for record in batch]))

    bare = [replace(record, image=None) for record in records]
    options = RetrievalOptions(("en",), rerank=3, draws=0, encoding=EncodingOptions(image_batch=1))
    from_states = evaluate_retrieval(model, processor, bare, look_up, PROVENANCE, options)
    assert from_states.languages == evaluate(model, processor, records, options).languages


def test_mode_of_the_model_comes_back(model: CCLMModel, processor: CCLMProcessor, records: list[Record]) -> None:
    model.train()
    evaluate(model, processor, records[:3], RetrievalOptions(draws=0))
    assert model.training
    model.eval()
    evaluate(model, processor, records[:3], RetrievalOptions(draws=0))
    assert not model.training


@pytest.fixture(scope="module")
def encoded(model: CCLMModel, processor: CCLMProcessor, records: list[Record]) -> tuple:
    options = EncodingOptions(image_batch=9, text_batch=8, pair_batch=11)
    views = pixel_views(model, processor, decode)
    images = encode_images(model, records, views, image_identity, options, keep_states=True)
    texts = [text for record in records for text in record.captions["en"]]
    return images, encode_texts(model, processor, texts, options, keep_states=True), texts, options


def test_match_scores_equal_one_pair_at_a_time(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record], encoded: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cclm.models.encoding.MATCH_IMAGES", 5)
    images, texts, strings, options = encoded
    generator = torch.Generator().manual_seed(0)
    pairs = torch.stack(
        [torch.randint(24, (60,), generator=generator), torch.randint(40, (60,), generator=generator)], 1
    )
    scores = match_scores(model, images, texts, pairs, options)
    model.eval()
    with torch.inference_mode():
        for (image, text), score in zip(pairs.tolist(), scores.tolist(), strict=True):
            tokens = processor.texts([strings[text]])
            view = model.encode_image(processor.images([decode(records[image].image)]))
            fused = model.fuse(model.encode_text(tokens.input_ids, tokens.attention_mask), view)
            logits = model.match_logits(fused)[0]
            assert score == pytest.approx(float(logits[1] - logits[0]), abs=1e-4)
    assert scores.std() > 1e-3


def test_equal_files_tie_before_and_after_reranking(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record]
) -> None:
    copies = [replace(record, key=f"{record.key}-copy", captions={}, parallel={}) for record in records]
    # Batches of 7: the copy of an image stands in another batch, at another place, beside other images.
    options = RetrievalOptions(("en",), rerank=48, draws=0, encoding=EncodingOptions(image_batch=7, pair_batch=5))
    once = evaluate(model, processor, records, options).languages["en"]
    twice = evaluate(model, processor, [*records, *copies], options).languages["en"]
    for way in ("text_to_image", "text_to_image_rerank"):
        # Every rank r becomes the mean of 2r - 1 and 2r.
        assert twice[way]["median_rank"] == pytest.approx(2 * once[way]["median_rank"] - 0.5)
        assert twice[way]["R@10"] == pytest.approx(once[way]["R@5"])
    assert twice["image_to_text"]["median_rank"] == once["image_to_text"]["median_rank"]


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_rerank_of_everything_is_the_order_of_the_matching_head_and_the_weighted_similarity(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record], encoded: tuple, weight: float
) -> None:
    options = RetrievalOptions(languages=("en",), rerank=1000, rerank_similarity=weight, draws=20)
    report = evaluate(model, processor, records, options)
    images, texts, strings, encoding = encoded
    owners = torch.tensor([row for row, record in enumerate(records) for _ in record.captions["en"]])
    grid = torch.cartesian_prod(torch.arange(len(records)), torch.arange(len(strings)))
    matches = match_scores(model, images, texts, grid, encoding).view(len(records), len(strings))
    similarity = images.embeddings @ texts.embeddings.T
    assert (weight * model.scale() * similarity).std() > 0.1 * matches.std() or not weight  # it can change the order
    matches = matches + weight * model.scale() * similarity
    brute = (matches.T.gather(1, owners[:, None]) < matches.T).sum(1) + 1
    scores = report.languages["en"]
    assert scores["text_to_image_rerank"]["R@10"] == pytest.approx(100 * float((brute <= 10).double().mean()), abs=3)
    assert scores["text_to_image_rerank"]["median_rank"] == pytest.approx(float(brute.double().quantile(0.5)), abs=1)
    assert scores["text_to_image_rerank"]["R@10"] != scores["text_to_image"]["R@10"]
    assert scores["image_to_text_rerank"]["gallery"] == len(strings)
    assert "1000 best" in report.protocol["rerank"]
    assert ("log-odds alone" if not weight else "log-odds + 0.5 x similarity") in report.protocol["rerank"]
    assert report.mean("text_to_image_rerank")["R@1"] == scores["text_to_image_rerank"]["R@1"]


def test_rerank_with_one_candidate_changes_nothing(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record]
) -> None:
    options = RetrievalOptions(languages=("en", "fr"), rerank=1, draws=0)
    report = evaluate(model, processor, records, options)
    for scores in report.languages.values():
        for direction in ("text_to_image", "image_to_text"):
            assert scores[f"{direction}_rerank"]["R@5"] == pytest.approx(scores[direction]["R@5"])
            assert scores[f"{direction}_rerank"]["median_rank"] == pytest.approx(scores[direction]["median_rank"])


def test_choice_of_texts(model: CCLMModel, processor: CCLMProcessor, records: list[Record]) -> None:
    def queries(texts: str) -> dict[str, int]:
        options = RetrievalOptions(texts=texts, draws=0)
        report = evaluate(model, processor, records, options)
        return {language: scores["text_to_image"]["queries"] for language, scores in report.languages.items()}

    assert queries("auto") == {"en": 48, "de": 12, "fr": 24}
    assert queries("captions") == {"en": 48, "de": 12}
    assert queries("parallel") == {"en": 24, "fr": 24}


def test_repeated_and_blank_texts_are_counted(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record]
) -> None:
    changed = [replace(records[0], captions={"en": ["one", "one", "  ", "two"]}), *records[1:4]]
    report = evaluate(model, processor, changed, RetrievalOptions(("en",), draws=0))
    assert report.texts["en"]["left_out"] == 2
    assert report.languages["en"]["text_to_image"]["queries"] == 2 + sum(len(r.captions["en"]) for r in records[1:4])


def test_bfloat16_is_close_to_float32(model: CCLMModel, processor: CCLMProcessor, records: list[Record]) -> None:
    def embeddings(precision: str) -> torch.Tensor:
        options = EncodingOptions(precision=precision)
        return encode_texts(model, processor, ["a red block", "blue"], options).embeddings

    exact, rough = embeddings("float32"), embeddings("bfloat16")
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    assert torch.allclose(exact, rough, atol=0.05)


def test_unknown_language_names_those_present(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record]
) -> None:
    with pytest.raises(ValueError, match=r"no texts in language sw .* present: en, de, fr"):
        evaluate(model, processor, records, RetrievalOptions(("en", "sw")))


def test_empty_dataset(model: CCLMModel, processor: CCLMProcessor) -> None:
    with pytest.raises(ValueError, match="data is empty"):
        evaluate(model, processor, [])


def test_text_records_and_broken_images_are_named(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record]
) -> None:
    with pytest.raises(ValueError, match="record t#1 has no image"):
        evaluate(model, processor, [Record("t#1", parallel={"en": "x"})])

    def refuse(data: bytes) -> Image.Image:
        raise ValueError("image over 64 megapixels")

    with pytest.raises(ValueError, match="record r00: image over 64 megapixels"):
        evaluate_retrieval(model, processor, records, pixel_views(model, processor, refuse), PROVENANCE)


def test_rerank_needs_a_matching_head(model: CCLMModel, processor: CCLMProcessor, records: list[Record]) -> None:
    class DualEncoder(torch.nn.Module):
        encode_image, encode_text = model.encode_image, model.encode_text

    with pytest.raises(ValueError, match="DualEncoder has no matching head"):
        evaluate(DualEncoder(), processor, records, RetrievalOptions(rerank=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rerank": -1}, "rerank is -1"),
        ({"rerank_similarity": -0.5}, "rerank_similarity is -0.5"),
        ({"rerank_similarity": float("nan")}, "rerank_similarity is nan"),
        ({"draws": -1}, "draws is -1"),
        ({"texts": "x"}, "auto"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetrievalOptions(**options)
