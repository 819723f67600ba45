"""The CUDA kernel, bit for bit against the others: natively where there is a GPU, else under Triton's interpreter.

Triton decides once, on import, whether its kernels are compiled or interpreted. So one test runs this whole module
again in a process that has `TRITON_INTERPRET=1` from the start; there the same checks use CPU tensors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed")

from zo_common.directions.philox import direction, direction_words
from zo_common.directions.seeds import tensor_id
from zo_common.errors import LatticeOverflow
from zo_common.lattice.grid import MAX_UNITS
from zo_common.lattice.kernels.base import Kernel, LatticeTensor
from zo_common.lattice.kernels.cpu import NumbaKernel
from zo_common.lattice.kernels.cuda import CHUNK_BLOCKS, CHUNK_ELEMENTS, TritonKernel
from zo_common.lattice.kernels.plain import TorchKernel
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NATIVE = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if NATIVE else "cpu"

Models = Callable[..., nn.Module]
GRIDS = (-24, -20, -26, 5, -22, -24, -25)
SIZES = (1, 127, 128, 129, CHUNK_ELEMENTS, 2 * CHUNK_ELEMENTS + 77, 3000)
SEEDS = [5, 2**64 - 1, 2**63, 7, 0]


def check(test: Callable[..., None]) -> Callable[..., None]:
    """Runs on a GPU, or in the process whose Triton interprets."""
    idle = not NATIVE and not INTERPRETED
    return pytest.mark.gpu(pytest.mark.skipif(idle, reason="no CUDA device; interpreted in another process")(test))


def gpu_check(test: Callable[..., None]) -> Callable[..., None]:
    """Runs on a GPU alone."""
    return pytest.mark.gpu(pytest.mark.skipif(not NATIVE, reason="no CUDA device")(test))


def _tensors(device: str = DEVICE, units: int = 1000, offset: int = 0) -> tuple[LatticeTensor, ...]:
    """Tensors of all sizes and grids; their storage begins `offset` elements into an allocation."""
    generator = torch.Generator().manual_seed(2)
    values = [torch.randint(-units, units + 1, (size + offset,), generator=generator) for size in SIZES]
    return tuple(
        LatticeTensor(f"t{i}", (value * 2.0**grid).to(device)[offset:], tensor_id(f"t{i}"), grid, 0)
        for i, (grid, value) in enumerate(zip(GRIDS, values, strict=True))
    )


def _units(seeds: int = len(SEEDS)) -> NDArray[np.int64]:
    """Quanta of either sign, some of them zero, one of them large; shape (tensors, seeds)."""
    units = np.random.default_rng(3).integers(-900, 900, (len(SIZES), seeds))
    units[1], units[2, ::2], units[4, 1] = 0, 0, MAX_UNITS // 8
    return units


def _bits(tensors: tuple[LatticeTensor, ...]) -> list[list[int]]:
    return [t.weight.reshape(-1).cpu().view(torch.int32).tolist() for t in tensors]


def _integers(tensors: tuple[LatticeTensor, ...]) -> list[NDArray[np.int64]]:
    return [(t.weight.cpu().double().numpy() * 2.0**-t.grid_exponent).astype(np.int64) for t in tensors]


def _state(model: nn.Module, scale: Any = "unit", **options: Any) -> LatticeState:
    """The lattice of a model, moved by the kernel under test."""
    state = LatticeState(model.to(DEVICE), "all", scale, **options)
    if INTERPRETED:
        state._kernel = TritonKernel(state.tensors)
    assert isinstance(state._kernel, TritonKernel)
    return state


def _model_bytes(model: nn.Module) -> dict[str, str]:
    return {name: p.detach().cpu().numpy().tobytes().hex() for name, p in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED or NATIVE, reason="the checks run in this process")
def test_all_checks_under_the_interpreter() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"} | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider", "-k", "not gpu_only", "--tb=short"]

    root = Path(__file__).parents[4]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, f"checks failed under TRITON_INTERPRET=1:\n{done.stdout}{done.stderr}"
    assert " passed" in done.stdout, done.stdout


@check
def test_directions_of_the_vectors(golden: dict[str, Any]) -> None:
    for case in golden["direction_words"]:
        weight = torch.zeros(case["elements"], device=DEVICE)
        kernel = TritonKernel((LatticeTensor(case["name"], weight, tensor_id(case["name"]), -24, 0),))

        assert kernel.shift([case["seed"]], np.array([[1]]))

        words = [int(word, 16) for word in case["words"]]
        expected = [1 - 2 * (words[i // 32] >> i % 32 & 1) for i in range(case["elements"])]
        assert (weight.cpu() * 2.0**24).tolist() == expected
        assert sum(expected) == case["signs_sum"]


@check
@pytest.mark.parametrize("mode", ["unit", "rms"])
def test_lattice_example_of_the_vectors(golden: dict[str, Any], module_of: Models, mode: Any) -> None:
    described = golden["lattice_example"]
    expected = described["modes"][mode]
    values = {
        name: torch.from_numpy(np.frombuffer(bytes.fromhex(text), "<f4").copy()).reshape(described["shapes"][name])
        for name, text in described["base_hex"].items()
    }
    model = module_of(**values)
    state = _state(model, mode)
    assert _model_bytes(model) == expected["snapped_hex"]
    assert state.checksum().to_bytes(8, "little").hex() == expected["checksum_snapped"]

    units = state.epsilon_units(expected["epsilon"])
    state.shift([42], units)
    assert _model_bytes(model) == expected["perturbed_plus_seed42_hex"]
    state.shift([42], -units)
    assert _model_bytes(model) == expected["snapped_hex"]

    state.apply([Update(u["seed"], float(np.float32(u["coefficient"]))) for u in expected["updates"]])
    assert _model_bytes(model) == expected["after_updates_hex"]
    assert state.checksum().to_bytes(8, "little").hex() == expected["checksum_after"]


@check
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
def test_the_three_kernels_give_the_same_bits(offset: int) -> None:
    ours, numba, plain = _tensors(offset=offset), _tensors("cpu", offset=offset), _tensors("cpu", offset=offset)
    kernels: list[Kernel] = [TritonKernel(ours), NumbaKernel(numba, 2), TorchKernel(plain)]
    assert kernels[0].aligned == (offset == 0)

    for kernel in kernels:
        kernel.add(SEEDS, _units())

    assert _bits(ours) == _bits(numba)
    assert _bits(ours) == _bits(plain)
    assert kernels[0].peaks().tolist() == kernels[1].peaks().tolist()
    assert kernels[0].checksum_sums() == kernels[1].checksum_sums()


@check
def test_many_seeds_in_one_pass_equal_the_formula() -> None:
    tensors = _tensors()[:4]
    seeds, units = list(range(100, 165)), _units(65)[:4]
    expected = [
        n + sum(u * direction(s, t.name, len(n)).astype(np.int64) for s, u in zip(seeds, row, strict=True))
        for t, n, row in zip(tensors, _integers(tensors), units.tolist(), strict=True)
    ]

    assert TritonKernel(tensors).shift(seeds, units)

    for found, wanted in zip(_integers(tensors), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@check
def test_a_shift_and_its_negative_restore_every_bit() -> None:
    tensors = _tensors(units=MAX_UNITS // 4)
    kernel = TritonKernel(tensors)
    before, sums = _bits(tensors), kernel.checksum_sums()

    assert kernel.shift(SEEDS, _units())
    moved = _bits(tensors)
    assert kernel.checksum_sums() != sums
    for seed, column in zip(SEEDS, _units().T, strict=True):
        assert kernel.shift([seed], -column[:, None])

    assert _bits(tensors) == before
    assert kernel.checksum_sums() == sums
    # a tensor whose quanta are all zero stays, all others moved
    assert [m == b for m, b in zip(moved, before, strict=True)] == [False, True] + [False] * 5


@check
def test_peaks_and_checksum_sums_are_those_of_the_integers() -> None:
    tensors = _tensors(units=MAX_UNITS)
    kernel = TritonKernel(tensors)

    peaks, sums = kernel.peaks(), kernel.checksum_sums()

    for index, n in enumerate(_integers(tensors)):
        assert peaks[index] == np.abs(n).max()
        assert sums[index] == sum((int(x) % 2**32) * (2 * i + 1) for i, x in enumerate(n)) % 2**64
    assert peaks.dtype == np.int64


@check
@pytest.mark.parametrize("first_block", [2**31 - CHUNK_BLOCKS, 2**32 - CHUNK_BLOCKS, 2**32, 2**40 + 3 * CHUNK_BLOCKS])
def test_blocks_beyond_32_bits(first_block: int) -> None:
    weight = torch.zeros(CHUNK_ELEMENTS - 5, device=DEVICE)
    kernel = TritonKernel((LatticeTensor("w", weight, tensor_id("w"), 0, 0),))
    kernel.chunks[:, 1] = first_block
    words = direction_words(9, "w", first_block, CHUNK_BLOCKS).reshape(-1).astype("<u4")
    signs = 1 - 2 * np.unpackbits(words.view(np.uint8), bitorder="little")[: len(weight)].astype(np.int64)

    kernel.add([9], np.array([[3]]))

    np.testing.assert_array_equal(weight.cpu().numpy(), 3 * signs)
    start = first_block * 128
    assert kernel.checksum_sums() == [
        sum((int(n) % 2**32) * (2 * (start + i) + 1) for i, n in enumerate(3 * signs)) % 2**64
    ]


@check
def test_nothing_to_do() -> None:
    tensors = _tensors()
    before = _bits(tensors)
    empty = TritonKernel((LatticeTensor("w", torch.empty(0, device=DEVICE), 1, -1, 0),))

    assert TritonKernel(tensors).shift([], np.zeros((len(SIZES), 0), np.int64))
    assert TritonKernel(tensors).shift([1, 2], np.zeros((len(SIZES), 2), np.int64))
    assert empty.shift([1], np.array([[5]]))

    assert _bits(tensors) == before
    assert empty.peaks().tolist() == empty.checksum_sums() == [0]


@check
@pytest.mark.parametrize("count", [2, 7, 33])
def test_a_shift_that_overflows_changes_nothing(module_of: Models, count: int) -> None:
    model = module_of(v=torch.linspace(-0.1, 0.1, 200), w=torch.full((300,), 0.125))
    state = _state(model)
    before, checksum = _model_bytes(model), state.checksum()
    units = np.full((2, count), 1001, np.int64)
    units[1, -1] = MAX_UNITS

    with pytest.raises(LatticeOverflow, match="'w'"):
        state.shift(list(range(count)), units)

    assert _model_bytes(model) == before
    assert state.checksum() == checksum
    # the bound was measured anew: what is legal goes on to work
    state.shift(list(range(count)), np.full((2, count), 1001))
    state.shift(list(range(count)), np.full((2, count), -1001))
    assert _model_bytes(model) == before


@gpu_check
def test_gpu_only_five_million_weights_equal_the_cpu() -> None:
    units = torch.randint(-9000, 9000, (5_000_001,), generator=torch.Generator().manual_seed(1))
    ours, theirs = ((LatticeTensor("w", (units * 2.0**-24).to(d), 77, -24, 0),) for d in ("cuda", "cpu"))
    kernels: list[Kernel] = [TritonKernel(ours), NumbaKernel(theirs, 4)]

    for kernel in kernels:
        assert kernel.shift(SEEDS, np.array([[1, -2000, 0, 77, 5]]))

    assert torch.equal(ours[0].weight.cpu().view(torch.int32), theirs[0].weight.view(torch.int32))
    assert kernels[0].checksum_sums() == kernels[1].checksum_sums()
    assert kernels[0].peaks().tolist() == kernels[1].peaks().tolist()


@gpu_check
def test_gpu_only_no_scratch_of_the_size_of_a_tensor() -> None:
    weight = torch.zeros(16 << 20, device="cuda")
    kernel = TritonKernel((LatticeTensor("w", weight, 1, -24, 0),))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    assert kernel.shift(SEEDS, np.array([[1, 2, 3, 4, 5]]))
    kernel.peaks()
    kernel.checksum_sums()

    assert torch.cuda.max_memory_allocated() - before < 1 << 20


@gpu_check
def test_gpu_only_passes_follow_the_current_stream() -> None:
    weight = torch.zeros(16 << 20, device="cuda")
    kernel = TritonKernel((LatticeTensor("w", weight, 1, -24, 0),))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()

    with torch.cuda.stream(stream):
        for seed in range(20):
            kernel.add([seed], np.array([[3]]))
        for seed in range(20):
            kernel.add([seed], np.array([[-3]]))
        assert kernel.peaks().tolist() == [0]
