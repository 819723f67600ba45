"""The lattice's arithmetic: expected values in both scale modes, and properties of snapping and quanta."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zo_common.lattice import grid as lattice
from zo_common.lattice.kernels.choice import KernelName
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update

MODES = ["unit", "rms"]
float32s = st.floats(-(2.0**60), 2.0**60, width=32)
magnitudes = st.floats(2.0**-20, 2.0**20, width=32)
scales = st.integers(-7, 4)
grids = st.integers(-26, 0)


@pytest.fixture
def example(golden: dict[str, Any], module_of: Callable[..., nn.Module]) -> nn.Module:
    """The unsnapped module of the vectors."""
    described = golden["lattice_example"]
    return module_of(
        **{
            name: torch.from_numpy(np.frombuffer(bytes.fromhex(text), "<f4").copy()).reshape(described["shapes"][name])
            for name, text in described["base_hex"].items()
        }
    )


def _hex(model: nn.Module) -> dict[str, str]:
    return {name: p.detach().numpy().astype("<f4").tobytes().hex() for name, p in model.named_parameters()}


def _digest(state: LatticeState) -> str:
    """The checksum's 8 bytes as the vectors write them."""
    return state.checksum().to_bytes(8, "little").hex()


@pytest.mark.parametrize("kernel", ["numpy", "numba", "torch"])
@pytest.mark.parametrize("mode", MODES)
class TestVectors:
    def test_exponents(self, golden: dict[str, Any], example: nn.Module, mode: Any, kernel: KernelName) -> None:
        expected = golden["lattice_example"]["modes"][mode]

        state = LatticeState(example, "all", mode, kernel=kernel)

        assert {n: k for n, (k, _) in state.exponents.items()} == expected["grid_exponent"]
        assert {n: s for n, (_, s) in state.exponents.items()} == expected["scale_exponent"]

    def test_snapped_weights_and_checksum(
        self, golden: dict[str, Any], example: nn.Module, mode: Any, kernel: KernelName
    ) -> None:
        expected = golden["lattice_example"]["modes"][mode]

        state = LatticeState(example, "all", mode, kernel=kernel)

        assert _hex(example) == expected["snapped_hex"]
        assert _digest(state) == expected["checksum_snapped"]

    def test_perturbation(self, golden: dict[str, Any], example: nn.Module, mode: Any, kernel: KernelName) -> None:
        expected = golden["lattice_example"]["modes"][mode]
        state = LatticeState(example, "all", mode, kernel=kernel)

        units = state.epsilon_units(expected["epsilon"])
        state.shift([42], units)

        assert dict(zip(state.exponents, units[:, 0].tolist(), strict=True)) == expected["epsilon_units"]
        assert _hex(example) == expected["perturbed_plus_seed42_hex"]

    def test_updates(self, golden: dict[str, Any], example: nn.Module, mode: Any, kernel: KernelName) -> None:
        expected = golden["lattice_example"]["modes"][mode]
        state = LatticeState(example, "all", mode, kernel=kernel)
        coefficients = [struct.unpack("<f", bytes.fromhex(u["coefficient_f32_hex"]))[0] for u in expected["updates"]]
        updates = [Update(u["seed"], c) for u, c in zip(expected["updates"], coefficients, strict=True)]

        state.apply(updates)

        quanta = [dict(zip(state.exponents, column, strict=True)) for column in state.units(coefficients).T.tolist()]
        assert quanta == [u["units"] for u in expected["updates"]]
        assert _hex(example) == expected["after_updates_hex"]
        assert _digest(state) == expected["checksum_after"]


def test_quantum_takes_the_coefficient_as_float32(golden: dict[str, Any]) -> None:
    for mode in golden["lattice_example"]["modes"].values():
        for update in mode["updates"]:
            for name, expected in update["units"].items():
                found = lattice.quantum(
                    update["coefficient"], mode["scale_exponent"][name], mode["grid_exponent"][name]
                )
                assert found == expected


@given(st.integers(-120, 120))
def test_ceil_log2_at_powers_of_two_and_their_neighbours(exponent: int) -> None:
    power = 2.0**exponent

    assert lattice.ceil_log2(power) == exponent
    assert lattice.ceil_log2(math.nextafter(power, math.inf)) == exponent + 1
    assert lattice.ceil_log2(math.nextafter(power, 0.0)) == exponent
    assert lattice.ceil_log2(float(np.nextafter(np.float32(power), np.float32(np.inf)))) == exponent + 1
    assert lattice.ceil_log2(float(np.nextafter(np.float32(power), np.float32(0)))) == exponent


@given(magnitudes)
def test_ceil_log2_bounds_its_argument(value: float) -> None:
    exponent = lattice.ceil_log2(value)

    assert Fraction(2) ** (exponent - 1) < Fraction(value) <= Fraction(2) ** exponent


@settings(deadline=None)
@given(st.lists(float32s, min_size=1, max_size=20))
def test_snapping_is_idempotent_nearest_and_leaves_twofold_headroom(values: list[float]) -> None:
    weight = torch.tensor(values)
    exponent = lattice.grid_exponent(weight)

    snapped = lattice.snap(weight, exponent)

    assert torch.equal(lattice.snap(snapped, exponent), snapped)
    for before, after in zip(weight.tolist(), snapped.tolist(), strict=True):
        units = Fraction(after) / Fraction(2) ** exponent
        assert units.denominator == 1
        assert abs(units) <= lattice.MAX_UNITS // 2
        assert units == round(Fraction(before) / Fraction(2) ** exponent)


@given(st.floats(-1e3, 1e3, width=32), scales, grids)
def test_quantum_is_odd_symmetric(coefficient: float, scale: int, grid: int) -> None:
    assert lattice.quantum(-coefficient, scale, grid) == -lattice.quantum(coefficient, scale, grid)


@given(st.floats(-1e3, 1e3, width=32), scales, grids)
def test_quantum_is_the_exact_ratio_rounded_half_to_even(coefficient: float, scale: int, grid: int) -> None:
    ratio = Fraction(coefficient) * Fraction(2) ** (scale - grid)

    assert lattice.quantum(coefficient, scale, grid) == round(ratio)


@given(scales, grids)
def test_least_epsilon_is_legal_and_the_float_below_is_not(scale: int, grid: int) -> None:
    least = lattice.least_epsilon(scale, grid)

    assert lattice.quantum(least, scale, grid) == 1
    assert lattice.quantum(float(np.nextafter(np.float32(least), np.float32(0))), scale, grid) == 0


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(0.0, -26), (0.125, -26), (0.1251, -25), (1.0, -23), (1.0000001, -22), (-3.9, -21), (4.0, -21)],
)
def test_grid_exponent(largest: float, expected: int) -> None:
    assert lattice.grid_exponent(torch.tensor([0.0, largest])) == expected


@pytest.mark.parametrize(("rms", "expected"), [(0.0, -7), (0.001, -7), (0.02, -6), (0.25, -2), (1.0, 0), (1.5, 1)])
def test_scale_exponent_is_the_rounded_logarithm_of_the_rms(rms: float, expected: int) -> None:
    weight = torch.tensor([rms, -rms, rms])

    assert lattice.scale_exponent(weight, "rms") == expected
    assert lattice.scale_exponent(weight, "unit") == 0


def test_an_empty_tensor_has_the_least_exponents() -> None:
    assert lattice.grid_exponent(torch.empty(0)) == -26
    assert lattice.scale_exponent(torch.empty(0), "rms") == -7


class TestWideGrid:
    @pytest.mark.parametrize(
        ("weights", "scale", "expected"),
        [
            (torch.zeros(4), "unit", 2.0**-26),
            (torch.zeros(4), "unit-wide", 2.0**-20),
            (torch.full((4,), 8.0), "unit-wide", 2.0**-20),
            (torch.full((4,), 8.5), "unit-wide", 2.0**-19),
            (torch.zeros(2, 2), "unit-wide", 2.0**-26),
        ],
    )
    def test_vectors_have_room_for_sixteen(self, weights: torch.Tensor, scale: lattice.Scale, expected: float) -> None:
        assert 2.0 ** lattice.grid_exponent(weights, scale) == expected

    def test_a_bias_travels_where_its_own_size_would_not_let_it(self, module_of: Callable[..., nn.Module]) -> None:
        state = LatticeState(module_of(bias=torch.full((3,), 0.01)), "*", "unit-wide")
        moves = [Update(seed, 1.0) for seed in range(8)]
        base = state.checksum()
        state.apply(moves)
        assert state.exponents["bias"] == (-20, 0)
        assert float(state.tensors[0].weight.abs().max()) > 1.0
        state.apply([Update(move.seed, -move.coefficient) for move in moves])
        assert state.checksum() == base
