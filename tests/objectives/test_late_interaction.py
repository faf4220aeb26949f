"""Late interaction: each token finds its like among the states of its own context; padding is no partner."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from cclm.objectives.base import EncodedPair
from cclm.objectives.late_interaction import LateInteraction, interaction
from cclm.types import View


def view(states: torch.Tensor, lengths: list[int]) -> View:
    mask = torch.arange(states.shape[1]) < torch.tensor(lengths)[:, None]
    return View(states, mask, torch.zeros(len(states), 1))


def pair(context: View, target: View, scale: float = 10.0) -> EncodedPair:
    return EncodedPair(SimpleNamespace(scale=lambda: scale), None, context, target)


def test_every_part_counts_its_best_partner() -> None:
    torch.manual_seed(0)
    context, target = view(torch.randn(3, 4, 5), [4, 3, 1]), view(torch.randn(2, 6, 5), [6, 2])
    found = interaction(context, target)
    for row in range(3):
        for column in range(2):
            states = F.normalize(context.states[row][context.mask[row]], dim=-1)
            tokens = F.normalize(target.states[column][target.mask[column]], dim=-1)
            alike = tokens @ states.T
            both = sum(float(alike.amax(axis).mean()) for axis in (0, 1))
            assert math.isclose(float(found[row, column]), both / 2, abs_tol=1e-6)


def test_padding_is_neither_partner_nor_token() -> None:
    torch.manual_seed(0)
    context, target = view(torch.randn(2, 4, 5), [4, 2]), view(torch.randn(2, 4, 5), [3, 4])
    loss = LateInteraction()(pair(context, target))
    changed = context.states.clone()
    changed[1, 2:] = target.states[1, :2]  # what would have fitted well
    words = target.states.clone()
    words[0, 3] = 100.0
    again = LateInteraction()(pair(view(changed, [4, 2]), view(words, [3, 4])))
    assert torch.equal(loss, again)


def test_contexts_that_hold_their_own_words_in_any_order_lose_nothing() -> None:
    words = torch.eye(6).reshape(2, 3, 6)
    told = pair(view(words.flip(1), [3, 3]), view(words, [3, 3]), scale=50.0)
    assert LateInteraction()(told) < 1e-4
    more = torch.cat([words.flip(1), -words], dim=1)  # and as much that nobody said
    assert interaction(view(more, [6, 6]), told.target).diag().allclose(torch.tensor(0.75))
    wrong = pair(view(words.flip(0), [3, 3]), view(words, [3, 3]), scale=50.0)
    assert LateInteraction()(wrong) > 10


def test_the_context_learns() -> None:
    states = torch.randn(3, 4, 5, requires_grad=True)
    LateInteraction()(pair(view(states, [4] * 3), view(torch.randn(3, 2, 5), [2] * 3))).backward()
    assert states.grad is not None and states.grad.abs().sum() > 0
