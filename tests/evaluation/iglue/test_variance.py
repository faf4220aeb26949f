"""Mean rank variance of runs, from the predictions that they have left."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cclm.cli import main
from cclm.evaluation.cells import RunFolder
from cclm.evaluation.items import Caption, Captions
from cclm.evaluation.runs import read_run
from cclm.evaluation.scoring import Scored, ScoreOptions, score_embeddings
from cclm.evaluation.tables import latex, markdown
from cclm.evaluation.task import find
from cclm.evaluation.variance import rank_variances, tables

NAMES = tuple(f"{number}.jpg" for number in range(12))


def scored(language: str, names: tuple[str, ...] = NAMES, each: int = 1) -> tuple[Scored, np.ndarray]:
    """A test under random embeddings, with `each` captions per image, and the rank of every caption's image."""
    generator = torch.Generator().manual_seed(ord(language[0]))
    images, texts = torch.randn(2, len(names) * each, 8, generator=generator)
    images = images[: len(names)]
    test = Captions(
        task="xflickrco",
        language=language,
        protocol=find("xflickrco").protocol(),
        split="test",
        captions=tuple(Caption(f"{name}#{n}", name, f"{language} {n}") for name in names for n in range(each)),
        gallery=names,
    )
    similarities = texts @ images.T
    own = similarities[torch.arange(len(texts)), torch.arange(len(texts)) // each]
    ranks = 1 + (similarities > own[:, None]).sum(1).numpy()
    found = score_embeddings(test, images, texts, ScoreOptions(draws=0))
    return replace(found, result=replace(found.result, system="drawn")), ranks


def test_it_is_the_variance_over_languages(tmp_path: Path) -> None:
    folder, ranks = RunFolder.at(tmp_path), []
    for language in ("de", "fr", "zh"):
        found, own = scored(language)
        folder.write(f"xflickrco-{language}", found)
        ranks.append(own)
    to_image, to_text = rank_variances(read_run(tmp_path))
    assert to_image.value == pytest.approx(np.var(ranks, axis=0).mean()) and to_image.value > 1
    assert (to_image.direction, to_text.direction) == ("text_to_image", "image_to_text")
    assert to_image.languages == ("de", "fr", "zh") and to_image.items == 12
    text = markdown(tables([to_image, to_text]))
    assert f"| xflickrco | text to image | 12 | {to_image.value:.1f} |" in text and " over de fr zh " in text
    assert (to_image.number.metric, to_image.number.language) == ("mean_rank_variance", "avg")
    main(["iglue", "report", str(tmp_path), "--output", str(tmp_path / "out"), "--format", "csv"])
    with open(tmp_path / "out" / "report.csv", newline="") as handle:
        rows = {row["direction"]: row for row in csv.DictReader(handle) if row["metric"] == "mean_rank_variance"}
    assert float(rows["text_to_image"]["value"]) == to_image.value and len(rows) == 2
    assert "over 3 languages (de fr zh)" in rows["image_to_text"]["notes"]
    assert f"12 & {to_image.value:.1f}" in latex(tables([to_image]))


def test_only_tests_of_the_same_items_are_put_together(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path)
    folder.write("a", scored("de")[0])
    folder.write("b", scored("fr", NAMES[:-1])[0])
    assert list(rank_variances(read_run(tmp_path))) == [] and tables([]) == []


def test_several_captions_of_an_image_are_not_one_thing_across_languages(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path)
    for language in ("de", "fr"):
        folder.write(language, scored(language, each=2)[0])
    (found,) = rank_variances(read_run(tmp_path))
    assert found.direction == "image_to_text" and found.items == 12


def test_its_table_says_what_the_numbers_depend_on(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path)
    for language in ("de", "fr"):
        found, _ = scored(language)
        folder.write(language, replace(found, result=replace(found.result, notes=("partial: 12 of 2,000 images",))))
    text = markdown(tables(list(rank_variances(read_run(tmp_path)))))
    assert "</sup> partial: 12 of 2,000 images" in text
    assert all("<sup>a" in line for line in text.splitlines() if "| xflickrco |" in line)
