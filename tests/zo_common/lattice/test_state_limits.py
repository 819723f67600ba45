"""What the lattice state refuses, and that it refuses exactly that."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zo_common.directions.philox import direction
from zo_common.errors import EpsilonTooSmall, LatticeOverflow, UnsupportedModel
from zo_common.lattice.grid import MAX_UNITS, least_epsilon
from zo_common.lattice.kernels.choice import KernelName
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]
KERNELS = pytest.mark.parametrize("kernel", ["numpy", "numba", "torch"])

large_units = st.one_of(
    st.integers(-(MAX_UNITS + 2), MAX_UNITS + 2),
    st.sampled_from([MAX_UNITS, -MAX_UNITS, MAX_UNITS // 2, MAX_UNITS // 2 + 1, 2 * MAX_UNITS, -2 * MAX_UNITS]),
    st.integers(-100, 100),
)
terms = st.lists(st.tuples(st.integers(0, 3), large_units), min_size=1, max_size=6)


def _integers(state: LatticeState) -> list[list[int]]:
    return [(t.weight.double().reshape(-1) * 2.0**-t.grid_exponent).long().tolist() for t in state.tensors]


@settings(max_examples=150, deadline=None)
@given(terms, st.booleans())
def test_overflow_is_raised_exactly_when_the_true_result_is_out_of_range(
    module_of: Models, moves: list[tuple[int, int]], kernel: KernelName
) -> None:
    model = module_of(first=torch.tensor([0.01, -0.1]), second=torch.tensor([0.125, 0.0, -0.125]))
    state = LatticeState(model, "all", threads=1, kernel=kernel)
    seeds = [seed for seed, _ in moves]
    units = np.array([[u for _, u in moves], [u // 2 for _, u in moves]], np.int64)
    expected = _integers(state)
    for t, tensor in enumerate(state.tensors):
        for j, seed in enumerate(seeds):
            signs = direction(seed, tensor.name, len(expected[t])).tolist()
            expected[t] = [n + int(units[t, j]) * z for n, z in zip(expected[t], signs, strict=True)]
    peaks = [max(map(abs, row)) for row in expected]
    before = _integers(state)

    if max(peaks) > MAX_UNITS:
        worst = state.tensors[peaks.index(max(peaks))].name
        with pytest.raises(LatticeOverflow, match=f"^tensor '{worst}' .* would reach {max(peaks)} units"):
            state.shift(seeds, units)
        assert _integers(state) == before
    else:
        state.shift(seeds, units)
        assert _integers(state) == expected


@KERNELS
def test_partial_sums_may_leave_the_range_and_come_back(
    module_of: Models, weight_bytes: Reader, kernel: KernelName
) -> None:
    model = module_of(w=torch.linspace(-0.125, 0.125, 9))
    state = LatticeState(model, "all", threads=1, kernel=kernel)
    before = weight_bytes(model)

    state.shift([1, 2, 1, 2], np.array([[2 * MAX_UNITS, MAX_UNITS, -2 * MAX_UNITS, -MAX_UNITS]]))

    assert weight_bytes(model) == before


@KERNELS
def test_the_fast_path_is_exact_after_a_detour_through_the_checked_one(module_of: Models, kernel: KernelName) -> None:
    model = module_of(w=torch.zeros(5))
    state = LatticeState(model, "all", threads=1, kernel=kernel)
    signs = direction(1, "w", 5).astype(np.int64)

    state.shift([1, 1], np.array([[2 * MAX_UNITS, -MAX_UNITS - 1]]))
    state.shift([1], np.array([[1]]))
    assert _integers(state) == [(signs * MAX_UNITS).tolist()]

    with pytest.raises(LatticeOverflow, match=f"'w'.*{MAX_UNITS + 1} units"):
        state.shift([1], np.array([[1]]))


@KERNELS
def test_many_small_steps_reach_the_border_and_no_further(module_of: Models, kernel: KernelName) -> None:
    model = module_of(w=torch.zeros(3))
    state = LatticeState(model, "all", threads=1, kernel=kernel)
    step = MAX_UNITS // 16

    for _ in range(16):
        state.shift([4], np.array([[step]]))

    assert max(map(abs, _integers(state)[0])) == MAX_UNITS
    with pytest.raises(LatticeOverflow, match="'w'"):
        state.shift([4], np.array([[step]]))


@KERNELS
@pytest.mark.parametrize("coefficient", [1.0, -1.0, float("inf"), float("nan")])
def test_a_coefficient_beyond_the_lattice_is_refused_before_anything_moves(
    module_of: Models, weight_bytes: Reader, kernel: KernelName, coefficient: float
) -> None:
    model = module_of(coarse=torch.tensor([60.0]), fine=torch.tensor([0.1]))  # 1.0 is 2**26 units of `fine`
    state = LatticeState(model, "all", threads=1, kernel=kernel)
    before = weight_bytes(model)

    with pytest.raises(LatticeOverflow, match="learning rate") as caught:
        state.apply([Update(1, 1e-3), Update(2, coefficient)])

    assert ("'fine'" in str(caught.value)) or not np.isfinite(coefficient)
    assert weight_bytes(model) == before


def test_epsilon_too_small_names_the_tensor_and_an_epsilon_that_works(module_of: Models) -> None:
    model = module_of(coarse=torch.tensor([50.0, 0.1]), fine=torch.tensor([0.1]), middle=torch.tensor([3.0]))
    state = LatticeState(model, "all", threads=1)

    with pytest.raises(EpsilonTooSmall, match="'coarse'") as caught:
        state.epsilon_units(2.0**-20)

    stated = re.search(r"least legal epsilon .* is (\S+)$", str(caught.value))
    assert stated is not None
    assert np.all(state.epsilon_units(float(stated[1])) != 0)
    least = least_epsilon(0, state.exponents["coarse"][0])
    assert float(np.float32(stated[1])) == least
    with pytest.raises(EpsilonTooSmall):
        state.epsilon_units(float(np.nextafter(np.float32(least), np.float32(0))))


@pytest.mark.parametrize("epsilon", [1e30, 1e308])
@pytest.mark.filterwarnings("error")
def test_epsilon_too_large_is_said_to_be_epsilon(module_of: Models, epsilon: float) -> None:
    state = LatticeState(module_of(w=torch.tensor([0.5])), "all", threads=1)

    with pytest.raises(LatticeOverflow) as caught:
        state.epsilon_units(epsilon)

    assert str(caught.value) == f"epsilon {epsilon:g} is beyond the lattice of tensor 'w': lower it"


@settings(deadline=None)
@given(st.floats(2.0**-10, 2.0**10, width=32), st.sampled_from(["unit", "rms"]))
def test_the_epsilon_named_by_the_message_is_always_legal(module_of: Models, largest: float, scale: str) -> None:
    model = module_of(w=torch.tensor([largest, 0.0]))
    state = LatticeState(model, "all", scale, threads=1)  # type: ignore[arg-type]

    with pytest.raises(EpsilonTooSmall) as caught:
        state.epsilon_units(1e-30)

    assert np.all(state.epsilon_units(float(str(caught.value).split()[-1])) != 0)


def test_half_precision_is_refused(module_of: Models) -> None:
    model = module_of(**{"a.weight": torch.zeros(3, dtype=torch.float16)})

    with pytest.raises(UnsupportedModel, match=r"'a\.weight' has dtype torch\.float16.*float32"):
        LatticeState(model, "all")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights_are_refused(module_of: Models, value: float) -> None:
    model = module_of(**{"a.bias": torch.zeros(3), "a.weight": torch.tensor([1.0, value])})

    with pytest.raises(UnsupportedModel, match=r"'a\.weight'.*NaN or infinite"):
        LatticeState(model, "all")


def test_frozen_tensors_may_hold_what_they_like(module_of: Models) -> None:
    model = module_of(
        frozen=torch.tensor([float("nan")]), half_precision=torch.zeros(2).half(), trained=torch.tensor([1.0])
    )

    assert list(LatticeState(model, "trained").exponents) == ["trained"]


@KERNELS
def test_a_moved_or_replaced_parameter_is_detected(module_of: Models, kernel: KernelName) -> None:
    for name, move in {
        "data": lambda m: setattr(m.w, "data", m.w.data.clone()),
        "parameter": lambda m: setattr(m, "w", nn.Parameter(m.w.detach().clone())),
        "dtype": lambda m: m.double(),
    }.items():
        model = module_of(v=torch.ones(2), w=torch.ones(3))
        state = LatticeState(model, "all", threads=1, kernel=kernel)
        move(model)

        with pytest.raises(UnsupportedModel, match=r"'w'|'v'"):
            state.apply([Update(1, 1e-3)])
        assert torch.equal(model.v.detach().float(), torch.ones(2)), name
