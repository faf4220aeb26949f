"""Every shipped fine-tuning config learns 64 real items by heart: trained, exported, reloaded and scored as its head
says, from a checkpoint in the released layout."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cclm.models.model import CCLMModel
from tests.finetune.conftest import ITEMS, Bench, read

QUESTIONS = {"model__optimizer__lr": 1e-3, "data__streams__statements__pairs__init_args__flip_unless": None}
# Steps, and what else differs from conftest.TINY.
LEARN: dict[str, tuple[int, dict[str, Any]]] = {
    "xvnli": (160, {}),
    "xgqa_classify": (150, QUESTIONS),
    "xgqa_answer": (170, QUESTIONS | {"model__network__config__answer_layers": 2}),
    "marvl": (80, {}),
    "marvl_x2vlm": (100, {}),
}


@pytest.mark.parametrize("name", LEARN)
def test_statements(clone: Bench, name: str, capsys: pytest.CaptureFixture) -> None:
    steps, changes = LEARN[name]
    clone.prepare(name)
    clone.fit(name, steps=steps, **changes)
    capsys.readouterr()
    report = clone.evaluate(name)
    scores = report["languages"]["id" if "marvl" in name else "en"]["statements"]
    assert scores["statements"] == ITEMS
    assert scores["accuracy"] > 95 > 60 > scores["chance"]["accuracy"]
    # The folder is that of the best validation, and says so.
    folder = clone.folder / "runs" / name / "pretrained"
    choice = json.loads((folder / "choice.json").read_text())
    best = read(name)["trainer"]["callbacks"][0]["init_args"]["best"]
    assert (choice["metric"], choice["test"]) == (best, False) and choice["value"] > 95
    assert f"the model is of step {choice['step']}, the best by {best}" in capsys.readouterr().out
    config = CCLMModel.from_pretrained(folder).config
    assert config.heads == read(name)["model"]["network"]["config"]["heads"] and config.embedding_size == 0


def test_retrieval(clone: Bench) -> None:
    """By similarity alone, and by the matching head, which hard negatives keep at chance for some hundred steps."""
    clone.prepare("retrieval")
    clone.fit(
        "retrieval",
        steps=100,
        model__optimizer__lr=1e-3,
        model__optimizer__clip_norm=0.0,
        model__objectives__captions__matching__init_args__hardness=0.0,
        data__loader__steps_per_epoch=100,
        data__streams__captions__batch_size=32,
    )
    report = clone.evaluate("retrieval")
    (scores,) = report["languages"].values()
    for way in ("text_to_image", "image_to_text"):
        assert scores[way]["queries"] == ITEMS
        assert scores[way]["R@1"] > 95
        assert scores[f"{way}_rerank"]["R@1"] > 20  # chance is 1.6
    assert "match logit alone" in report["protocol"]["rerank"]
