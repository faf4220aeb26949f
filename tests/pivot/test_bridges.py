"""Bridges: shapes, masks, positions, gradients, the length of fresh states."""

from __future__ import annotations

import math

import pytest
import torch

from cclm.pivot.bridges import Bridge, BridgeSettings, GridStates, SequenceStates, Source

KINDS = ("mlp", "mean", "linear", "resampler", "qformer")
QUERIES = ("resampler", "qformer")
GRID = GridStates.of(width=12, states=10)


def bridge(kind: str, source: Source = GRID, norm: float | None = None, **settings: float) -> Bridge:
    torch.manual_seed(0)
    return BridgeSettings(kind, states=4, heads=2, **settings).build(source, 16, norm).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bridge_makes_as_many_states_as_it_says(kind: str) -> None:
    for source, length in ((GRID, 10), (SequenceStates(12), 7)):
        built = bridge(kind, source)
        states = built(torch.randn(3, length, 12))
        assert states.shape == (3, built.states(length), 16)
        assert built.states(length) == (4 if kind in (*QUERIES, "mean") else length)
        assert BridgeSettings(kind, states=4).count(length) == built.states(length)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_states_change_nothing_that_is_seen(kind: str) -> None:
    built, states = bridge(kind, SequenceStates(12)), torch.randn(2, 6, 12)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    other = torch.where(mask[..., None], states, torch.full_like(states, 100.0))
    seen = built.seen(mask)
    whole = kind in (*QUERIES, "mean")
    assert torch.equal(seen, torch.ones(2, 4, dtype=torch.bool) if whole else mask)
    assert torch.equal(built(states, mask)[seen], built(other, mask)[seen])
    shorter = built(states[1:, :4], mask[1:, :4])  # as if there had never been any padding
    assert torch.allclose(built(states, mask)[1, : shorter.shape[1]], shorter[0], atol=1e-5)
    if whole:
        assert not torch.allclose(built(states)[1], built(other)[1], atol=1e-3)  # without a mask they are read


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: str) -> None:
    built = bridge(kind).train()
    built(torch.randn(3, 10, 12)).pow(3).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in built.named_parameters() if "key.bias" not in name)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_states_are_as_long_as_asked(kind: str) -> None:
    states = torch.randn(3, 10, 12)
    assert torch.allclose(bridge(kind, norm=0.3)(states).norm(dim=-1), torch.tensor(0.3), rtol=1e-3)
    assert torch.allclose(bridge(kind)(states).norm(dim=-1), torch.tensor(math.sqrt(16)), rtol=1e-3)


def test_linear_and_mlp_are_what_they_say() -> None:
    assert [name for name, _ in bridge("linear").named_parameters()] == [
        *("output.weight", "output_norm.weight", "output_norm.bias")
    ]
    layers = [module for module in bridge("mlp", depth=3, width=20).modules() if isinstance(module, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(20, 16), (12, 20), (20, 20)]


def test_a_resampler_knows_where_patches_stand() -> None:
    built, states = bridge("resampler"), torch.randn(1, 10, 12)
    rows = states.clone()
    rows[:, [1, 4]] = states[:, [4, 1]]  # two patches of a column change places
    columns = states.clone()
    columns[:, [1, 2]] = states[:, [2, 1]]
    first = built(states)
    assert not torch.allclose(first, built(rows), atol=1e-4) and not torch.allclose(first, built(columns), atol=1e-4)
    positions = GRID.positions(10, 17, torch.device("cpu"))  # (L, C) of an odd width
    assert positions.shape == (10, 17) and len(positions.unique(dim=0)) == 10 and not positions[0].any()
    assert len(SequenceStates(12).positions(300, 16, torch.device("cpu")).unique(dim=0)) == 300


def test_patches_that_are_no_square_are_refused() -> None:
    for states in (0, 1, 9):
        with pytest.raises(ValueError, match=rf"gives {states} states .* no square; choose"):
            GridStates.of(12, states)
    with pytest.raises(ValueError, match="17 states of an image, the bridge reads 1 \\+ 3 x 3; give those"):
        bridge("resampler")(torch.randn(1, 17, 12))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "perceiver"}, "bridge.kind is 'perceiver'; choose one of mlp, mean, linear, resampler, qformer"),
        ({"states": 0}, "bridge.states is 0; give 1 or more"),
        ({"width": 0}, "bridge.width is 0; give 1 or more, or null"),
        ({"dropout": 1.0}, "bridge.dropout is 1.0; it is a share"),
    ],
)
def test_settings_that_make_no_bridge_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BridgeSettings(**settings)


def test_the_mean_is_read_for_its_direction() -> None:
    built, states = bridge("mean"), torch.randn(2, 6, 12)
    assert torch.allclose(built(states), built(7 * states), atol=1e-4)
    assert not torch.allclose(built(states), built(-states), atol=1e-2)


@pytest.mark.parametrize("kind", QUERIES)
def test_heads_that_do_not_divide_the_width_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="bridge.heads is 3, which does not divide its width 16; change one"):
        BridgeSettings(kind, heads=3).build(GRID, 16)


def test_states_in_half_are_read() -> None:
    states = torch.randn(2, 10, 12).half()
    for kind in KINDS:
        assert torch.equal(bridge(kind)(states), bridge(kind)(states.float()))
