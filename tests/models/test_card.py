"""Model cards: what the hub reads of them, what people read, and scores of exactly these weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.models.card import CARD, CardFacts, StreamFacts, refresh_scores, write_card
from cclm.models.config import CCLMConfig
from cclm.models.model import CCLMModel
from cclm.models.names import EXPORTED
from cclm.models.portrait import cross_view
from cclm.retrieval.manifest import ModelSource
from cclm.types import Statement
from tests.data.conftest import image_records
from tests.models.conftest import TINY

STREAMS = (
    StreamFacts("image", ("data/photos/train",), 1200, {"en": 1200}, 64, ("contrastive", "matching")),
    StreamFacts("text", ("data/a", "data/b|c"), None, {"no": 7, "pt-br": 9}, 256, ("masked_lm",)),
)


@pytest.fixture
def folder(pretrained: Path, tmp_path: Path) -> Path:
    """A pretrained folder alone in its run's folder."""
    return Path(shutil.copytree(pretrained, tmp_path / "run" / "pretrained"))


def card(folder: Path, **facts: object) -> ModelCard:
    config = CCLMConfig(vocab_size=90, **{**TINY, **facts.pop("config", {})})
    portrait = replace(cross_view(config), languages=facts.pop("languages", ()))
    write_card(folder, CardFacts("run/pretrained", "Trained.", portrait, **facts))
    return ModelCard.load(folder / CARD)


def test_the_hub_reads_its_front_matter(folder: Path) -> None:
    data = card(folder, streams=STREAMS, licence="apache-2.0").data
    assert data.language == ["en", "no", "pt-br"]  # and not False, which a bare `no` is in YAML
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "cclm", "feature-extraction")
    assert {"image-text", "multilingual"} <= set(data.tags)
    bare = card(folder, languages=("de",), config={"embedding_size": 0}).data
    assert (bare.language, bare.license, bare.pipeline_tag) == (["de"], "unknown", None)
    assert CARD in EXPORTED


def test_people_read_data_recipe_and_licence(folder: Path) -> None:
    text = card(folder, streams=STREAMS, recipe={"updates": "400"}, validation={"dev/en/text_to_image/R@1": 12.34}).text
    assert "| image | `data/photos/train` | 1,200 | en 1,200 | contrastive, matching | 64 |" in text
    assert "| text | `data/a`, `data/b¦c` | ? | no 7, pt-br 9 | masked_lm | 256 |" in text
    assert "| updates | 400 |" in text and "| dev | en | text → image | 12.3 |" in text
    assert "Unknown: whoever exported this folder has not said." in text
    assert "embed_images" in text and "model.score" in text
    told = card(folder, config={"heads": ["mlm"]}, licence="mit").text
    assert "model.score" not in told and "## Licence\n\nmit." in told and told.count("Not known.") == 2
    assert "embed_images" not in card(folder, config={"embedding_size": 0}).text


@pytest.mark.parametrize(
    ("changes", "verbs", "made"),
    [
        ({}, ["retrieval"], {"similarity": (2, 2), "match": (2,)}),
        ({"heads": ["match", "classify"], "labels": ["no", "yes"]}, ["retrieval", "statements"], {"logits": (1, 2)}),
        ({"embedding_size": 0, "heads": ["classify"], "labels": ["a", "b", "c"]}, ["statements"], {"logits": (1, 3)}),
        (
            {"embedding_size": 0, "heads": ["classify"], "labels": ["no", "yes"], "images_per_text": 2},
            ["statements"],
            {"logits": (1, 2)},
        ),
        ({"embedding_size": 0, "heads": ["answer"], "answer_layers": 1}, ["statements"], {"fused": (1, None, 16)}),
        ({"embedding_size": 0, "heads": ["match"]}, [], {"match": (2,)}),
        ({"embedding_size": 0, "heads": ["assign"], "images_per_text": 2}, [], {"fused": (1, None, 16)}),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else "-".join(value.get("heads", [])),
)
def test_its_own_snippet_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, verbs: list[str], made: dict
) -> None:
    CCLMModel(CCLMConfig(vocab_size=90, **{**TINY, **changes})).save_pretrained(folder)
    text = card(folder, config=changes).text
    code = text.split("```python\n")[1].split("```")[0].replace("this folder", str(folder))
    for name, record in zip(("dog.jpg", "boat.jpg", "1.jpg", "2.jpg"), image_records(4), strict=True):
        (tmp_path / name).write_bytes(record.image)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    for name, shape in made.items():
        assert all(wanted in (None, got) for got, wanted in zip(names[name].shape, shape, strict=True))
    if "classify" in changes.get("heads", ()):
        assert names["label"] in changes["labels"]
    told = [verb for verb in ("retrieval", "statements") if f"cclm evaluate {verb} --model" in text]
    assert told == verbs and [verb for verb in told if f"`cclm evaluate {verb}`" in text] == verbs
    assert ("no verb of cclm measures" in text) == (not verbs)


def test_an_evaluation_of_statements_puts_its_scores_in(folder: Path) -> None:
    changes = {"embedding_size": 0, "heads": ["classify"], "labels": ["no", "yes"]}
    CCLMModel(CCLMConfig(vocab_size=90, **{**TINY, **changes})).save_pretrained(folder)
    run = folder.parent
    records = [
        replace(record, statements=(Statement({"en": f"it is {n}", "de": f"es ist {n}"}, {("no", "yes")[n % 2]: 1.0}),))
        for n, record in enumerate(image_records(6))
    ]
    write_shards(records, run / "test")
    assert "`cclm evaluate statements` puts them here" in card(folder, config=changes).text
    evaluate = ["evaluate", "statements", "--model", str(folder), "--data", str(run / "test")]
    main([*evaluate, "--output", str(run / "report.json")])
    scores = json.loads((run / "report.json").read_text())["languages"]["de"]["statements"]
    text = (folder / CARD).read_text()
    row = f"| de | statements | {scores['accuracy']:.1f} | {scores['consistency']:.1f} | 6 |"
    assert row in text and "`report.json`: statements on" in text and "None yet" not in text
    logged = {"dev/en/statements/accuracy": 61.26}
    assert "| dev | en | statements | 61.3 |" in card(folder, config=changes, validation=logged).text


def test_an_evaluation_puts_its_scores_in(folder: Path) -> None:
    run = folder.parent
    write_shards(image_records(12), run / "dev")
    sha256 = ModelSource.of(folder).sha256
    assert "None yet" in card(folder).text
    evaluate = ["evaluate", "retrieval", "--model", str(folder), "--data", str(run / "dev"), "--rerank", "3"]
    main([*evaluate, "--output", str(run / "report.json")])
    report = json.loads((run / "report.json").read_text())
    scores = report["languages"]["de"]["text_to_image_rerank"]
    row = " | ".join(f"{scores[name]:.1f}" for name in ("R@1", "R@5", "R@10"))
    text = (folder / CARD).read_text()
    assert f"| de | text → image, reranked | {row} | 12 |" in text and "`report.json`: retrieval on" in text
    assert ModelSource.of(folder).sha256 == sha256  # an index built before still belongs to it
    assert card(folder).text.count("| de |") == 4  # a new card finds the report where it lies

    # Scores of other weights, and files that are no reports, are none of its scores.
    (run / "report.json").write_text(json.dumps(report | {"model_hash": "0" * 64}))
    (run / "list.json").write_text("[1]")
    (run / "cut.json").write_text("{")
    (run / "other.json").write_text('{"languages": {"en": {"accuracy": 3}}}')
    assert refresh_scores(folder) and "None yet" in (folder / CARD).read_text()
    (folder / CARD).write_text("# A card of someone else's\n")
    assert not refresh_scores(folder) and (folder / CARD).read_text() == "# A card of someone else's\n"
    (folder / CARD).unlink()
    assert not refresh_scores(folder)
