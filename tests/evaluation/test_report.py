"""Reports as files, table and chart."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cclm.evaluation.report import Provenance, Report, table
from tests.evaluation.conftest import scores_of

LANGUAGES = "en ar bn cs de es fr hi id it ja ko pt ru sw ta th tr vi zh pl".split()


def made(languages: list[str], noise: float, rerank: bool = False, model: str = "runs/trained") -> Report:
    """A report of real metrics over random embeddings."""
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(80, 16, generator=generator), dim=1)
    scores = {}
    for number, language in enumerate(languages):
        texts = images + noise * (1 + number / 20) * torch.randn(80, 16, generator=generator)
        scores[language] = scores_of(images, texts, torch.arange(80), draws=50)
        if rerank:
            scores[language] |= {f"{way}_rerank": values for way, values in list(scores[language].items())}
    texts = {language: {"source": "captions", "left_out": 0, "images_without_text": 0} for language in languages}
    return Report(scores, texts, {"ties": "expected"}, Provenance(model, "a" * 64, "data", "b" * 64, "2026-01-02"))


def test_written_file_has_the_promised_keys_and_reads_back(tmp_path: Path) -> None:
    report = made(["en", "de", "fr"], 0.5, rerank=True)
    report.write(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    german = stored["languages"]["de"]["text_to_image"]
    assert {"R@1", "R@5", "R@10", "queries", "gallery", "mean_recall", "median_rank", "chance"} <= set(german)
    assert german["R@10_interval"][0] <= german["R@10"] <= german["R@10_interval"][1]
    assert set(stored["languages"]["de"]) == {
        "text_to_image", "image_to_text", "text_to_image_rerank", "image_to_text_rerank"
    }  # fmt: skip
    assert {"protocol", "model", "model_hash", "data", "data_hash", "date", "texts"} <= set(stored)
    others = [stored["languages"][language]["text_to_image"]["R@10"] for language in ("de", "fr")]
    assert stored["mean_without_en"]["text_to_image"]["R@10"] == pytest.approx(sum(others) / 2)
    assert Report.read(tmp_path / "report.json") == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.png"]


def test_no_mean_without_en_where_only_en_is_measured() -> None:
    assert "mean_without_en" not in made(["en"], 0.5).to_dict()


def test_not_a_number_is_never_written(tmp_path: Path) -> None:
    report = made(["en"], 0.5)
    report.languages["en"]["text_to_image"]["R@1"] = math.nan
    with pytest.raises(ValueError, match="Out of range float"):
        report.write(tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_chart_grows_with_the_languages_and_shows_the_baseline(tmp_path: Path) -> None:
    report, baseline = made(LANGUAGES, 0.5, rerank=True), made(LANGUAGES, 50.0, model="runs/untrained")
    report.write(tmp_path / "many.json", baseline)
    report.write(tmp_path / "alone.json")
    made(["en"], 0.5).write(tmp_path / "one.json")
    many, alone, one = (Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("many", "alone", "one"))
    assert many.width > one.width and many.height == one.height
    grey = (0x9A, 0xA3, 0xAE)
    assert (np.asarray(many) == grey).all(-1).any() and not (np.asarray(alone) == grey).all(-1).any()


def test_table_fits_80_columns_and_holds_every_number() -> None:
    report, baseline = made(LANGUAGES, 0.5, rerank=True), made(LANGUAGES[:3], 50.0)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(report, baseline))
    text = console.export_text()
    assert "…" not in text
    for language in LANGUAGES:
        scores = report.languages[language]["text_to_image"]
        line = next(line for line in text.splitlines() if line.split()[:1] == [language])
        low, high = scores["R@10_interval"]
        assert f"{scores['R@1']:.1f}" in line and f"{low:.1f}–{high:.1f}" in line
    assert text.count("mean, no en") == 2 and "gallery of 80" in text


def test_report_path_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a file ending in \.json"):
        made(["en"], 0.5).write(tmp_path / "report.txt")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": 1}'])
def test_reading_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="is no report"):
        Report.read(tmp_path / "x.json")
