"""A shift happens entirely or not at all, whichever way the seeds are cut into passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zo_common.directions.philox import direction
from zo_common.errors import LatticeOverflow
from zo_common.estimator.local_steps import run_local_steps
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.grid import MAX_UNITS
from zo_common.lattice.kernels.choice import KernelName
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]
KERNELS = pytest.mark.parametrize("kernel", ["numpy", "numba", "torch"])
KINDS = ["two-sided", "one-sided", "leave-one-out"]
HALF = MAX_UNITS // 2

terms = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.one_of(
            st.integers(-MAX_UNITS, MAX_UNITS),
            st.sampled_from([HALF, -HALF, HALF + 1, MAX_UNITS - 1, 1 - MAX_UNITS, MAX_UNITS]),
            st.integers(-9, 9),
        ),
    ),
    min_size=1,
    max_size=12,
)
base_units = st.lists(st.integers(-HALF, HALF), min_size=1, max_size=3)


def _seed(name: str, sign: int, start: int = 0) -> int:
    """The first seed from `start` on that moves the first element of `name` by `sign`."""
    return next(seed for seed in range(start, start + 64) if direction(seed, name, 1)[0] == sign)


@settings(max_examples=200, deadline=None)
@given(base_units, base_units, terms, st.booleans())
def test_a_refused_shift_leaves_every_bit(
    module_of: Models, weight_bytes: Reader, first: list[int], second: list[int], moves: Any, kernel: KernelName
) -> None:
    values = {"first": first, "second": second}
    # the grid is given, so that the integers are these ones
    model = module_of(**{name: torch.tensor(units, dtype=torch.float32) * 2.0**-24 for name, units in values.items()})
    state = LatticeState(model, "all", threads=1, kernel=kernel, exponents=dict.fromkeys(values, (-24, 0)))
    seeds = [seed for seed, _ in moves]
    units = np.array([[u for _, u in moves], [-(u // 3) for _, u in moves]], np.int64)
    moved = {
        name: [
            n + sum(int(u) * int(direction(s, name, i + 1)[i]) for s, u in zip(seeds, row, strict=True))
            for i, n in enumerate(values[name])
        ]
        for name, row in zip(values, units, strict=True)
    }
    before = weight_bytes(model)
    legal = all(abs(n) <= MAX_UNITS for ns in moved.values() for n in ns)

    if legal:
        state.shift(seeds, units)
        assert {name: (getattr(model, name).double() * 2.0**24).tolist() for name in values} == moved
    else:
        with pytest.raises(LatticeOverflow):
            state.shift(seeds, units)
        assert weight_bytes(model) == before


@KERNELS
def test_passes_already_made_are_taken_back_exactly(
    module_of: Models, weight_bytes: Reader, kernel: KernelName
) -> None:
    """Taking back in the same order would pass through 2**24 + an odd number, which float32 cannot hold."""
    odd = HALF - 1
    model = module_of(w=torch.tensor([odd * 2.0**-26]))
    state = LatticeState(model, "all", threads=1, kernel=kernel)
    assert state.exponents["w"] == (-26, 0)
    before = weight_bytes(model)
    up, other = _seed("w", 1), _seed("w", 1, start=64)

    with pytest.raises(LatticeOverflow):
        state.shift([up, other, up], np.array([[-odd, MAX_UNITS, MAX_UNITS]]))

    assert weight_bytes(model) == before


@KERNELS
@pytest.mark.parametrize("count", [2, 3, 7, 64, 65])
def test_an_overflow_by_the_last_of_many_seeds(
    module_of: Models, weight_bytes: Reader, kernel: KernelName, count: int
) -> None:
    model = module_of(v=torch.linspace(-0.1, 0.1, 200), w=torch.full((300,), 0.125))
    state = LatticeState(model, "all", threads=2, kernel=kernel)
    before, checksum = weight_bytes(model), state.checksum()
    units = np.full((2, count), 1001, np.int64)
    units[1, -1] = MAX_UNITS

    with pytest.raises(LatticeOverflow, match="'w'"):
        state.shift(list(range(count)), units)

    assert weight_bytes(model) == before
    assert state.checksum() == checksum
    # the bound was measured anew: what is legal goes on to work
    state.shift(list(range(count)), np.full((2, count), 1001))
    state.shift(list(range(count)), np.full((2, count), -1001))
    assert weight_bytes(model) == before


@KERNELS
@pytest.mark.parametrize("estimator", KINDS)
@pytest.mark.parametrize("queries", [2, 8, 33])
def test_a_perturbation_that_overflows_leaves_the_weights_as_before(
    module_of: Models, weight_bytes: Reader, estimator: Any, queries: int, kernel: KernelName
) -> None:
    model = module_of(a=torch.full((3,), 0.1), w=torch.full((3,), 0.125))  # ±0.25 is legal: 0.125 + 0.126 is not
    state = LatticeState(model, "all", threads=1, kernel=kernel)
    before = weight_bytes(model)
    losses = iter(range(1000))
    config = EstimatorConfig(estimator, num_queries=queries, epsilon=0.126)

    with pytest.raises(LatticeOverflow, match="'w'"):
        zo_step(state, lambda: torch.tensor([float(next(losses))]), 5, 0, config, 1e-3)

    assert weight_bytes(model) == before


def test_the_default_step_with_an_epsilon_too_large(module_of: Models, weight_bytes: Reader) -> None:
    model = module_of(a=torch.full((3,), 0.1), w=torch.full((3,), 0.125))
    state = LatticeState(model, "all")
    before = weight_bytes(model)

    with pytest.raises(LatticeOverflow):
        zo_step(state, lambda: model.w.double().sum(), 0, 0, EstimatorConfig(num_queries=2, epsilon=0.126), 1e-3)

    assert weight_bytes(model) == before


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rate", [0.3, 3.0, 30.0])
def test_an_update_that_overflows_leaves_the_weights_as_before(
    module_of: Models, weight_bytes: Reader, seed: int, rate: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = module_of(a=0.1 * torch.randn(200, generator=generator), w=torch.full((300,), 0.125))
    state = LatticeState(model, "all", threads=2)
    before = weight_bytes(model)

    def losses() -> torch.Tensor:
        return 30 * (model.w.double() - 5).square().mean().reshape(1)

    try:
        zo_step(state, losses, seed, 0, EstimatorConfig(num_queries=16, epsilon=1e-3), rate)
    except LatticeOverflow:
        assert weight_bytes(model) == before
    else:
        assert rate == 0.3
        assert weight_bytes(model) != before


def test_local_steps_that_overflow_late_return_to_the_global_weights(module_of: Models, weight_bytes: Reader) -> None:
    model = module_of(a=torch.linspace(-0.1, 0.1, 50), w=torch.full((60,), 0.125))
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)
    taken: list[int] = []
    config = EstimatorConfig(num_queries=4, epsilon=1e-3)

    with pytest.raises(LatticeOverflow):
        run_local_steps(
            state,
            lambda _: lambda: -model.w.double().mean().reshape(1),
            7,
            400,
            config,
            0.05,
            on_step=lambda step, _: taken.append(step),
        )

    assert len(taken) > 1
    assert weight_bytes(model) == before


@KERNELS
def test_more_seeds_than_the_bound_allows_at_once_are_cut_into_passes(module_of: Models, kernel: KernelName) -> None:
    model = module_of(w=torch.zeros(257))
    state = LatticeState(model, "all", threads=2, kernel=kernel)
    rng = np.random.default_rng(3)
    seeds = [int(s) for s in rng.integers(0, 2**63, 400)]
    units = rng.integers(-(MAX_UNITS // 60), MAX_UNITS // 60, (1, 400))
    expected = sum(int(u) * direction(s, "w", 257).astype(np.int64) for s, u in zip(seeds, units[0], strict=True))
    assert np.abs(units).sum() > 2 * MAX_UNITS
    assert np.abs(expected).max() <= MAX_UNITS

    state.shift(seeds, units)

    np.testing.assert_array_equal(state.tensors[0].weight.double().numpy() * 2.0**26, expected)
    assert state.passes == 1


@KERNELS
def test_no_seeds_are_no_pass(module_of: Models, weight_bytes: Reader, kernel: KernelName) -> None:
    model = module_of(w=torch.ones(3))
    state = LatticeState(model, "all", threads=1, kernel=kernel)
    before = weight_bytes(model)

    state.apply([])
    state.apply([Update(1, 0.0)])

    assert weight_bytes(model) == before
    assert state.passes == 1
