"""Masking against the original's own: the counts of 50 recorded cases exactly, their rates within chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.objectives.masked_lm import IGNORED, MaskedLM, choose_masks
from cclm.types import TextInput
from tests.models.test_model import tiny

SHARE, MOST, SPANS = 0.4, 12, 0.2  # what the cases were recorded with (reference/cclm.md 2.1)
TIMES = 200  # our own draws for every recorded one: their mean and deviation are the bounds of the recorded figure


@pytest.fixture(scope="module")
def cases(shared: Path) -> list[dict[str, Any]]:
    return torch.load(shared / "oracle" / "cclm_swin" / "expected.pt", weights_only=True)["masking"]["cases"]


def real(cases: list[dict[str, Any]], times: int = TIMES) -> Tensor:
    """(times * 50, L) bool: texts as long as the recorded ones."""
    lengths = torch.tensor([len(case["tokens"]) for case in cases]).repeat(times)
    return torch.arange(int(lengths.max())) < lengths[:, None]


def hits(mask: Tensor, span_share: float, seed: int = 0) -> Tensor:
    """(R, L) bool: what we mask."""
    positions, chosen = choose_masks(mask, SHARE, MOST, span_share, torch.Generator().manual_seed(seed))
    beyond = mask.shape[1]
    out = torch.zeros(len(mask), beyond + 1, dtype=torch.bool)
    return out.scatter(1, positions.where(chosen, beyond), True)[:, :beyond]


def recorded(cases: list[dict[str, Any]]) -> Tensor:
    """(50, L) bool: what the original masked."""
    mask = real(cases, 1)
    out = torch.zeros_like(mask)
    for row, case in enumerate(cases):
        out[row, case["pos"]] = True
    return out


def neighbours(hit: Tensor) -> Tensor:
    """(R,): masked tokens whose right neighbour is masked too."""
    return (hit[:, 1:] & hit[:, :-1]).sum(1).double()


def deviations(value: float, drawn: Tensor) -> float:
    """How many standard deviations the recorded `value` lies from sums of ours over as many texts; `drawn` (R,)."""
    sums = drawn.view(TIMES, -1).sum(1)
    return abs(value - sums.mean().item()) / sums.std().item()


def test_every_recorded_text_has_the_count_of_ours(cases: list[dict[str, Any]]) -> None:
    assert len(cases) == 50
    counts = hits(real(cases), SPANS).sum(1).view(TIMES, 50)
    for case, ours in zip(cases, counts.T, strict=True):
        expected = min(MOST, max(1, round(len(case["tokens"]) * SHARE)))
        assert len(set(case["pos"])) == expected and set(ours.tolist()) == {expected}
    assert max(len(case["pos"]) for case in cases) == MOST  # some texts are long enough to meet the bound


def test_the_first_token_is_never_masked_and_the_last_as_often_as_recorded(cases: list[dict[str, Any]]) -> None:
    mask = real(cases)
    ours, theirs = hits(mask, SPANS), recorded(cases)
    assert not ours[:, 0].any() and not theirs[:, 0].any() and not (ours & ~mask).any()
    last = ours.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0].double()  # (R,)
    count = sum(len(case["tokens"]) - 1 in case["pos"] for case in cases)
    assert count > 0 and deviations(count, last) < 3


def test_neighbours_are_masked_as_often_as_recorded(cases: list[dict[str, Any]]) -> None:
    """Three deviations accept the original's span share and refuse both single tokens and spans everywhere."""
    count = neighbours(recorded(cases)).sum().item()
    assert deviations(count, neighbours(hits(real(cases), SPANS))) < 3
    for other in (0.0, 1.0):
        assert deviations(count, neighbours(hits(real(cases), other))) > 5


def test_runs_are_as_long_as_recorded(cases: list[dict[str, Any]]) -> None:
    def runs(hit: Tensor, length: int) -> Tensor:
        """(R,): places where a run of at least `length` masked tokens begins."""
        edge = torch.nn.functional.pad(hit, (1, length))
        begins = ~edge[:, : hit.shape[1]]
        for step in range(length):
            begins = begins & edge[:, 1 + step : 1 + step + hit.shape[1]]
        return begins.sum(1).double()

    ours, theirs = hits(real(cases), SPANS), recorded(cases)
    for length in (1, 2, 3, 4):
        assert deviations(runs(theirs, length).sum().item(), runs(ours, length)) < 3


def test_replacements_are_80_10_10_here_and_there(cases: list[dict[str, Any]]) -> None:
    places = [(case, place) for case in cases for place in case["pos"]]
    became = [case["masked"][place] for case, place in places]
    kept = sum(token == case["tokens"][place] for token, (case, place) in zip(became, places, strict=True))
    for case in cases:
        same = [place for place, token in enumerate(case["tokens"]) if case["masked"][place] == token]
        assert set(range(len(case["tokens"]))) - set(same) <= set(case["pos"])

    model = tiny()
    mask = real(cases, 20)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 90, mask.shape, generator=generator)
    draft = MaskedLM(SHARE, MOST, SPANS).mask(TextInput(ids, mask), model, generator)
    chosen = draft.labels != IGNORED
    ours = draft.text.input_ids.gather(1, draft.positions)[chosen]
    for total, masked, same in (
        (len(places), became.count("<mask>"), kept),
        (len(ours), (ours == model.config.mask_token_id).sum().item(), (ours == draft.labels[chosen]).sum().item()),
    ):
        assert abs(masked - 0.8 * total) < 3 * (total * 0.8 * 0.2) ** 0.5  # binomial
        assert abs(same - 0.1 * total) < 3 * (total * 0.1 * 0.9) ** 0.5 + 0.1 * total / 90  # a random one may be itself
