"""Rounding noise of a known size is found, smooth losses have none, and a drowned difference is said."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from zo_common.errors import EpsilonTooSmall
from zo_common.estimator.rounding_noise import LIMIT, measure_noise
from zo_common.lattice.state import LatticeState

Models = Callable[..., nn.Module]
SEEDS = [11, 12, 13, 14]


def _smooth(model: nn.Module) -> Callable[[], torch.Tensor]:
    """A smooth loss in float64 of the float32 weights: no rounding but the weights' own, which is exact."""

    def loss() -> torch.Tensor:
        flat = torch.cat([p.detach().double().flatten() for p in model.parameters()])
        return torch.stack([torch.sin(flat * k).sum() for k in (1.0, 1.5)])

    return loss


def test_a_smooth_loss_has_no_noise_and_its_difference_is_the_derivative(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    before = state.checksum()

    found = measure_noise(state, _smooth(model), SEEDS, 2.0**-10)

    flat = torch.cat([p.detach().double().flatten() for _, p in sorted(model.named_parameters())])
    gradient = sum(k * torch.cos(flat * k) for k in (1.0, 1.5)) / 2
    slopes = []
    for seed in SEEDS:
        state.shift([seed], state.epsilon_units(2.0**-10))
        moved = torch.cat([p.detach().double().flatten() for _, p in sorted(model.named_parameters())])
        slopes.append(float((gradient * (moved - flat)).sum()))
        state.shift([seed], -state.epsilon_units(2.0**-10))
    assert found.difference == pytest.approx(float(np.sqrt(np.mean(np.square(slopes)))), rel=1e-3)
    assert found.share < 1e-3
    assert not found.too_large
    assert state.checksum() == before


def test_noise_of_a_known_size_is_found(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    rng = np.random.default_rng(0)
    exact = _smooth(model)

    found = measure_noise(state, lambda: exact() + 1e-2 * rng.standard_normal(), list(range(200)), 2.0**-10)

    # a half difference of two losses holds noise of 1/√2 of one loss's
    assert found.noise == pytest.approx(1e-2 / np.sqrt(2), rel=0.15)


def test_weights_rounded_to_bfloat16_drown_a_small_epsilon_and_not_a_large_one(small_model: Models) -> None:
    """As under autocast: the lattice weights are float32, the products see them in bfloat16."""
    model = small_model(hidden=2000)
    state = LatticeState(model, "all", threads=1)

    def loss() -> torch.Tensor:
        return torch.sin(torch.cat([p.detach().bfloat16().double().flatten() for p in model.parameters()])).sum()

    shares = [measure_noise(state, loss, list(range(20)), 2.0**-e).share for e in (7, 14)]

    assert shares[0] < LIMIT / 2
    assert shares[1] > LIMIT


def test_a_constant_loss_drowns(small_model: Models) -> None:
    state = LatticeState(small_model(), "all", threads=1)

    found = measure_noise(state, lambda: torch.ones(3), SEEDS, 1e-3)

    assert (found.difference, found.share, found.too_large) == (0.0, 1.0, True)


def test_the_least_epsilon_is_compared_with_larger_ones(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    least = max(2.0**grid for grid, _ in state.exponents.values())
    before = state.checksum()

    found = measure_noise(state, _smooth(model), SEEDS, least)

    assert 0 < found.difference < 1e-3
    assert found.share < 1e-3
    assert state.checksum() == before
    with pytest.raises(EpsilonTooSmall):
        measure_noise(state, _smooth(model), SEEDS, least / 4)


def test_an_error_of_the_loss_leaves_the_weights(small_model: Models) -> None:
    state = LatticeState(small_model(), "all", threads=1)
    before = state.checksum()

    def broken() -> torch.Tensor:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        measure_noise(state, broken, SEEDS, 1e-3)
    assert state.checksum() == before
