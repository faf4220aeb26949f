"""The official prediction files get the official scores, to the last digit that a float has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cclm.cli import main
from cclm.evaluation import predictions
from cclm.evaluation.scoring import ScoreOptions, score_answers, score_rankings
from cclm.evaluation.task import DataFolder, find

MODELS = ("uc2", "ctrl_muniter", "ctrl_xuniter")
POINT = ScoreOptions(draws=0)


@pytest.fixture(scope="module")
def golden(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "derived" / "golden_scores.json").read_text(encoding="utf-8"))


def official(bundle: Path, task: str, model: str, language: str) -> Path:
    return bundle / "_official_results" / task / "zero_shot" / model / f"test_{language}_0_result.json"


@pytest.mark.parametrize("language", ["en", "bn", "de", "id", "ko", "pt", "ru", "zh"])
def test_xgqa(bundle: Path, golden: dict[str, Any], language: str) -> None:
    task = find("xgqa")
    test = task.test_set(DataFolder(bundle), language, task.protocol())
    for model in MODELS:
        answers = predictions.read_answers(official(bundle, "xgqa", model, language), test)
        scored = score_answers(test, answers.predictions, POINT)
        assert scored.result.scores["accuracy"] == pytest.approx(golden["xgqa"][model][language], abs=1e-9, rel=0)
        assert len(scored.items) == 9666
        assert "predictions beside the test's, not scored: 2,912" in scored.result.notes


@pytest.mark.parametrize("language", ["en", "de", "es", "id", "ja", "ru", "tr", "zh"])
def test_xflickrco(bundle: Path, golden: dict[str, Any], language: str) -> None:
    task = find("xflickrco")
    test = task.test_set(DataFolder(bundle), language, task.protocol())
    for model in MODELS:
        rankings = predictions.read_rankings(official(bundle, "xflickrco", model, language), test)
        scores = score_rankings(test, rankings.predictions, POINT).result.scores
        found = [scores["text_to_image"][name] for name in ("R@1", "R@5", "R@10")]
        assert found == pytest.approx(golden["xflickrco_ir"][model][language], abs=1e-9, rel=0)
        assert scores["image_to_text"] is None


def test_the_command_prints_the_pinned_json(
    bundle: Path, golden: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--language", "de", "--data", str(bundle), "--draws", "100", "--json"]
    main(["iglue", "score", "xgqa", "--predictions", str(official(bundle, "xgqa", "uc2", "de")), *options])
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["language"], found["protocol"], found["items"]) == ("xgqa", "de", "official", 9666)
    assert round(found["accuracy"], 3) == round(golden["xgqa"]["uc2"]["de"], 3) == 42.851
    assert found["accuracy_interval"][0] < found["accuracy"] < found["accuracy_interval"][1]
    main(["iglue", "score", "xflickrco", "--predictions", str(official(bundle, "xflickrco", "uc2", "de")), *options])
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["language"], found["items"]) == ("xflickrco", "de", 2000)
    there = found["text_to_image"]
    assert (there["R@1"], there["R@5"], there["R@10"]) == pytest.approx((28.6, 57.7, 69.4), abs=1e-9)
    assert (there["queries"], there["gallery"], found["image_to_text"]) == (2000, 2000, None)


def test_the_benchmarks_own_folder_does_as_well(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--predictions", str(official(bundle, "xgqa", "uc2", "de")), "--language", "de", "--draws", "0"]
    main(["iglue", "score", "xgqa", *given, "--data", str(bundle / "iglue")])
    told = capsys.readouterr().out
    assert "accuracy 42.85" in told and "protocol official: IGLUE" in told and "items 9,666, ids " in told
    assert "under protocol testdev, 12,578 items: 42.96" in told
