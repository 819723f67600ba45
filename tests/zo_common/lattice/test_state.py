"""The lattice state moves weights exactly: reversible, in any order, on any number of threads, on any kernel."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zo_common.directions.philox import direction
from zo_common.errors import ChecksumMismatch
from zo_common.lattice.grid import MAX_UNITS
from zo_common.lattice.kernels.choice import KernelName
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]

seeds = st.integers(0, 2**64 - 1)
coefficients = st.floats(-(2.0**-7), 2.0**-7, width=32)
updates_lists = st.lists(st.builds(Update, seeds, coefficients), min_size=1, max_size=8)
scales = st.sampled_from(["unit", "rms"])
quick = settings(max_examples=25, deadline=None)


@quick
@given(st.integers(0, 99), seeds, st.sampled_from([1e-2, 1e-3, 1e-4]), scales, st.booleans())
def test_perturb_then_restore_is_the_identity(
    small_model: Models,
    weight_bytes: Reader,
    model_seed: int,
    seed: int,
    epsilon: float,
    scale: Any,
    kernel: KernelName,
) -> None:
    model = small_model(model_seed)
    state = LatticeState(model, "all", scale, threads=1, kernel=kernel)
    before = weight_bytes(model)

    units = state.epsilon_units(epsilon)
    state.shift([seed], units)
    moved = weight_bytes(model)
    state.shift([seed], -2 * units)
    state.shift([seed], units)

    assert weight_bytes(model) == before
    assert all(moved[name] != before[name] for name in before)


@quick
@given(updates_lists, st.randoms(use_true_random=False), scales)
def test_updates_commute_and_group_freely(
    small_model: Models, weight_bytes: Reader, updates: list[Update], rng: random.Random, scale: Any
) -> None:
    fused, single, grouped = (small_model(), small_model(), small_model())
    shuffled = rng.sample(updates, len(updates))
    cut = rng.randint(0, len(updates))

    LatticeState(fused, "all", scale, threads=1).apply(updates)
    one_by_one = LatticeState(single, "all", scale, threads=1)
    for update in shuffled:
        one_by_one.apply([update])
    in_two = LatticeState(grouped, "all", scale, threads=1)
    in_two.apply(shuffled[cut:])
    in_two.apply(shuffled[:cut])

    assert weight_bytes(fused) == weight_bytes(single) == weight_bytes(grouped)


@quick
@given(updates_lists, scales)
def test_weights_are_the_integers_of_the_formula(small_model: Models, updates: list[Update], scale: Any) -> None:
    model = small_model()
    state = LatticeState(model, "all", scale, threads=1)
    expected = {}
    for t in state.tensors:
        units = (t.weight.double().reshape(-1).numpy() * 2.0**-t.grid_exponent).astype(np.int64)
        for update in updates:
            quantum = round(float(np.float32(update.coefficient)) * 2.0 ** (t.scale_exponent - t.grid_exponent))
            units = units + quantum * direction(update.seed, t.name, len(units)).astype(np.int64)
        expected[t.name] = units

    state.apply(updates)

    for t in state.tensors:
        found = t.weight.double().reshape(-1).numpy() * 2.0**-t.grid_exponent
        np.testing.assert_array_equal(found, expected[t.name])


@quick
@given(updates_lists, st.booleans())
def test_undo_returns_to_the_base(
    small_model: Models, weight_bytes: Reader, updates: list[Update], kernel: KernelName
) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1, kernel=kernel)
    base, checksum = weight_bytes(model), state.checksum()

    state.apply(updates)
    for update in updates:
        state.apply([update], sign=-1)

    assert weight_bytes(model) == base
    assert state.checksum() == checksum


def _large_model() -> nn.Module:
    """Four tensors that share no chunk boundary with any number of threads tested."""
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Linear(129, 257), nn.Linear(257, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


UPDATES = [Update(11, 1e-3), Update(2**63 + 5, -2.5e-3), Update(13, 7e-4), Update(11, -1e-5)]


def _after_updates(**options: Any) -> tuple[nn.Module, int]:
    model = _large_model()
    state = LatticeState(model, "all", **options)
    state.apply(UPDATES)
    return model, state.checksum()


@pytest.mark.parametrize(
    "options",
    [
        *({"threads": threads, "kernel": "numba"} for threads in (2, 3, 7)),
        {"kernel": "torch"},
        {"kernel": "numpy"},
        {},
    ],
)
def test_threads_and_kernels_change_nothing(weight_bytes: Reader, options: dict[str, Any]) -> None:
    expected, expected_checksum = _after_updates(threads=1)

    model, checksum = _after_updates(**options)

    assert weight_bytes(model) == weight_bytes(expected)
    assert checksum == expected_checksum


def test_another_process_reaches_the_same_checksum() -> None:
    _, checksum = _after_updates(threads=2, kernel="numba")
    program = """
import torch
from torch import nn
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
generator = torch.Generator().manual_seed(5)
model = nn.Sequential(nn.Linear(129, 257), nn.Linear(257, 3))
for parameter in model.parameters():
    parameter.data = torch.randn(parameter.shape, generator=generator)
state = LatticeState(model, "all", threads=3, kernel="numba")
state.apply([Update(13, 7e-4), Update(11, -1e-5), Update(11, 1e-3), Update(2**63 + 5, -2.5e-3)])
print(state.checksum())
"""

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)

    assert int(run.stdout) == checksum


@pytest.mark.timeout(60)
def test_a_forked_child_has_threads_of_its_own() -> None:
    program = """
import multiprocessing
import torch
from torch import nn
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
torch.set_num_threads(1)  # OpenMP's own threads do not survive a fork either, but they are not ours
def move():
    model = nn.Linear(200, 200)
    state = LatticeState(model, "all", threads=2)
    state.apply([Update(1, 1e-3)])
move()
child = multiprocessing.get_context("fork").Process(target=move)
child.start()
child.join(20)
print(child.exitcode)
child.kill()
"""

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)

    assert run.stdout.strip() == "0"


def test_the_checksum_sees_one_unit_its_place_and_its_tensor(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    grid = 2.0 ** state.tensors[0].grid_exponent
    flat = state.tensors[0].weight.view(-1)
    seen = {state.checksum()}

    for index in range(len(flat)):
        flat[index] += grid
        seen.add(state.checksum())
        flat[index] -= grid

    assert len(seen) == 1 + len(flat)


def test_expected_checksum(small_model: Models) -> None:
    state = LatticeState(small_model(), "all", threads=1)
    checksum = state.checksum()

    state.expect_checksum(checksum)
    state.apply([Update(1, 1e-3)])

    with pytest.raises(ChecksumMismatch, match=f"expected {checksum:016x}"):
        state.expect_checksum(checksum)


def test_given_exponents_replace_those_of_the_weights(small_model: Models) -> None:
    base = LatticeState(small_model(), "all", "rms", threads=1)
    exponents = {name: (grid + 1, scale - 1) for name, (grid, scale) in base.exponents.items()}

    state = LatticeState(small_model(), "all", "rms", exponents=exponents, threads=1)

    assert state.exponents == exponents


def test_only_the_chosen_tensors_move(small_model: Models, weight_bytes: Reader) -> None:
    model = small_model()
    before = weight_bytes(model)

    LatticeState(model, "0.weight", threads=1).apply([Update(3, 1e-2)])

    changed = {name for name, value in weight_bytes(model).items() if value != before[name]}
    assert changed == {"0.weight"}


def test_updates_of_zero_quanta_are_counted_per_tensor_and_do_nothing(module_of: Models, weight_bytes: Reader) -> None:
    fine, coarse = torch.tensor([0.1, -0.05]), torch.tensor([60.0, 1.0])  # grids 2**-26 and 2**-17
    model = module_of(coarse=coarse, fine=fine)
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)

    state.apply([Update(1, 2.0**-20), Update(2, 0.0), Update(3, 2.0**-17), Update(4, 2.0**-30)])

    assert (state.zero_quanta, state.quanta) == (3, 6)
    state.apply([Update(3, 2.0**-17)], sign=-1)
    assert weight_bytes(model)["coarse"] == before["coarse"]
    assert weight_bytes(model)["fine"] != before["fine"]
    assert (state.zero_quanta, state.quanta) == (3, 6)


def test_tied_tensors_move_once_under_their_first_name(weight_bytes: Reader) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Linear(5, 9, bias=False)
            self.embedding = nn.Embedding(9, 5)
            self.output.weight = self.embedding.weight

    model = Tied()
    model.embedding.weight.data = torch.linspace(-1, 1, 45).reshape(9, 5)
    state = LatticeState(model, "all", threads=1)
    before = model.embedding.weight.detach().clone()

    state.apply([Update(7, 2.0**-6)])

    expected = before.reshape(-1) + 2.0**-6 * torch.from_numpy(direction(7, "embedding.weight", 45))
    assert [t.name for t in state.tensors] == ["embedding.weight"]
    assert state.num_elements == 45
    assert torch.equal(model.output.weight.detach().reshape(-1), expected)


def test_directions_follow_the_row_major_order_of_a_non_contiguous_parameter(module_of: Models) -> None:
    values = torch.arange(12.0).reshape(3, 4)
    model = module_of(w=torch.zeros(1))
    model.w = nn.Parameter(values.t())
    assert not model.w.is_contiguous()
    state = LatticeState(model, "all", threads=1)

    state.apply([Update(9, 0.5)])

    expected = values.t() + 0.5 * torch.from_numpy(direction(9, "w", 12).reshape(4, 3))
    assert torch.equal(model.w.detach(), expected)


@pytest.mark.parametrize("kernel", ["numpy", "numba", "torch"])
def test_scalar_and_empty_tensors(module_of: Models, kernel: KernelName) -> None:
    model = module_of(empty=torch.empty(0, 3), scalar=torch.tensor(0.25))
    state = LatticeState(model, "all", threads=2, kernel=kernel)

    state.apply([Update(1, 0.125)])

    assert model.scalar.item() == 0.25 + 0.125 * int(direction(1, "scalar", 1)[0])
    assert state.num_elements == 1


def test_the_whole_legal_range_is_reachable_and_reversible(module_of: Models, weight_bytes: Reader) -> None:
    model = module_of(w=torch.full((300,), 0.125))  # 2**23 units of 2**-26
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)
    opposite = -int(direction(1, "w", 300)[0])

    for sign in (1, -1):
        state.shift([1], np.array([[sign * opposite * (MAX_UNITS // 2)]]))

    assert weight_bytes(model) == before
