"""CPU kernel for few weights, all directions at once in NumPy.

A pass over a few thousand weights is much shorter than a forward pass, compiled or not. So the memory and the time that
a compiler takes to be imported are saved.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zo_common.directions.philox import BLOCK_ELEMENTS, counters, philox4x32
from zo_common.lattice.kernels.base import Kernel, LatticeTensor
from zo_common.lattice.kernels.plain import checksum_sum

MOST_WEIGHTS = 1 << 18
_MOST_SIGNS = 1 << 20  # of one pass: about 20 MB of scratch


class NumpyKernel(Kernel):
    """CPU kernel whose scratch grows with weights × directions, up to a bound.

    Args:
        tensors: contiguous float32 CPU tensors, whose storage must outlive the kernel.
    """

    def __init__(self, tensors: tuple[LatticeTensor, ...]) -> None:
        super().__init__(tensors)
        self._weights = [t.weight.detach().view(-1).numpy() for t in tensors]
        blocks = [-(-len(weights) // BLOCK_ELEMENTS) for weights in self._weights]
        each = [counters(t.tensor_id, 0, count) for t, count in zip(tensors, blocks, strict=True)]
        self._counters = np.concatenate([*each, np.zeros((0, 4), np.uint64)])
        self._first = BLOCK_ELEMENTS * np.concatenate([np.zeros(1, np.int64), np.cumsum(blocks, dtype=np.int64)])

    def add(self, seeds: list[int], units: NDArray[np.int64]) -> None:
        """See `Kernel.add`."""
        total = units.sum(axis=1)
        # Σ_j u_j z_j = Σ_j u_j − 2 Σ_j u_j b_j with bits b; exact in float64, as |units| sum to less than 2**53
        negative = [np.zeros(len(weights)) for weights in self._weights]
        for lo, bits in self._bits(seeds):
            for t, row in enumerate(units[:, lo : lo + len(bits)].astype(np.float64)):
                negative[t] += row @ bits[:, self._first[t] : self._first[t] + len(negative[t])]
        for tensor, weights, moved, whole in zip(self.tensors, self._weights, negative, total, strict=True):
            # the sum is exact in float64; what is moved at once need not fit into 24 bits, where it ends does
            weights[:] = weights + (float(whole) - 2.0 * moved) * 2.0**tensor.grid_exponent

    def _bits(self, seeds: list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the place of a first seed, and bits of shape (seeds, blocks · 128) from it on."""
        step = max(1, _MOST_SIGNS // max(1, len(self._counters) * BLOCK_ELEMENTS))
        for lo in range(0, len(seeds), step):
            keys = np.array(seeds[lo : lo + step], np.uint64)[:, None]
            words = philox4x32(self._counters, (keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32))).astype("<u4")
            yield lo, np.unpackbits(words.reshape(len(keys), -1).view(np.uint8), axis=1, bitorder="little")

    def peaks(self) -> NDArray[np.int64]:
        """See `Kernel.peaks`."""
        peaks = [np.abs(weights).max(initial=0.0) for weights in self._weights]
        grids = [2.0**-t.grid_exponent for t in self.tensors]
        units: NDArray[np.int64] = np.rint(np.array(peaks, np.float64) * np.array(grids)).astype(np.int64)
        return units

    def checksum_sums(self) -> list[int]:
        """See `Kernel.checksum_sums`."""
        return [checksum_sum(t.weight, t.grid_exponent) for t in self.tensors]
