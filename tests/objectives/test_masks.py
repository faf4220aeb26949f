"""How tokens are chosen and corrupted, against the rates that the reference's recorded cases show."""

from __future__ import annotations

import torch

from cclm.objectives.masked_lm import IGNORED, MaskedLM, choose_masks
from cclm.types import TextInput
from tests.models.test_model import tiny


def lengths(rows: int, longest: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(3, longest + 1, (rows,), generator=generator)


def mask_of(counts: torch.Tensor, longest: int) -> torch.Tensor:
    return torch.arange(longest) < counts[:, None]


def test_every_text_gets_its_share_of_distinct_real_tokens() -> None:
    counts = lengths(500, 30)
    positions, chosen = choose_masks(mask_of(counts, 30), 0.4, 10, 0.2, torch.Generator().manual_seed(0))
    expected = (counts * 0.4).round().clamp(1, 10)
    assert torch.equal(chosen.sum(1), expected.long())
    for row in range(500):
        picked = positions[row][chosen[row]]
        assert len(picked.unique()) == len(picked)
        assert picked.min() >= 1 and picked.max() < counts[row]  # never <s>, never padding; </s> may be


def test_every_position_but_the_first_is_as_likely() -> None:
    counts = torch.full((6000,), 11)
    positions, chosen = choose_masks(mask_of(counts, 11), 0.4, 12, 0.0, torch.Generator().manual_seed(0))
    share = torch.bincount(positions[chosen], minlength=11)[1:] / 6000
    assert share.sum() == 4 and (share - 0.4).abs().max() < 0.03


def test_spans_make_neighbours_more_frequent_than_chance() -> None:
    """The reference starts a span of two or three at a fifth of its positions (reference/cclm.md 2.1)."""

    def neighbours(span_share: float) -> float:
        mask = mask_of(torch.full((4000,), 40), 40)
        positions, chosen = choose_masks(mask, 0.2, 12, span_share, torch.Generator().manual_seed(1))
        hit = torch.zeros(4000, 41, dtype=torch.bool).scatter(1, positions.where(chosen, 40), True)[:, :40]
        return (hit[:, 1:] & hit[:, :-1]).sum().item() / hit.sum().item()

    assert neighbours(0.0) < 0.20 < 0.24 < neighbours(0.2) < neighbours(1.0)


def test_corruption_is_80_10_10_and_labels_are_the_originals() -> None:
    model = tiny()
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 90, (800, 20), generator=generator)
    text = TextInput(ids, torch.ones_like(ids, dtype=torch.bool))
    draft = MaskedLM(max_masks=12).mask(text, model, generator)
    chosen = draft.labels != IGNORED
    assert torch.equal(draft.labels[chosen], ids.gather(1, draft.positions)[chosen])
    corrupted = draft.text.input_ids.gather(1, draft.positions)[chosen]
    masked = (corrupted == model.config.mask_token_id).float().mean()
    kept = (corrupted == draft.labels[chosen]).float().mean()
    assert abs(masked - 0.8) < 0.02 and abs(kept - 0.1) < 0.02
    touched = torch.zeros_like(ids, dtype=torch.bool).scatter(1, draft.positions, chosen)
    assert torch.equal(draft.text.input_ids[~touched], ids[~touched])


def test_an_impossible_share_is_refused() -> None:
    import pytest

    with pytest.raises(ValueError, match=r"share is 40; choose a share of the tokens in \(0, 1\]"):
        MaskedLM(share=40)
