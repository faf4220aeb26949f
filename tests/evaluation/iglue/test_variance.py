"""Mean rank variance of runs, from the predictions that they have left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cclm.evaluation.cells import RunFolder
from cclm.evaluation.items import Caption, Captions
from cclm.evaluation.runs import read_run
from cclm.evaluation.scoring import Scored, ScoreOptions, score_embeddings
from cclm.evaluation.task import find
from cclm.evaluation.variance import markdown, rank_variances

NAMES = tuple(f"{number}.jpg" for number in range(12))


def scored(language: str, names: tuple[str, ...] = NAMES, listed: int = 100) -> tuple[Scored, np.ndarray]:
    """A test under random embeddings, and the rank of every caption's image."""
    generator = torch.Generator().manual_seed(ord(language[0]))
    images, texts = torch.randn(2, len(names), 8, generator=generator)
    test = Captions(
        task="xflickrco",
        language=language,
        protocol=find("xflickrco").protocol(),
        split="test",
        captions=tuple(Caption(name, name, f"{language} {name}") for name in names),
        gallery=names,
    )
    similarities = texts @ images.T
    ranks = 1 + (similarities > similarities.diag()[:, None]).sum(1).numpy()
    found = score_embeddings(test, images, texts, ScoreOptions(draws=0, listed=listed))
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
    assert f"| de fr zh | 12 | {to_image.value:.1f} |" in markdown([to_image, to_text])


def test_only_tests_of_the_same_items_are_put_together(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path)
    folder.write("a", scored("de")[0])
    folder.write("b", scored("fr", NAMES[:-1])[0])
    assert list(rank_variances(read_run(tmp_path))) == [] and markdown([]) == ""
