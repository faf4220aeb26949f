"""Ranks, recalls and intervals against brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from cclm.evaluation import metrics
from cclm.evaluation.metrics import Array, Ranks, Relevance


def rank(queries: Array, gallery: Array, relevance: Relevance) -> Ranks:
    """Of the queries in the gallery."""
    return metrics.search(queries, gallery, relevance)[0].ranks


def tied_problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[set[int]]]:
    """Small integer embeddings, so that many scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randint(-1, 2, (5, 3), generator=generator).float()
    gallery = torch.randint(-1, 2, (6, 3), generator=generator).float()
    counts = torch.randint(1, 4, (5,), generator=generator)
    relevant = [set(torch.randperm(6, generator=generator)[:count].tolist()) for count in counts]
    return queries, gallery, relevant


def all_orders(scores: list[float], relevant: set[int]) -> list[int]:
    """Rank of the first hit in every order that sorts the scores from high to low."""
    ranks = []
    for order in permutations(range(len(scores))):
        sorted_scores = [scores[i] for i in order]
        if sorted_scores == sorted(scores, reverse=True):
            ranks.append(1 + next(place for place, item in enumerate(order) if item in relevant))
    return ranks


@pytest.mark.parametrize("seed", range(12))
def test_ranks_equal_the_mean_over_all_orders_of_tied_items(seed: int) -> None:
    queries, gallery, relevant = tied_problem(seed)
    ranks = rank(queries, gallery, Relevance.of(relevant, len(gallery)))
    for query, wanted in enumerate(relevant):
        orders = np.array(all_orders((queries[query] @ gallery.T).tolist(), wanted))
        assert ranks.expected()[query] == pytest.approx(orders.mean())
        for k in range(8):
            assert ranks.within(k)[query] == pytest.approx((orders <= k).mean(), abs=1e-9)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 64), (64, 7), (10_000, 10_000)])
def test_tiles_do_not_change_ranks_of_either_direction(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int
) -> None:
    monkeypatch.setattr(metrics, "QUERY_TILE", rows)
    monkeypatch.setattr(metrics, "GALLERY_TILE", columns)
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(37, 8, generator=generator), torch.randn(29, 8, generator=generator)
    relevant = torch.randint(0, 29, (37,), generator=generator)
    there, back = metrics.search(queries.numpy(), gallery.numpy(), Relevance.of(relevant, 29), k=5)
    scores = queries.double() @ gallery.double().T
    brute = (scores > scores.gather(1, relevant[:, None])).sum(1) + 1
    assert torch.equal(there.ranks.expected(), brute.double())
    assert torch.equal(there.rows, scores.topk(5).indices)
    assert torch.equal(there.scores, scores.topk(5).values.float())
    asked = torch.unique(relevant)
    assert 0 < len(asked) < 29  # an item that answers nothing asks nothing
    best = scores.T.masked_fill(relevant[None, :] != torch.arange(29)[:, None], -torch.inf).amax(1)[asked]
    assert torch.equal(back.ranks.expected(), (scores.T[asked] > best[:, None]).sum(1) + 1.0)
    assert torch.equal(back.rows, scores.T[asked].topk(5).indices)
    assert torch.equal(metrics.top(queries, gallery, 5)[1], there.rows)


@pytest.mark.parametrize("seed", range(6))
def test_the_way_back_is_the_search_the_other_way_round(seed: int) -> None:
    queries, gallery, relevant = tied_problem(seed)
    relevance = Relevance.of(relevant, len(gallery))
    _, back = metrics.search(queries, gallery, relevance)
    asked = torch.unique(relevance.items)
    turned = rank(gallery[asked], queries, relevance.turned())
    for name in ("above", "tied", "hits", "best"):
        assert torch.equal(getattr(back.ranks, name), getattr(turned, name))


def test_scores_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "QUERY_TILE", 10)
    monkeypatch.setattr(metrics, "GALLERY_TILE", 8)
    seen = torch.zeros(37, 29)
    for start, left, scores in metrics.tiles(torch.ones(37, 8), torch.ones(29, 8)):
        assert scores.shape[0] <= 10 and scores.shape[1] <= 8
        seen[start : start + len(scores), left : left + scores.shape[1]] += 1
    assert bool((seen == 1).all())


def test_duplicates_tie_wherever_they_stand() -> None:
    generator = torch.Generator().manual_seed(1)
    original = torch.nn.functional.normalize(torch.randn(101, 67, generator=generator), dim=1)
    gallery = torch.cat([original, original.flip(0), original])
    queries = torch.nn.functional.normalize(torch.randn(50, 67, generator=generator), dim=1)
    ranks = rank(queries, gallery, Relevance.of(torch.arange(50), len(gallery)))
    assert torch.equal(ranks.tied, torch.full((50,), 3))
    assert torch.equal(ranks.above % 3, torch.zeros(50, dtype=torch.int64))


def test_constant_scores_are_chance() -> None:
    relevance = Relevance.of([{0}, {1, 2}, {3, 4, 5}], 40)
    ranks = rank(torch.ones(3, 4), torch.ones(40, 4), relevance)
    recalls = metrics.summarise(ranks)
    for name, value in metrics.chance(relevance.counts(), 40).items():
        assert recalls[name] == pytest.approx(value)
    assert recalls["R@1"] == pytest.approx(100 * (1 + 2 + 3) / 3 / 40)


def test_relevance_turned_is_the_other_direction() -> None:
    relevance = Relevance.of([{2}, {0, 4}, {1}, {0}, {2}, {2, 1}], 5).turned()
    groups = [
        set(relevance.items[a:b].tolist()) for a, b in zip(relevance.offsets, relevance.offsets[1:], strict=False)
    ]
    assert groups == [{1, 3}, {2, 5}, {0, 4, 5}, {1}]  # of items 0, 1, 2 and 4: nobody asks for 3


def reranked_order(scores: torch.Tensor, rows: list[int], match: list[float]) -> list[int]:
    first = [row for _, row in sorted(zip(match, rows, strict=True), key=lambda pair: -pair[0])]
    return first + [row for row in scores.argsort(descending=True).tolist() if row not in rows]


@pytest.mark.parametrize("seed", range(6))
def test_rerank_equals_the_reordered_list(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, gallery = torch.randn(9, 4, generator=generator), torch.randn(12, 4, generator=generator)
    relevant = [set(torch.randperm(12, generator=generator)[:count].tolist()) for count in (1, 1, 1, 2, 2, 3, 1, 1, 4)]
    relevance = Relevance.of(relevant, 12)
    plain = rank(queries, gallery, relevance)
    candidates = metrics.top(queries, gallery, 5)
    matches = torch.randn(9, 5, generator=generator)
    ranks = metrics.rerank(plain, relevance, candidates, matches)
    for query, wanted in enumerate(relevant):
        order = reranked_order(queries[query] @ gallery.T, candidates[1][query].tolist(), matches[query].tolist())
        assert ranks.expected()[query] == 1 + next(place for place, row in enumerate(order) if row in wanted)


def test_rerank_with_ties_at_the_edge_of_the_candidates() -> None:
    # Scores 1, 0, 0, 0: two candidates, the relevant row is not among them but level with the second.
    queries, gallery = torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    scores, rows = metrics.top(queries, gallery, 2)
    relevance = Relevance.of([min({1, 2, 3} - set(rows[0].tolist()))], 4)
    plain = rank(queries, gallery, relevance)
    ranks = metrics.rerank(plain, relevance, (scores, rows), torch.tensor([[0.3, 0.3]]))
    assert ranks.expected().item() == 3.5  # third or fourth, equally likely
    assert ranks.within(2).item() == 0 and ranks.within(3).item() == pytest.approx(0.5)


def test_intervals_hold_the_mean_repeat_by_seed_and_widen_for_grouped_queries() -> None:
    generator = torch.Generator().manual_seed(4)
    images = torch.nn.functional.normalize(torch.randn(60, 16, generator=generator), dim=1)
    owners = torch.arange(60).repeat_interleave(5)
    queries = images[owners] + 0.35 * torch.randn(60, 16, generator=generator)[owners]  # captions of one image agree
    ranks = rank(queries, images, Relevance.of(owners, 60))
    grouped = metrics.intervals(ranks, owners, 500, np.random.default_rng(0))
    single = metrics.intervals(ranks, torch.arange(300), 500, np.random.default_rng(0))
    recall = metrics.summarise(ranks)["R@1"]
    assert 0 < recall < 100
    assert single["R@1_interval"][0] < recall < single["R@1_interval"][1]
    width = grouped["R@1_interval"][1] - grouped["R@1_interval"][0]
    assert width > 1.5 * (single["R@1_interval"][1] - single["R@1_interval"][0])
    assert grouped == metrics.intervals(ranks, owners, 500, np.random.default_rng(0))


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_intervals_are_of_95_percent(share: float) -> None:
    """Of independent queries as wide as the normal approximation, which 90 % would miss by 16 %."""
    count = 2000
    right = np.arange(count) < share * count
    nothing = torch.zeros(count)
    ranks = Ranks(torch.tensor(np.where(right, 0, 50)), torch.ones(count), torch.ones(count), nothing)
    low, high = metrics.intervals(ranks, torch.arange(count), 4000, np.random.default_rng(0))["R@1_interval"]
    wanted = 2 * 1.96 * 100 * (share * (1 - share) / count) ** 0.5
    assert high - low == pytest.approx(wanted, rel=0.05) and (low + high) / 2 == pytest.approx(100 * share, abs=0.2)
    low, high = metrics.share_interval(right, np.arange(count), 4000, np.random.default_rng(1))
    assert high - low == pytest.approx(wanted, rel=0.05) and (low + high) / 2 == pytest.approx(100 * share, abs=0.2)


def test_median_and_reciprocal_rank_are_of_expected_ranks() -> None:
    above, tied = torch.tensor([0, 2, 4, 9]), torch.tensor([1, 2, 1, 1])
    ranks = Ranks(above, tied, torch.ones(4), torch.zeros(4))  # 1, 3 or 4, 5, 10
    found = metrics.summarise(ranks)
    assert found["median_rank"] == pytest.approx((3.5 + 5) / 2)
    assert found["mean_reciprocal_rank"] == pytest.approx((1 + 1 / 3.5 + 1 / 5 + 1 / 10) / 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_is_an_error_that_names_the_row(value: float) -> None:
    gallery = torch.ones(4, 2)
    gallery[2, 1] = value
    with pytest.raises(ValueError, match=r"gallery: 1 of 4 .* row 2"):
        rank(torch.ones(1, 2), gallery, Relevance.of([0], 4))


@pytest.mark.parametrize(
    ("relevant", "message"), [([[0], []], "no relevant gallery item"), ([0, 4], "outside the gallery of 4")]
)
def test_wrong_relevance_is_an_error(relevant: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Relevance.of(relevant, 4)


def test_widths_and_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="width 3, the gallery 2"):
        rank(torch.ones(1, 3), torch.ones(1, 2), Relevance.of([0], 1))
    with pytest.raises(ValueError, match="given for 2 queries"):
        rank(torch.ones(1, 2), torch.ones(1, 2), Relevance.of([0, 0], 1))
    with pytest.raises(ValueError, match="shape"):
        rank(torch.ones(0, 2), torch.ones(1, 2), Relevance.of([], 1))
