"""The kernels against each other, and the bound that lets them skip range checks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zo_common.directions.philox import direction
from zo_common.directions.seeds import tensor_id
from zo_common.lattice.grid import MAX_UNITS
from zo_common.lattice.kernels import cpu as kernel_numba
from zo_common.lattice.kernels import plain as kernel_torch
from zo_common.lattice.kernels.base import Kernel, LatticeTensor
from zo_common.lattice.kernels.cpu import NumbaKernel
from zo_common.lattice.kernels.few import NumpyKernel
from zo_common.lattice.kernels.plain import TorchKernel, peak_after, shifted_chunks

Maker = Callable[[tuple[LatticeTensor, ...]], Kernel]
GRIDS = (-24, -20, -26)
SIZES = (1, 8192 + 129, 300)  # one element; more than one chunk of the compiled kernel; part of a block
MAKERS: dict[str, Maker] = {
    "torch": TorchKernel,
    "numpy": NumpyKernel,
    "numba": lambda tensors: NumbaKernel(tensors, 1),
    "numba-threads": lambda tensors: NumbaKernel(tensors, 3),
}
KERNELS = pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))


def _tensors(units: int = 1000) -> tuple[LatticeTensor, ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(
        LatticeTensor(
            f"t{grid}",
            torch.randint(-units, units + 1, (size,), generator=generator) * 2.0**grid,
            tensor_id(f"t{grid}"),
            grid,
            0,
        )
        for grid, size in zip(GRIDS, SIZES, strict=True)
    )


def _integers(tensors: tuple[LatticeTensor, ...]) -> list[NDArray[np.int64]]:
    return [(t.weight.double().numpy() * 2.0**-t.grid_exponent).astype(np.int64) for t in tensors]


@KERNELS
def test_peaks_and_checksum_sums_are_those_of_the_integers(make: Maker) -> None:
    tensors = _tensors(MAX_UNITS)
    kernel = make(tensors)

    peaks, sums = kernel.peaks(), kernel.checksum_sums()

    for index, n in enumerate(_integers(tensors)):
        assert peaks[index] == np.abs(n).max()
        assert sums[index] == sum((int(x) % 2**32) * (2 * i + 1) for i, x in enumerate(n)) % 2**64
    assert peaks.dtype == np.int64


@KERNELS
def test_adding_equals_integer_arithmetic(make: Maker) -> None:
    tensors = _tensors()
    seeds, units = [5, 2**64 - 1, 7], np.array([[3, -4, 0], [MAX_UNITS // 4, 0, -17], [0, 0, 0]])
    expected = [
        n + sum(u * direction(s, t.name, len(n)).astype(np.int64) for s, u in zip(seeds, row, strict=True))
        for t, n, row in zip(tensors, _integers(tensors), units.tolist(), strict=True)
    ]

    make(tensors).add(seeds, units)

    for found, wanted in zip(_integers(tensors), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@KERNELS
def test_no_tensor_at_all(make: Maker) -> None:
    kernel = make(())

    assert kernel.shift([1, 2], np.zeros((0, 2), np.int64))
    assert (len(kernel.peaks()), kernel.checksum_sums()) == (0, [])


@KERNELS
def test_many_seeds_at_once_equal_one_after_another(make: Maker) -> None:
    once, each = _tensors(), _tensors()
    generator = np.random.Generator(np.random.PCG64(4))
    seeds = [int(s) for s in generator.integers(0, 2**64, 300, np.uint64)]
    units = generator.integers(-9, 10, (3, 300))
    kernel = make(each)

    make(once).add(seeds, units)
    for place, seed in enumerate(seeds):
        kernel.add([seed], units[:, place : place + 1])

    for found, wanted in zip(_integers(once), _integers(each), strict=True):
        np.testing.assert_array_equal(found, wanted)


@KERNELS
def test_a_long_way_back_at_once_is_exact(make: Maker) -> None:
    """Passes that were made are undone in one: the sum may need more than 24 bits, its end does not."""
    (start,) = tensors = (LatticeTensor("w", torch.full((200,), -float(MAX_UNITS - 1)), tensor_id("w"), 0, 0),)
    signs = torch.from_numpy(direction(3, "w", 200))
    start.weight[signs < 0] *= -1

    make(tensors).add([3, 3], np.array([[MAX_UNITS - 3, MAX_UNITS]]))

    assert torch.equal(start.weight, signs * float(MAX_UNITS - 2))


@KERNELS
def test_no_tensor_and_no_seed(make: Maker) -> None:
    tensors = _tensors()
    before = _integers(tensors)

    assert make(tensors).shift([], np.zeros((3, 0), np.int64))

    for found, wanted in zip(_integers(tensors), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


class _Counting(TorchKernel):
    """Counts how often the weights are measured."""

    measured = 0

    def peaks(self) -> NDArray[np.int64]:
        self.measured += 1
        return super().peaks()


def _counting(value: int = 10) -> _Counting:
    return _Counting((LatticeTensor("w", torch.full((40,), float(value)), tensor_id("w"), 0, 0),))


def test_weights_are_measured_once_and_then_only_when_the_bound_is_used_up() -> None:
    kernel = _counting()
    step = MAX_UNITS // 8

    for expected, units in ((1, step), (1, -step), (1, step), (1, -step), (1, 1), (1, -1)):
        assert kernel.shift([3], np.array([[units]]))
        assert kernel.measured == expected
    # 10 + 4·step + 2 are used up: after five more steps the bound is at its end, the weights are back at 10
    for _ in range(3):
        assert kernel.shift([3], np.array([[step]]))
    assert kernel.measured == 1
    assert kernel.shift([3], np.array([[-step]]))
    assert kernel.measured == 2


def test_a_shift_that_is_not_proven_changes_nothing() -> None:
    kernel = _counting()

    assert not kernel.shift([1, 2], np.array([[MAX_UNITS - 10, 1]]))
    assert not kernel.shift([1], np.array([[MAX_UNITS - 9]]))
    assert torch.equal(kernel.tensors[0].weight, torch.full((40,), 10.0))
    # exactly to the border is proven
    assert kernel.shift([1], np.array([[MAX_UNITS - 10]]))


@KERNELS
def test_the_bound_is_of_every_tensor_by_itself(make: Maker) -> None:
    tensors = tuple(LatticeTensor(n, torch.full((3,), v), tensor_id(n), 0, 0) for n, v in (("a", 5.0), ("b", 2.0**24)))

    kernel = make(tensors)

    assert not kernel.shift([1], np.array([[0], [1]]))
    assert kernel.shift([1], np.array([[MAX_UNITS - 5], [0]]))
    assert not kernel.shift([2, 2], np.array([[0, 0], [1, -1]]))


def test_weights_changed_by_other_means_are_measured_again() -> None:
    kernel = _counting(0)
    assert kernel.shift([1], np.array([[1]]))
    kernel.tensors[0].weight.fill_(float(MAX_UNITS))

    kernel.forget_bound()

    assert not kernel.shift([1], np.array([[1]]))


@pytest.mark.parametrize("chunk_blocks", [1, 2, 1 << 13])
def test_shifted_chunks_cover_the_tensor_without_writing(monkeypatch: pytest.MonkeyPatch, chunk_blocks: int) -> None:
    monkeypatch.setattr(kernel_torch, "CHUNK_BLOCKS", chunk_blocks)
    tensor = LatticeTensor("w", torch.arange(300.0).reshape(20, 15) * 0.5, tensor_id("w"), -1, 0)
    before = tensor.weight.clone()
    expected = np.arange(300) + 3 * MAX_UNITS * direction(1, "w", 300).astype(np.int64) - direction(2, "w", 300)
    terms = [1, 9, 2], [3 * MAX_UNITS, 0, -1]

    chunks = list(shifted_chunks(tensor, *terms))

    np.testing.assert_array_equal(torch.cat([n for _, n in chunks]).numpy(), expected)
    assert torch.equal(torch.cat([part for part, _ in chunks]), before.reshape(-1))
    assert peak_after(tensor, *terms) == np.abs(expected).max()
    assert torch.equal(tensor.weight, before)
    chunks[0][0][1] = -7.0
    assert tensor.weight[0, 1] == -7.0


def test_nothing_has_peak_zero() -> None:
    empty = LatticeTensor("w", torch.empty(0), tensor_id("w"), -1, 0)

    assert peak_after(empty, [1], [5]) == 0
    assert NumbaKernel((empty,), 2).peaks().tolist() == TorchKernel((empty,)).peaks().tolist() == [0]
    assert NumbaKernel((empty,), 2).checksum_sums() == TorchKernel((empty,)).checksum_sums() == [0]


def _blocks_of(kernel: NumbaKernel) -> dict[int, list[int]]:
    """Tensor → the blocks that its segments name, in order."""
    found: dict[int, list[int]] = {}
    for row in kernel.segments.tolist():
        first = row[kernel_numba.BLOCK]
        found.setdefault(row[kernel_numba.TENSOR], []).extend(range(first, first + row[kernel_numba.BLOCKS]))
    return found


@pytest.mark.parametrize(
    "sizes",
    [[], [0], [1], [0, 5, 0, 0, 700, 0], [700] * 50, [64 * 128], [64 * 128 + 1, 1, 3], [63 * 128, 128, 200_000]],
)
def test_chunks_are_equal_work_and_cover_every_tensor_once(sizes: list[int]) -> None:
    tensors = tuple(LatticeTensor(f"t{i}", torch.zeros(size), i, -24, 0) for i, size in enumerate(sizes))

    kernel = NumbaKernel(tensors, 2)

    assert _blocks_of(kernel) == {t: list(range(-(-size // 128))) for t, size in enumerate(sizes) if size}
    blocks = [
        int(kernel.segments[lo:hi, kernel_numba.BLOCKS].sum())
        for lo, hi in zip(kernel.first, kernel.first[1:], strict=False)
    ]
    assert all(count == kernel_numba.CHUNK_BLOCKS for count in blocks[:-1])
    for row in kernel.segments.tolist():
        t, start = row[kernel_numba.TENSOR], row[kernel_numba.BLOCK] * 128
        assert row[kernel_numba.ADDRESS] == tensors[t].weight.data_ptr() + 4 * start
        assert row[kernel_numba.COUNT] == min(row[kernel_numba.BLOCKS] * 128, sizes[t] - start)


def test_many_small_tensors_move_like_each_by_itself() -> None:
    sizes = [1, 31, 32, 33, 63, 127, 128, 129, 160, 383, 384, 700, 7, 9000]
    generator = torch.Generator().manual_seed(4)
    units = np.random.default_rng(4).integers(-50, 50, (len(sizes), 3))
    units[3], units[5, 1] = 0, 0
    tensors = tuple(
        LatticeTensor(f"t{i}", torch.randint(-99, 99, (n,), generator=generator).float(), tensor_id(f"t{i}"), 0, 0)
        for i, n in enumerate(sizes)
    )
    expected = [
        n + sum(u * direction(s, t.name, len(n)).astype(np.int64) for s, u in zip((1, 2, 3), row, strict=True))
        for t, n, row in zip(tensors, _integers(tensors), units.tolist(), strict=True)
    ]

    NumbaKernel(tensors, 1).add([1, 2, 3], units)

    for found, wanted in zip(_integers(tensors), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def _best_seconds(actions: list[Callable[[], Any]], repeats: int) -> list[float]:
    """The shortest time of each action, taken in turn."""
    best = [float("inf")] * len(actions)
    for _ in range(repeats):
        for index, action in enumerate(actions):
            start = time.perf_counter()
            action()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def test_five_hundred_small_tensors_cost_about_what_one_costs() -> None:
    """1.3 to 1.5 times as measured, as the last block of each is filled up; 2.4 times if each were a chunk."""
    actions = []
    for sizes in ([700] * 500, [350_000]):
        tensors = tuple(LatticeTensor(f"t{i}", torch.zeros(n), i, -24, 0) for i, n in enumerate(sizes))
        kernel, units = NumbaKernel(tensors, 1), np.ones((len(sizes), 16), np.int64)
        actions.append(lambda kernel=kernel, units=units: kernel.add(list(range(16)), units))

    small, one = _best_seconds(actions, 60)

    assert small < 1.8 * one, f"500 tensors took {small * 1e6:.0f} µs, one of their size {one * 1e6:.0f} µs"


def test_short_passes_stay_in_the_calling_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    pool = kernel_numba._pool
    monkeypatch.setattr(kernel_numba, "_pool", lambda threads: asked.append(threads) or pool(threads))
    chunk = kernel_numba.CHUNK_BLOCKS * 128
    kernel = NumbaKernel((LatticeTensor("w", torch.zeros(10 * chunk), 1, -24, 0),), 4)

    kernel.add([1, 2], np.array([[1, 1]]))
    kernel.peaks()
    kernel.checksum_sums()
    assert asked == []
    kernel.add(list(range(8)), np.ones((1, 8), np.int64))
    assert asked == [4]  # work for two threads, one of which is the caller
