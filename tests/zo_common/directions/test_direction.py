"""Directions: the vectors, and the three implementations against each other bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zo_common.directions.philox import BLOCK_ELEMENTS, direction, direction_words
from zo_common.directions.seeds import tensor_id
from zo_common.lattice.kernels.base import Kernel, LatticeTensor
from zo_common.lattice.kernels.cpu import CHUNK_BLOCKS as NUMBA_CHUNK
from zo_common.lattice.kernels.cpu import NumbaKernel, _philox
from zo_common.lattice.kernels.few import NumpyKernel
from zo_common.lattice.kernels.plain import CHUNK_BLOCKS as TORCH_CHUNK
from zo_common.lattice.kernels.plain import TorchKernel, direction_signs

SEED = 0xFEDCBA9876543210
NAME = "model.encoder.layers.0.fc1.weight"
CPU = torch.device("cpu")
GRID = -24

ODD_LENGTHS = [1, 2, 31, 32, 33, 63, 127, 128, 129, 160, 255, 257, 1000]
CHUNK_LENGTHS = [
    chunk * BLOCK_ELEMENTS + extra for chunk in (NUMBA_CHUNK, TORCH_CHUNK) for extra in (-129, -128, -1, 0, 1, 128, 129)
]


def _signs(kernel: Kernel, seed: int) -> NDArray[np.int64]:
    """The direction a kernel adds to its one tensor of zeros."""
    assert kernel.shift([seed], np.array([[1]]))
    return (kernel.tensors[0].weight.double().numpy() * 2.0**-GRID).astype(np.int64)


def _zeros(name: str, numel: int) -> tuple[LatticeTensor]:
    return (LatticeTensor(name, torch.zeros(numel), tensor_id(name), GRID, 0),)


def _signs_by_numba(seed: int, name: str, numel: int, threads: int = 1) -> NDArray[np.int64]:
    return _signs(NumbaKernel(_zeros(name, numel), threads), seed)


def _signs_by_torch(seed: int, name: str, numel: int) -> NDArray[np.int64]:
    return _signs(TorchKernel(_zeros(name, numel)), seed)


def _signs_by_numpy(seed: int, name: str, numel: int) -> NDArray[np.int64]:
    return _signs(NumpyKernel(_zeros(name, numel)), seed)


def test_words_and_sign_sums_of_the_vectors(golden: dict[str, Any]) -> None:
    for case in golden["direction_words"]:
        blocks = -(-case["elements"] // BLOCK_ELEMENTS)

        found = direction_words(case["seed"], case["name"], 0, blocks)
        signs = direction(case["seed"], case["name"], case["elements"])

        assert [f"{word:08x}" for word in found.reshape(-1)] == case["words"]
        assert int(signs.sum()) == case["signs_sum"]
        assert len(signs) == case["elements"]


def test_bit_zero_is_plus_one_in_element_order(golden: dict[str, Any]) -> None:
    case = golden["direction_words"][0]
    expected = []
    for i in range(case["elements"]):
        word = int(case["words"][4 * (i // 128) + (i % 128) // 32], 16)
        expected.append(1 - 2 * ((word >> (i % 32)) & 1))

    assert direction(case["seed"], case["name"], case["elements"]).tolist() == expected


@pytest.mark.parametrize("numel", ODD_LENGTHS + CHUNK_LENGTHS)
def test_kernels_agree_with_the_reference(numel: int) -> None:
    expected = direction(SEED, NAME, numel)

    np.testing.assert_array_equal(_signs_by_numba(SEED, NAME, numel), expected)
    np.testing.assert_array_equal(_signs_by_torch(SEED, NAME, numel), expected)
    np.testing.assert_array_equal(_signs_by_numpy(SEED, NAME, numel), expected)


def test_kernels_agree_on_the_vectors(golden: dict[str, Any]) -> None:
    for case in golden["direction_words"]:
        assert _signs_by_numba(case["seed"], case["name"], case["elements"]).sum() == case["signs_sum"]
        assert _signs_by_torch(case["seed"], case["name"], case["elements"]).sum() == case["signs_sum"]
        assert _signs_by_numpy(case["seed"], case["name"], case["elements"]).sum() == case["signs_sum"]


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_do_not_change_a_direction(threads: int) -> None:
    numel = 5 * NUMBA_CHUNK * BLOCK_ELEMENTS + 77

    np.testing.assert_array_equal(_signs_by_numba(SEED, NAME, numel, threads), direction(SEED, NAME, numel))


@pytest.mark.parametrize("first_block", [0, 2**31 - 1, 2**32 - 2, 2**32, 2**32 + 5, 2**40 + 3])
def test_blocks_beyond_32_bits(first_block: int) -> None:
    expected = direction_words(SEED, NAME, first_block, 4)
    bits = (expected[:, :, None] >> np.arange(32, dtype=np.uint32)) & 1

    signs = direction_signs(SEED, tensor_id(NAME), first_block, 4, CPU)
    key = (np.uint32(SEED & 0xFFFFFFFF), np.uint32(SEED >> 32))
    compiled = [_philox(np.int64(first_block + b), np.uint32(tensor_id(NAME)), *key) for b in range(4)]

    np.testing.assert_array_equal(signs.numpy(), 1 - 2 * bits.astype(np.int64).reshape(-1))
    np.testing.assert_array_equal(np.array(compiled, np.uint32), expected)


def test_the_high_counter_word_matters() -> None:
    low = direction_words(SEED, NAME, 5, 1)
    high = direction_words(SEED, NAME, 2**32 + 5, 1)

    assert not np.array_equal(low, high)


def test_a_direction_is_addressed_not_streamed() -> None:
    whole = direction_words(SEED, NAME, 0, 20)

    pieces = np.concatenate([direction_words(SEED, NAME, 13, 7), direction_words(SEED, NAME, 0, 13)])

    np.testing.assert_array_equal(np.roll(pieces, 13, axis=0), whole)


def test_seed_and_name_both_select_the_direction() -> None:
    base = direction(SEED, NAME, 4096).astype(int)
    others = [
        direction(SEED ^ 1, NAME, 4096),
        direction(SEED ^ (1 << 63), NAME, 4096),
        direction(SEED, NAME + "x", 4096),
    ]

    for other in others:
        # two independent ±1 vectors: the sum of products is N(0, 64)
        assert abs(int((base * other).sum())) < 5 * 64
