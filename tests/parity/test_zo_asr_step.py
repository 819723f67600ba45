"""One of our steps is one of MeZO's and ZO-ASR's, written independently, after converting the learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from zo_common.directions.philox import direction
from zo_common.directions.seeds import direction_seed
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.kernels.choice import KernelName
from zo_common.lattice.state import LatticeState

EPSILON = 2.0**-9  # a whole number of grid units, so both sides evaluate the loss at the same points
QUERIES = 4
Weights = dict[str, NDArray[np.float64]]


def _model() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 13), nn.Linear(13, 3, bias=False))
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return model


def _loss(weights: Weights) -> float:
    """A small network's squared error in float64; no part of it is ours."""
    rng = np.random.default_rng(8)
    inputs, targets = rng.normal(size=(10, 7)), rng.normal(size=(10, 3))
    hidden = np.tanh(inputs @ weights["0.weight"].T + weights["0.bias"])
    return float(np.mean((hidden @ weights["1.weight"].T - targets) ** 2))


def _weights(model: nn.Module) -> Weights:
    return {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}


def _mezo_step(weights: Weights, seeds: list[int], learning_rate: float) -> None:
    """MeZO's loop: perturb by +ε, −2ε, +ε; then ZO-ASR's rule, the sum over queries, after all are measured."""

    def add(seed: int, factor: float) -> None:
        for name in weights:
            weights[name] += factor * direction(seed, name, weights[name].size).reshape(weights[name].shape)

    grads = []
    for seed in seeds:
        add(seed, EPSILON)
        loss_plus = _loss(weights)
        add(seed, -2 * EPSILON)
        loss_minus = _loss(weights)
        add(seed, EPSILON)
        grads.append((loss_plus - loss_minus) / (2 * EPSILON))
    for seed, grad in zip(seeds, grads, strict=True):
        add(seed, -learning_rate * grad)


@pytest.mark.parametrize("kernel", ["numpy", "numba", "torch"])
def test_a_step_equals_zo_asr_with_q_times_its_learning_rate(kernel: KernelName) -> None:
    sum_rate = 1e-2
    model = _model()
    state = LatticeState(model, "all", threads=1, kernel=kernel)
    expected = start = _weights(model)
    start = {name: w.copy() for name, w in start.items()}
    seeds = [direction_seed(21, 0, j) for j in range(QUERIES)]

    _mezo_step(expected, seeds, sum_rate)
    config = EstimatorConfig("two-sided", QUERIES, EPSILON)
    zo_step(state, lambda: torch.tensor(_loss(_weights(model)), dtype=torch.float64), 21, 0, config, QUERIES * sum_rate)

    found = _weights(model)
    for t in state.tensors:
        unit = 2.0**t.grid_exponent
        # every direction's coefficient is rounded once to half a unit (and to float32, negligible beside it)
        tolerance = 0.51 * QUERIES * unit
        assert np.abs(found[t.name] - expected[t.name]).max() <= tolerance
        assert np.abs(expected[t.name] - start[t.name]).max() > 1000 * tolerance


def test_many_steps_stay_within_the_rounding_of_the_grid() -> None:
    sum_rate, steps = 1e-2, 20
    model = _model()
    state = LatticeState(model, "all", threads=1)
    expected: Any = _weights(model)
    config = EstimatorConfig("two-sided", QUERIES, EPSILON)
    before = _loss(expected)

    for step in range(steps):
        _mezo_step(expected, [direction_seed(21, step, j) for j in range(QUERIES)], sum_rate)
        zo_step(
            state,
            lambda: torch.tensor(_loss(_weights(model)), dtype=torch.float64),
            21,
            step,
            config,
            QUERIES * sum_rate,
        )

    found = _weights(model)
    assert max(np.abs(found[name] - expected[name]).max() for name in found) < 1e-4
    assert _loss(found) == pytest.approx(_loss(expected), abs=1e-5)
    assert _loss(found) < 0.9 * before
