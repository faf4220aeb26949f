"""What a model says of test sets: labels, ranks, two stages; pictures that lack; cells that are not made twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cclm.evaluation import pairs
from cclm.evaluation.adapters.cross_view import CrossView
from cclm.evaluation.cells import RunFolder
from cclm.evaluation.embedder import System
from cclm.evaluation.items import (
    Caption,
    Captions,
    Picture,
    Pictures,
    Question,
    Questions,
    Sentence,
    Sentences,
    TestSet,
)
from cclm.evaluation.pictures import PictureFiles, open_pictures
from cclm.evaluation.protocol import ClassificationProtocol, Protocol, RetrievalProtocol
from cclm.evaluation.report import Provenance
from cclm.evaluation.retrieval import RetrievalOptions, evaluate_retrieval
from cclm.evaluation.runner import RunOptions, cached, check, evaluate, evaluate_all
from cclm.evaluation.runs import read_run
from cclm.evaluation.scoring import ScoreOptions
from cclm.images import open_image
from cclm.models.encoding import EncodingOptions
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.storage import whole_file
from cclm.types import Record
from tests.evaluation.conftest import COLOURS, picture

OPTIONS = RunOptions(image_batch=5, scoring=ScoreOptions(draws=0))
NAMES = [f"{colour}-{number}.png" for number in range(3) for colour in COLOURS]


class Colours:
    """A dual encoder that needs no training: pictures are where their mean colour is, texts where their words are."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        self.seen.append(len(images))
        pixels = torch.tensor([image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)) for image in images])
        return F.normalize(pixels.float() - 110, dim=-1)

    def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
        assert language in ("en", "de")
        means = []
        for text in texts:
            colours = [torch.tensor(value, dtype=torch.float32) for name, value in COLOURS.items() if name in text]
            means.append(sum(colours) / len(colours) - 110 if colours else torch.ones(3))
        return F.normalize(torch.stack(means), dim=-1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    root.mkdir()
    for number, name in enumerate(NAMES):
        (root / name).write_bytes(picture(name.partition("-")[0], "wide", 7 * (number // 4)))
    return root


def captions(language: str = "en", names: Sequence[str] = NAMES, **protocol: object) -> Captions:
    return Captions(
        task="colours",
        language=language,
        protocol=RetrievalProtocol(name="official", about="", **protocol),
        split="test",
        captions=tuple(Caption(f"{name}#0", name, f"a {name.partition('-')[0]} block") for name in names),
        gallery=tuple(names),
    )


def questions(language: str, labels: tuple[str, ...], images: int = 1) -> Questions:
    rows = [
        Question(f"q{number}", tuple(NAMES[number : number + images]), f"{language} text {number % 3}", labels[0])
        for number in range(9)
    ]
    return Questions(
        task="asked",
        language=language,
        protocol=ClassificationProtocol(name="official", about=""),
        split="test",
        questions=tuple(rows),
        labels=labels,
    )


def system(model: object, sha256: str = "0") -> System:
    return System.of(model, "runs/some", "model", sha256)


def scores(found: object, way: str = "text_to_image") -> dict:
    return found.result.scores[way]


def test_each_picture_is_encoded_once_for_all_languages(folder: Path) -> None:
    model = Colours()
    with open_pictures(folder) as pictures:
        found = list(evaluate_all(system(model), [captions("en"), captions("de", NAMES[:8])], pictures, OPTIONS))
    assert model.seen == [5, 5, 2]
    assert [one.result.language for one in found] == ["en", "de"]
    assert [scores(one)["gallery"] for one in found] == [12, 8]
    # Any of the pictures of a colour may come first: three of them, of which one is right, or two.
    assert scores(found[0])["R@1"] == pytest.approx(100 / 3, abs=10) and scores(found[0])["R@5"] == 100
    assert found[0].result.system == "runs/some" and found[0].result.regime == "zero-shot"
    assert found[0].result.provenance["model_sha256"] == "0"


def test_equal_files_tie_wherever_they_stand(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / NAMES[0]).read_bytes())
    test = captions(names=[NAMES[0], *NAMES[1:4], "copy.png"])
    with open_pictures(folder) as pictures:
        model = Colours()
        found = evaluate(system(model), test, pictures, OPTIONS)
    item = next(item for item in found.items if item["id"] == f"{NAMES[0]}#0")
    assert model.seen == [4] and item["R@1"] == 0.5


def test_translated_tests_are_read_in_english(folder: Path) -> None:
    class English(Colours):
        def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
            assert language == "en"
            return super().embed_texts(texts, language)

    options = replace(OPTIONS, regime="translate-test", translator="some/model")
    with open_pictures(folder) as pictures:
        found = evaluate(system(English()), captions("de"), pictures, options)
    assert (found.result.language, found.result.regime) == ("de", "translate-test")
    assert "translated to English by some/model" in found.result.notes


def two_stages(model: CCLMModel, processor: CCLMProcessor, records: list[Record]) -> tuple[System, Captions]:
    model.processor = processor
    adapter = CrossView(model, EncodingOptions(image_batch=7, text_batch=5, pair_batch=6))
    test = Captions(
        task="blocks",
        language="en",
        protocol=RetrievalProtocol(name="official", about=""),
        split="test",
        captions=tuple(
            Caption(f"{record.key}#{number}", f"{record.key}.png", text)
            for record in records
            for number, text in enumerate(record.captions["en"])
        ),
        gallery=tuple(f"{record.key}.png" for record in records),
    )
    return replace(System.of(adapter, "tiny", "cclm", "0"), pair_settings={"match_score": "log_odds"}), test


@pytest.fixture
def blocks(records: list[Record], tmp_path: Path) -> Path:
    for record in records:
        (tmp_path / f"{record.key}.png").write_bytes(record.image)
    return tmp_path


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_two_stages_equal_those_of_evaluate_retrieval(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record], blocks: Path, weight: float
) -> None:
    tiny, test = two_stages(model, processor, records)
    wanted = evaluate_retrieval(
        model,
        processor,
        records,
        lambda batch: model.encode_image(processor.images([open_image(record.image) for record in batch])),
        Provenance("", "", "", "", ""),
        RetrievalOptions(("en",), rerank=6, rerank_similarity=weight, draws=0),
    ).languages["en"]
    with open_pictures(blocks) as pictures:
        plain = evaluate(tiny, test, pictures, OPTIONS)
        both = evaluate(tiny, test, pictures, replace(OPTIONS, rerank=6, rerank_similarity=weight))
    for way in ("text_to_image", "image_to_text"):
        for name in ("R@1", "R@5", "R@10", "median_rank", "mean_reciprocal_rank"):
            assert scores(plain, way)[name] == pytest.approx(wanted[way][name])
            assert scores(both, way)[name] == pytest.approx(wanted[f"{way}_rerank"][name])
    assert scores(plain) != scores(both)
    beside = " with 1 x similarity" if weight else ""
    assert f"the 6 best of each query reordered by the log-odds of the matching head{beside}" in both.result.notes
    assert not any("reordered" in note for note in plain.result.notes)
    assert not tiny.pairs._held  # let go of


def test_reranking_stays_within_folds(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record], blocks: Path
) -> None:
    tiny, test = two_stages(model, processor, records)
    options = replace(OPTIONS, rerank=6)
    with open_pictures(blocks) as pictures:
        folded = evaluate(tiny, replace(test, protocol=replace(test.protocol, folds=2)), pictures, options)
        halves = []
        for part in (test.gallery[:12], test.gallery[12:]):
            own = tuple(caption for caption in test.captions if caption.image in part)
            halves.append(evaluate(tiny, replace(test, gallery=part, captions=own), pictures, options))
    for way in ("text_to_image", "image_to_text"):
        mean = sum(scores(half, way)["R@1"] for half in halves) / 2
        assert scores(folded, way)["R@1"] == pytest.approx(mean)


def test_more_candidates_than_there_are_are_told_as_all(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record], blocks: Path
) -> None:
    tiny, test = two_stages(model, processor, records)
    few = replace(test, captions=tuple({caption.image: caption for caption in test.captions}.values()))
    some = replace(test, captions=test.captions[:3])
    with open_pictures(blocks) as pictures:
        notes = [evaluate(tiny, one, pictures, replace(OPTIONS, rerank=10_000)).result.notes[-1] for one in (few, some)]
    count = len(test.gallery)
    assert notes[0].startswith(f"all {count} of each query reordered by")
    assert notes[1].startswith(f"all {count} images and all 3 texts of each query reordered by")


def test_similarity_beside_no_second_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="rerank_similarity is given without rerank"):
        RunOptions(rerank_similarity=1.0)


class Pairs:
    """Scores a picture by how near its mean colour is to the text's, in whole numbers, so that some tie."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []
        self.asked = 0
        self.colours = Colours()

    def hold_images(self, images: Sequence[Image.Image]) -> None:
        self.held.append(self.colours.embed_images(images))

    def forget_images(self) -> None:
        self.held = []

    def score_pairs(self, texts: Sequence[str], pairs: Tensor, language: str) -> Tensor:
        self.asked += len(pairs)
        images, read = torch.cat(self.held), self.colours.embed_texts(texts, language)
        return (4 * images[pairs[:, 0]] * read[pairs[:, 1]]).sum(1).round()


def expected(test: Captions, scores: Tensor, same: Tensor) -> tuple[float, float]:
    """R@1 both ways of scores (T, N), where any of those that are best may come first; `same`: text of the image."""
    first = scores == scores.amax(1, keepdim=True)
    there = ((first & same).sum(1) / first.sum(1)).mean()
    first = scores == scores.amax(0)
    return 100 * float(there), 100 * float(((first & same).sum(0) / first.sum(0)).mean())


@pytest.mark.parametrize("folds", [1, 2])
def test_a_pair_scorer_alone_scores_every_pair(folder: Path, folds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", 30)  # two texts at once
    tests = [captions(language, folds=folds) for language in ("en", "de")]
    model = Pairs()
    with open_pictures(folder) as pictures:
        found = list(evaluate_all(system(model), tests, pictures, OPTIONS))
        model.hold_images([open_image(pictures.read(name)) for name in NAMES])
    texts = [caption.text for caption in tests[0].captions]
    rows = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    scores, same = model.score_pairs(texts, rows.flip(1), "en").view(12, 12), torch.eye(12).bool()
    parts = [slice(12 * fold // folds, 12 * (fold + 1) // folds) for fold in range(folds)]
    wanted = [expected(tests[0], scores[part, part], same[part, part]) for part in parts]
    for one in found:
        assert "every pair scored by the matching head" in one.result.notes
        for way, values in zip(("text_to_image", "image_to_text"), zip(*wanted, strict=True), strict=True):
            assert scores_of(one, way) == pytest.approx(sum(values) / folds)
        for item in one.items:
            assert len(item["ranked"]) == 12 // folds and item["scores"] == sorted(item["scores"], reverse=True)
    # 4 different texts in each fold, with all pictures of the fold; both languages; and those that were asked here
    assert model.asked == 2 * 4 * 12 + 144
    assert len({round(value) for value in scores.flatten().tolist()}) < 20


def scores_of(found: object, way: str) -> float:
    return scores(found, way)["R@1"]


def test_every_pair_equals_all_candidates_reranked(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record], blocks: Path
) -> None:
    tiny, test = two_stages(model, processor, records)
    with open_pictures(blocks) as pictures:
        wanted = evaluate(tiny, test, pictures, replace(OPTIONS, rerank=10_000))
        found = evaluate(replace(tiny, dual=None, texts=None), test, pictures, OPTIONS)
    assert found.result.notes[-1] == "every pair scored by the log-odds of the matching head"
    for way in ("text_to_image", "image_to_text"):
        for name in ("R@1", "R@5", "R@10", "mean_reciprocal_rank"):
            assert scores(found, way)[name] == pytest.approx(scores(wanted, way)[name])


def test_our_models_without_projections_score_every_pair(
    processor: CCLMProcessor, records: list[Record], blocks: Path
) -> None:
    tiny, test = two_stages(answering(processor, heads=["match"]), processor, records)
    tiny = replace(tiny, dual=None, texts=None)  # as open_cross_view does where there are none
    with open_pictures(blocks) as pictures:
        found = evaluate(tiny, test, pictures, OPTIONS)
    assert len({item["rank"] for item in found.items}) > 5


def test_a_pair_scorer_alone_has_no_second_stage(folder: Path) -> None:
    model = Pairs()
    with pytest.raises(ValueError, match="it embeds nothing to rerank the best of; leave rerank out"):
        check(system(model), [captions()], replace(OPTIONS, rerank=3))
    both = type("Both", (Pairs, Colours), {})()
    with pytest.raises(ValueError, match="without a similarity_scale"):
        check(system(both), [captions()], replace(OPTIONS, rerank=3, rerank_similarity=1.0))


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        ({"forget_images": None}, r"has score_pairs, but no forget_images; write forget_images\(self\)"),
        ({"hold_images": None}, "has score_pairs, but no hold_images"),
        ({"embed_texts": None}, "has embed_images, but no embed_texts"),
        (
            {"embed_texts": lambda self, texts: ...},
            r"embed_texts takes \(texts\); write embed_texts\(self, texts, lang",
        ),
        ({"score_pairs": lambda self, pairs: ...}, r"score_pairs takes \(pairs\); write score_pairs\(self, texts, pa"),
        ({"label": lambda self, images, asked, labels: ...}, "has label, but no check_labels"),
        ({"image_size": (32, 32)}, r"image_size is \(32, 32\); give pixels"),
    ],
)
def test_parts_of_a_protocol_are_refused_before_the_work(without: dict[str, object], reason: str) -> None:
    class Both(Colours):
        hold_images, forget_images, score_pairs = Pairs.hold_images, Pairs.forget_images, Pairs.score_pairs

    with pytest.raises(ValueError, match=reason):
        system(type("Model", (Both,), without)())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            lambda rows: rows * 1.01,
            r"4 embeddings that are not of unit norm, first row 0 of 1.01; return torch.nn.func",
        ),
        (lambda rows: torch.eye(len(rows)), "gave embeddings of width 4, after others of 3; all images and texts must"),
        (lambda rows: rows[:-1], "gave 3 embeddings for 4; give one for each"),
        (lambda rows: rows[0], r"must have shape \(rows, width\)"),
        (lambda rows: rows / 0, "4 of 4 embeddings hold NaN or infinity"),
        (lambda rows: [["a"]] * 4, "embed_texts gave a list that is no array of numbers"),
        (lambda rows: None, "embed_texts gave a NoneType that is no array of numbers"),
        (lambda rows: [[1.0], [0.0, 1.0]], "embed_texts gave a list that is no array of numbers"),
        (lambda rows: rows.numpy(), None),
        (lambda rows: rows.tolist(), None),
        (lambda rows: list(rows), None),
        (lambda rows: rows.double().requires_grad_(), None),
    ],
)
def test_embeddings_are_looked_at_where_they_come_in(
    folder: Path, changed: Callable[[Tensor], object], reason: str | None
) -> None:
    class Changed(Colours):
        def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
            return changed(super().embed_texts(texts, language))

    with open_pictures(folder) as pictures:
        if reason is None:
            wanted = evaluate(system(Colours()), captions(), pictures, OPTIONS).result.scores
            assert evaluate(system(Changed()), captions(), pictures, OPTIONS).result.scores == wanted
        else:
            with pytest.raises(ValueError, match=reason) as error:
                evaluate(system(Changed()), captions(), pictures, OPTIONS)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (lambda found: found[:, None], r"score_pairs gave the shape \(48, 1\) for 48 pairs"),
        (lambda found: found / 0, "score_pairs gave NaN or infinity"),
        (lambda found: {}, "score_pairs gave a dict that is no array of numbers"),
    ],
)
def test_scores_of_pairs_are_looked_at_where_they_come_in(
    folder: Path, changed: Callable[[Tensor], object], reason: str
) -> None:
    class Changed(Pairs):
        def score_pairs(self, texts: Sequence[str], pairs: Tensor, language: str) -> Tensor:
            return changed(super().score_pairs(texts, pairs, language))

    with open_pictures(folder) as pictures, pytest.raises(ValueError, match=reason):
        evaluate(system(Changed()), captions(), pictures, OPTIONS)


def answering(processor: CCLMProcessor, seed: int = 0, **settings: object) -> CCLMModel:
    torch.manual_seed(seed)
    model = CCLMModel(
        CCLMConfig(
            vocab_size=processor.vocab_size,
            hidden_size=16,
            text_layers=1,
            fusion_layers=2,
            answer_layers=1,
            num_heads=2,
            intermediate_size=32,
            embedding_size=0,
            max_positions=40,
            backbone="test_resnet",
            image_size=32,
            initializer_range=0.5,
            **settings,
        )
    )
    model.processor = processor
    return model.eval()


@pytest.mark.parametrize("images", [1, 2])
def test_labels_are_the_classifiers_by_name_whatever_their_order(
    processor: CCLMProcessor, folder: Path, images: int
) -> None:
    model = answering(processor, 2, heads=["classify"], labels=["no", "maybe", "yes"], images_per_text=images)
    adapter = CrossView(model, EncodingOptions(pair_batch=4))
    tests = [questions(language, ("yes", "no", "maybe"), images) for language in ("en", "de")]
    with open_pictures(folder) as pictures:
        found = list(evaluate_all(system(adapter), tests, pictures, OPTIONS))
        for test, one in zip(tests, found, strict=True):
            for question, item in zip(test.questions, one.items, strict=True):
                pixels = processor.images([open_image(pictures.read(name)) for name in question.images])
                with torch.inference_mode():
                    view = model.encode_images(pixels[None])
                    target = model.encode_text(*vars(processor.texts([question.text])).values())
                    wanted = model.config.labels[int(model.class_logits(target, model.readings(view)).argmax())]
                assert (item["id"], item["answer"]) == (question.id, wanted)
    assert len({item["answer"] for one in found for item in one.items}) > 1
    with pytest.raises(
        ValueError, match="2 are the task's alone, first 'left'; 2 are the model's alone, first 'maybe'"
    ):
        check(system(adapter), [questions("en", ("yes", "left", "right"), images)], OPTIONS)
    with pytest.raises(ValueError, match="images_per_text"):
        check(system(adapter), [questions("en", ("yes", "no", "maybe"), 3 - images)], OPTIONS)


def test_a_decoder_chooses_among_the_tasks_labels(processor: CCLMProcessor, folder: Path) -> None:
    adapter = CrossView(answering(processor, heads=["answer"]), EncodingOptions())
    with open_pictures(folder) as pictures:
        found = evaluate(system(adapter), questions("en", ("red", "green", "a tall block")), pictures, OPTIONS)
    assert {item["answer"] for item in found.items} <= {"red", "green", "a tall block"}


def test_what_a_model_cannot_do_is_told_before_the_work() -> None:
    class Reader:
        def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
            raise AssertionError("nothing is run")

    sentences = Sentences(
        task="pairs",
        language="de",
        protocol=Protocol(name="official", about=""),
        split="test",
        sentences=(Sentence("1", "ein Block", "a block"),),
    )
    check(system(Reader()), [sentences], OPTIONS)
    for test, reason in (
        (captions(), "does not embed images and texts or score pairs of them, as task colours asks"),
        (questions("en", ("yes",)), "gives no labels to texts about images, as task asked asks"),
    ):
        with pytest.raises(ValueError, match=reason):
            check(system(Reader()), [test], OPTIONS)
    with pytest.raises(ValueError, match="has no matching head to rerank by"):
        check(system(Colours()), [captions()], replace(OPTIONS, rerank=3))
    bare = replace(questions("en", ("yes",)), questions=(Question("q", (NAMES[0],), "", "yes"),))
    with pytest.raises(ValueError, match="no texts are at hand"):
        check(replace(system(Colours()), labels=Colours()), [bare], OPTIONS)
    with pytest.raises(ValueError, match="each with one {} for the class"):
        RunOptions(templates=("a photo",))


def test_sentences_find_each_other() -> None:
    class Words:
        def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
            rows = {"rot": 0, "red": 0, "blau": 1, "blue": 1, "grün": 2, "green": 1}
            return torch.eye(3)[[rows[text] for text in texts]]

    test = Sentences(
        task="pairs",
        language="de",
        protocol=Protocol(name="official", about=""),
        split="test",
        sentences=tuple(Sentence(en, de, en) for de, en in (("rot", "red"), ("blau", "blue"), ("grün", "green"))),
    )
    found = evaluate(system(Words()), test, no_pictures(), OPTIONS)
    assert scores(found, "to_english")["R@1"] == pytest.approx(100 * (1 + 1 / 2 + 0) / 3, abs=12)
    assert found.result.notes == ()


def no_pictures() -> PictureFiles:
    with open_pictures(None) as pictures:
        return pictures


def test_pictures_are_classified_by_the_mean_of_their_names_in_all_templates(folder: Path) -> None:
    read: list[str] = []

    class Listening(Colours):
        def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
            read.extend(texts)
            return super().embed_texts(texts, language)

    test = Pictures(
        task="classes",
        language="de",
        protocol=Protocol(name="official", about=""),
        split="test",
        pictures=tuple(Picture(name, name, name.partition("-")[0]) for name in NAMES),
        names={colour: (colour, f"{colour}ish") for colour in COLOURS},
    )
    with open_pictures(folder) as pictures:
        found = evaluate(system(Listening()), test, pictures, replace(OPTIONS, templates=("a {}", "ein {}")))
    assert found.result.scores["accuracy"] == 100
    assert read[:4] == ["a red", "ein red", "a redish", "ein redish"] and len(read) == 16


def test_pictures_that_lack_are_refused_or_counted(folder: Path) -> None:
    (folder / NAMES[2]).unlink()
    (folder / NAMES[3]).write_bytes(b"no picture")
    whole = (folder / NAMES[5]).read_bytes()
    (folder / NAMES[5]).write_bytes(whole[: len(whole) // 2])  # its header is right
    tests = [captions("en"), captions("de", NAMES[4:])]
    with open_pictures(folder) as pictures:
        with pytest.raises(ValueError, match=rf"colours: 2 of 12 images cannot be used \({NAMES[2]}: image missing; "):
            evaluate(system(Colours()), tests[0], pictures, OPTIONS)
        with pytest.raises(ValueError, match=rf"1 of 8 images cannot be used \({NAMES[5]}: image not readable\)"):
            evaluate(system(Colours()), tests[1], pictures, OPTIONS)
        found = list(evaluate_all(system(Colours()), tests, pictures, replace(OPTIONS, partial=True)))
    assert [one.result.items for one in found] == [9, 7]
    assert found[0].result.notes == (
        "partial: 10 of 12 images, 1 of the others damaged",
        "partial: 9 of 10 images, 1 of the others damaged",
    )
    assert scores(found[0])["gallery"] == 9


def test_questions_whose_pictures_lack_are_left_out(processor: CCLMProcessor, folder: Path) -> None:
    (folder / NAMES[1]).unlink()
    adapter = CrossView(
        answering(processor, heads=["classify"], labels=["yes", "no"], images_per_text=2), EncodingOptions()
    )
    test = questions("en", ("yes", "no"), images=2)
    with open_pictures(folder) as pictures:
        found = evaluate(system(adapter), test, pictures, replace(OPTIONS, partial=True))
    assert [item["id"] for item in found.items] == [f"q{number}" for number in range(2, 9)]
    assert "partial: 9 of 10 images" in found.result.notes


def run(model: Colours, folder: Path, tests: Sequence[TestSet], options: RunOptions, sha256: str = "0") -> list:
    with open_pictures(folder) as pictures:
        return list(cached(system(model, sha256), tests, pictures, options, RunFolder.at(folder.parent / "run")))


def test_a_cell_that_is_there_is_not_made_again(folder: Path) -> None:
    model, tests = Colours(), [captions("en"), captions("de")]
    first = run(model, folder, tests[:1], OPTIONS)
    seen = len(model.seen)
    again = run(model, folder, tests, OPTIONS)
    assert again[0] == first[0] and len(model.seen) == 2 * seen  # one pass more, for the other language
    assert run(model, folder, tests, OPTIONS) == again and len(model.seen) == 2 * seen
    assert {one.result.language for one in read_run(folder.parent / "run")} == {"en", "de"}
    cells = sorted((folder.parent / "run" / "cells").iterdir())
    assert [path.name.rpartition("-")[0] for path in cells] == [
        "colours-de-official-zero-shot",
        "colours-en-official-zero-shot",
    ]
    for path in cells:
        lines = (folder.parent / "run" / "predictions" / f"{path.stem}.jsonl").read_text().splitlines()
        assert len(lines) == 24 and json.loads(lines[0])["direction"] == "text_to_image"


def test_another_model_text_picture_or_setting_is_another_cell(folder: Path) -> None:
    test = captions()
    run(Colours(), folder, [test], OPTIONS)
    run(Colours(), folder, [test], OPTIONS, sha256="1")
    other = replace(test, captions=(replace(test.captions[0], text="a blue block"), *test.captions[1:]))
    run(Colours(), folder, [other], OPTIONS)
    run(Colours(), folder, [test], replace(OPTIONS, regime="few-shot", shots="48"))
    (folder / NAMES[0]).write_bytes((folder / NAMES[1]).read_bytes())
    run(Colours(), folder, [test], OPTIONS)
    run(Colours(), folder, [test], replace(OPTIONS, image_batch=3))  # no other number
    names = sorted(path.stem for path in (folder.parent / "run" / "cells").iterdir())
    assert len(names) == 5 and names[0].startswith("colours-en-official-few-shot-48-")


def test_settings_of_other_kinds_of_tests_are_no_other_cell(
    model: CCLMModel, processor: CCLMProcessor, records: list[Record], blocks: Path
) -> None:
    one = answering(processor, heads=["classify"], labels=["yes", "no"])
    asked = replace(system(CrossView(one, EncodingOptions())), pair_settings={"match_score": "log_odds"})
    for record, name in zip(records, NAMES, strict=False):
        (blocks / name).write_bytes(record.image)
    test = questions("en", ("yes", "no"))
    tiny, found = two_stages(model, processor, records)
    with open_pictures(blocks) as pictures:
        cells = RunFolder.at(blocks / "run")
        for options in (OPTIONS, replace(OPTIONS, rerank=5), replace(OPTIONS, templates=("a {}",))):
            (result,) = cached(asked, [test], pictures, options, cells)
            assert not {"rerank", "templates", "match_score"} & set(result.provenance["settings"])
        assert len(list((blocks / "run" / "cells").iterdir())) == 1
        logit = replace(tiny, pair_settings={"match_score": "logit"})
        for own, options in ((tiny, OPTIONS), (logit, OPTIONS), (tiny, replace(OPTIONS, templates=("a {}",)))):
            list(cached(own, [found], pictures, options, cells))
        assert len(list((blocks / "run" / "cells").iterdir())) == 2
        for own in (tiny, logit):
            list(cached(own, [found], pictures, replace(OPTIONS, rerank=5), cells))
        assert len(list((blocks / "run" / "cells").iterdir())) == 4


def test_what_a_model_without_a_hash_said_is_never_taken_for_anothers(folder: Path) -> None:
    model = Colours()
    unknown = replace(system(model), known=False)
    for times in (1, 2):
        with open_pictures(folder) as pictures:
            list(cached(unknown, [captions()], pictures, OPTIONS, RunFolder.at(folder.parent / "run")))
        assert model.seen == [5, 5, 2] * times
    assert len(list((folder.parent / "run" / "cells").iterdir())) == 1


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    """A process is killed in the middle of a file; what others are at is left alone."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from cclm.storage import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as path:\n"
        "    path.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    folder = RunFolder.at(tmp_path).root / "predictions"
    subprocess.run([sys.executable, "-c", code, str(folder / "some.jsonl")], check=False)
    (dead,) = folder.iterdir()
    with whole_file(folder / "other.jsonl") as mine:
        mine.write_text("half")
        RunFolder.at(tmp_path)
        assert dead.exists()  # not a minute old: it may be written on another machine
        for path in (dead, mine):
            os.utime(path, (time.time() - 61,) * 2)
        RunFolder.at(tmp_path)
        assert not dead.exists() and mine.exists()
    assert [path.name for path in folder.iterdir()] == ["other.jsonl"]


def test_damaged_cells_and_folders_are_told(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds no results"):
        read_run(folder)
    run(Colours(), folder, [captions()], OPTIONS)
    path = next((folder.parent / "run" / "cells").iterdir())
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged .* remove it"):
        run(Colours(), folder, [captions()], OPTIONS)
    (folder / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        RunFolder.at(folder / "file")
