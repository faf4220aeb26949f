"""Our ranks, recalls and tests of significance beside those of ranx, trec_eval and scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import ranx
import torch
import torch.nn.functional as F
from scipy import stats

from cclm.evaluation import metrics, significance, trec
from cclm.evaluation.items import Caption, Captions
from cclm.evaluation.protocol import RetrievalProtocol
from cclm.evaluation.scoring import ScoreOptions, score_embeddings

WAYS = ("text_to_image", "image_to_text")


def problem(counts: list[int], noise: float, seed: int) -> tuple[Captions, torch.Tensor, torch.Tensor]:
    """So many captions of each image, near it."""
    generator = torch.Generator().manual_seed(seed)
    made = [Caption(f"{row}#{n}", f"{row}.jpg", "text") for row, count in enumerate(counts) for n in range(count)]
    test = Captions(
        task="own",
        language="de",
        protocol=RetrievalProtocol(name="official", about=""),
        split="test",
        captions=tuple(made),
        gallery=tuple(f"{row}.jpg" for row in range(len(counts))),
    )
    images = F.normalize(torch.randn(len(counts), 16, generator=generator), dim=1)
    owners = torch.repeat_interleave(torch.tensor(counts))
    texts = F.normalize(images[owners] + noise * torch.randn(len(owners), 16, generator=generator), dim=1)
    return test, images, texts


@pytest.mark.parametrize(
    ("counts", "noise"), [([1] * 60, 0.7), ([1] * 60, 3.0), ([1, 5, 2, 3] * 12, 0.8), ([7] * 9, 2.0)]
)
def test_recalls_and_reciprocal_ranks_are_theirs(tmp_path: Path, counts: list[int], noise: float) -> None:
    """With one relevant item and with any of several as a hit, on scores without ties."""
    test, images, texts = problem(counts, noise, seed=len(counts))
    scored = score_embeddings(test, images, texts, ScoreOptions(draws=0, listed=200))
    for way in WAYS:
        ours = scored.result.scores[way]
        trec.write_run(scored.items, tmp_path / "run", way)
        trec.write_qrels(test, tmp_path / "qrels", way)
        run = ranx.Run.from_file(str(tmp_path / "run"), kind="trec")
        qrels = ranx.Qrels.from_file(str(tmp_path / "qrels"), kind="trec")
        theirs = ranx.evaluate(qrels, run, ["hit_rate@1", "hit_rate@5", "hit_rate@10", "mrr"])
        found = [ours["R@1"] / 100, ours["R@5"] / 100, ours["R@10"] / 100, ours["mean_reciprocal_rank"]]
        assert found == pytest.approx(list(theirs.values()), abs=1e-6)
        with open(tmp_path / "qrels") as lines:
            relevant = pytrec_eval.parse_qrel(lines)
        with open(tmp_path / "run") as lines:
            ranked = pytrec_eval.parse_run(lines)
        evaluator = pytrec_eval.RelevanceEvaluator(relevant, {"success", "recip_rank"})
        by_query = evaluator.evaluate(ranked)
        assert len(by_query) == ours["queries"]
        for item in scored.items:
            if item["direction"] == way:
                other = by_query[item["id"]]
                assert [item["R@1"], item["R@5"], item["R@10"]] == [other[f"success_{k}"] for k in (1, 5, 10)]
                assert 1 / item["rank"] == pytest.approx(other["recip_rank"])


def runs(seed: int, noises: tuple[float, float], images: int = 40) -> list[list[dict[str, Any]]]:
    """Items of two systems on one test, the second with more or less noise."""
    found = []
    for number, noise in enumerate(noises):
        test, pictures, texts = problem([1] * images, 0.0, seed)
        generator = torch.Generator().manual_seed(100 * seed + number)
        texts = F.normalize(texts + noise * torch.randn(texts.shape, generator=generator), dim=1)
        found.append(score_embeddings(test, pictures, texts, ScoreOptions(draws=0)).items)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("metric", ["R@1", "rank"])
def test_the_randomisation_test_is_scipys(seed: int, metric: str) -> None:
    first, second = runs(seed, (0.5, 0.6), images=12)
    ours = significance.compare(first, second, metric, "text_to_image")
    values = [
        np.array([item[metric] for item in items if item["direction"] == "text_to_image"]) for items in (first, second)
    ]
    theirs = stats.permutation_test(
        values, lambda a, b: (b - a).mean(), permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert ours.exact and ours.p_value == pytest.approx(theirs.pvalue)
    assert ours.difference == pytest.approx(100 * theirs.statistic)


def test_drawn_signs_come_near_the_exact_p() -> None:
    sums = np.random.default_rng(0).normal(0.4, 1, size=14)
    exact, whole = significance.randomisation(sums, 1, np.random.default_rng(0))
    drawn, _ = significance.randomisation(np.concatenate([sums, np.full(6, 1e-13)]), 200_000, np.random.default_rng(0))
    assert whole and 0.01 < exact < 0.9 and drawn == pytest.approx(exact, abs=0.01)


def test_a_drawn_p_is_never_0_and_its_interval_of_95_percent() -> None:
    p_value, exact = significance.randomisation(np.ones(60), 99, np.random.default_rng(0))
    assert (p_value, exact) == (1 / 100, False)  # no draw is as large: the runs as they are still count
    hits = [number % 2 == 0 for number in range(1000)]
    first = [{"id": str(number), "right": False} for number in range(1000)]
    second = [{"id": str(number), "right": hit} for number, hit in enumerate(hits)]
    low, high = significance.compare(first, second, "right", draws=4000).interval
    assert high - low == pytest.approx(2 * 1.96 * 100 * (0.25 / 1000) ** 0.5, rel=0.05)


def test_the_better_run_is_told_and_an_equal_one_is_not() -> None:
    first, second = runs(5, (1.2, 0.3), images=200)
    found = significance.compare(first, second, "R@1", "text_to_image")
    assert found.difference == pytest.approx(found.second - found.first) and found.difference > 20
    assert found.interval[0] > 0 and found.p_value < 0.01 and not found.exact
    assert (found.items, found.groups) == (200, 200)
    same = significance.compare(first, first, "R@1", "text_to_image")
    assert (same.difference, same.interval, same.p_value) == (0, (0, 0), 1)
    assert significance.compare(first, second, "R@1", "text_to_image") == found  # by seed


def test_items_about_one_image_are_swapped_together() -> None:
    def answers(right: list[bool], each: int) -> list[dict[str, Any]]:
        return [{"id": str(n), "images": [f"{n // each}.jpg"], "right": hit} for n, hit in enumerate(right)]

    first, second = [False] * 12, [True] * 12
    alone = significance.compare(answers(first, 1), answers(second, 1), "right")
    grouped = significance.compare(answers(first, 4), answers(second, 4), "right")
    assert alone.p_value == pytest.approx(2 / 2**12) and grouped.p_value == pytest.approx(2 / 2**3)
    assert (grouped.items, grouped.groups, grouped.difference) == (12, 3, 100)


def test_runs_of_other_items_are_not_compared() -> None:
    first, second = runs(1, (0.5, 0.5))
    with pytest.raises(ValueError, match="run 2 is of other items than run 1: 1 missing, 0 others, as '39#0'"):
        significance.compare(first, [item for item in second if item["id"] != "39#0"], "R@1", "text_to_image")
    with pytest.raises(ValueError, match="no items of answers; there are image_to_text, text_to_image"):
        significance.compare(first, second, "right")
    with pytest.raises(ValueError, match="does not tell 'R@2' of 40 items"):
        significance.compare(first, second, "R@2", "text_to_image")
    reordered = significance.compare(first, second[::-1], "R@1", "text_to_image")
    assert reordered == significance.compare(first, second, "R@1", "text_to_image")


def test_rank_variance_over_languages() -> None:
    assert metrics.mean_rank_variance([[1, 2, 3], [1, 2, 3], [1, 2, 3]]) == 0
    # Ranks 1 and 3 of one thing: mean 2, variance 1; 1 and 7: mean 4, variance 9.
    assert metrics.mean_rank_variance([[1, 7], [3, 1]]) == 5
    with pytest.raises(ValueError, match="two languages or more"):
        metrics.mean_rank_variance([[1, 2]])
    english, german = runs(2, (0.5, 0.9))
    ranks = [[item["rank"] for item in items if item["direction"] == "text_to_image"] for items in (english, german)]
    found = significance.rank_variance({"en": english, "de": german[::-1]}, "text_to_image")
    assert found == pytest.approx(np.var(ranks, axis=0).mean()) and found > 0
    with pytest.raises(ValueError, match="of other items"):
        significance.rank_variance({"en": english, "de": german[:60]}, "image_to_text")
