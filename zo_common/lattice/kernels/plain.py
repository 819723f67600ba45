"""The same operations in plain torch, for devices without their own kernel, in chunks of bounded memory.

Also the exact int64 path near the edge of the lattice, which measures before it writes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.directions.philox import BLOCK_ELEMENTS, MULTIPLIERS, ROUNDS, WEYL
from zo_common.lattice.kernels.base import Kernel, LatticeTensor

_U32 = 0xFFFFFFFF
CHUNK_BLOCKS = 1 << 13  # 2**20 elements: about 50 MB of scratch


def direction_signs(seed: int, tid: int, first_block: int, num_blocks: int, device: torch.device) -> torch.Tensor:
    """±1 signs of blocks [first_block, first_block + num_blocks); int64, shape (num_blocks · 128,)."""
    blocks = torch.arange(first_block, first_block + num_blocks, dtype=torch.int64, device=device)
    c0, c1 = blocks & _U32, blocks >> 32
    c2, c3 = torch.full_like(blocks, tid), torch.zeros_like(blocks)
    k0, k1 = seed & _U32, seed >> 32
    for _ in range(ROUNDS):
        # int64 products wrap to the right low 64 bits; the mask undoes the arithmetic shift's sign
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) & _U32) ^ c1 ^ k0, p1 & _U32
        c2, c3 = ((p0 >> 32) & _U32) ^ c3 ^ k1, p0 & _U32
        k0, k1 = (k0 + WEYL[0]) & _U32, (k1 + WEYL[1]) & _U32
    words = torch.stack([c0, c1, c2, c3], dim=1)
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=device)) & 1
    return (1 - 2 * bits).reshape(-1)


def shifted_chunks(
    tensor: LatticeTensor, seeds: list[int], units: list[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield chunks of a flattened weight (a live view) and the int64 units each would hold after the shift."""
    flat = tensor.weight.view(-1)
    terms = [(seed, unit) for seed, unit in zip(seeds, units, strict=True) if unit]
    total_blocks = -(-flat.numel() // BLOCK_ELEMENTS)
    for first in range(0, total_blocks, CHUNK_BLOCKS):
        count = min(CHUNK_BLOCKS, total_blocks - first)
        part = flat[first * BLOCK_ELEMENTS : (first + count) * BLOCK_ELEMENTS]
        n = (part * 2.0**-tensor.grid_exponent).to(torch.int64)
        for seed, unit in terms:
            n += unit * direction_signs(seed, tensor.tensor_id, first, count, part.device)[: part.numel()]
        yield part, n


def peak_after(tensor: LatticeTensor, seeds: list[int], units: list[int]) -> int:
    """Return the largest |n| a shift would reach, as exact integers; nothing is changed."""
    return max((int(n.abs().max()) for _, n in shifted_chunks(tensor, seeds, units)), default=0)


def checksum_sum(weight: torch.Tensor, grid_exponent: int) -> int:
    """S = Σ_i (n_i mod 2**32)·(2i+1) mod 2**64 of a contiguous float32 tensor."""
    flat = weight.view(-1)
    total = 0
    step = CHUNK_BLOCKS * BLOCK_ELEMENTS
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        n = (part * 2.0**-grid_exponent).to(torch.int64) & _U32
        index = torch.arange(start, start + part.numel(), dtype=torch.int64, device=part.device)
        total += int((n * (2 * index + 1)).sum())
    return total & ((1 << 64) - 1)


class TorchKernel(Kernel):
    """Kernel for every device that torch supports."""

    def add(self, seeds: list[int], units: NDArray[np.int64]) -> None:
        """See `Kernel.add`."""
        for tensor, row in zip(self.tensors, units, strict=True):
            for part, n in shifted_chunks(tensor, seeds, row.tolist()):
                part.copy_(n.to(torch.float32) * 2.0**tensor.grid_exponent)

    def peaks(self) -> NDArray[np.int64]:
        """See `Kernel.peaks`."""
        return np.array([peak_after(t, [], []) for t in self.tensors], np.int64)

    def checksum_sums(self) -> list[int]:
        """See `Kernel.checksum_sums`."""
        return [checksum_sum(t.weight, t.grid_exponent) for t in self.tensors]
