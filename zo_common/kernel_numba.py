"""CPU kernel: one in-place pass over all trained tensors for any number of directions (Numba, threaded).

The unit of work is a chunk of Philox blocks, so 500 small tensors cost what one tensor of their total size costs.
Threads are ours (the kernels release the GIL): Numba's own threading layers are neither fork- nor Ray-safe everywhere.

The hot loop is a plain float32 add of ±c; `Kernel` guarantees that it is exact.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from zo_common.kernel import Kernel, LatticeTensor
from zo_common.philox import BLOCK_ELEMENTS, MULTIPLIERS, ROUNDS, WEYL

CHUNK_BLOCKS = 64
_M0, _M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_W0, _W1 = np.uint32(WEYL[0]), np.uint32(WEYL[1])
_LOW32 = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@intrinsic  # type: ignore[untyped-decorator]
def _float_pointer(typingctx: Any, address: Any) -> Any:
    pointer = types.CPointer(types.float32)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64), codegen


@njit(inline="always")
def _philox(block, tid, key0, key1):  # type: ignore[no-untyped-def]
    c0 = np.uint64(block & 0xFFFFFFFF)
    c1 = np.uint64(block >> 32)
    c2 = np.uint64(tid)
    c3 = np.uint64(0)
    k0 = np.uint32(key0)
    k1 = np.uint32(key1)
    for _ in range(ROUNDS):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0)
        c1 = p1 & _LOW32
        c2 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1)
        c3 = p0 & _LOW32
        k0 = np.uint32(k0 + _W0)
        k1 = np.uint32(k1 + _W1)
    return np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)


@njit(inline="always")
def _signed(word, i, coefficient):  # type: ignore[no-untyped-def]
    bit = np.int32((word >> np.uint32(i)) & np.uint32(1))
    return np.float32(np.int32(1) - np.int32(2) * bit) * coefficient


@njit(nogil=True, cache=True, boundscheck=False)
def shift_chunks(lo, hi, chunk_tensor, chunk_block, address, numel, tid, keys, coefficients):  # type: ignore[no-untyped-def]
    """Add Σ_j coefficients[t, j]·z_j to chunks [lo, hi); coefficients are float32 multiples of the grid."""
    words = np.empty((4, CHUNK_BLOCKS), np.uint32)
    for chunk in range(lo, hi):
        t = chunk_tensor[chunk]
        first = chunk_block[chunk]
        start = first * BLOCK_ELEMENTS
        count = min(CHUNK_BLOCKS * BLOCK_ELEMENTS, numel[t] - start)
        weights = carray(_float_pointer(address[t] + 4 * start), (count,), np.float32)
        tensor = tid[t]
        for j in range(keys.shape[0]):
            coefficient = coefficients[t, j]
            if coefficient == 0:
                continue
            key0, key1 = keys[j, 0], keys[j, 1]
            for g in range(CHUNK_BLOCKS):
                w0, w1, w2, w3 = _philox(first + g, tensor, key0, key1)
                words[0, g] = w0
                words[1, g] = w1
                words[2, g] = w2
                words[3, g] = w3
            for g in range(count // BLOCK_ELEMENTS):
                for k in range(4):
                    word = words[k, g]
                    base = g * BLOCK_ELEMENTS + 32 * k
                    for i in range(32):
                        weights[base + i] += _signed(word, i, coefficient)
            for i in range(count - count % BLOCK_ELEMENTS, count):
                within = i % BLOCK_ELEMENTS
                weights[i] += _signed(words[within // 32, i // BLOCK_ELEMENTS], within % 32, coefficient)


@njit(nogil=True, cache=True, boundscheck=False)
def peak_chunks(lo, hi, chunk_tensor, chunk_block, address, numel, peak):  # type: ignore[no-untyped-def]
    """`peak[t]` becomes the largest |w| of chunks [lo, hi), as float32 bits (their order is that of integers)."""
    for chunk in range(lo, hi):
        t = chunk_tensor[chunk]
        start = chunk_block[chunk] * BLOCK_ELEMENTS
        count = min(CHUNK_BLOCKS * BLOCK_ELEMENTS, numel[t] - start)
        weights = carray(_float_pointer(address[t] + 4 * start), (count,), np.float32)
        bits = weights.view(np.int32)
        largest = np.int32(0)
        for i in range(count):
            largest = max(largest, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
        peak[t] = max(peak[t], largest)


@njit(nogil=True, cache=True, boundscheck=False)
def sum_chunks(lo, hi, chunk_tensor, chunk_block, address, numel, inverse, sums):  # type: ignore[no-untyped-def]
    """Add Σ_i (n_i mod 2**32)·(2i+1) mod 2**64 of chunks [lo, hi) to `sums[t]` (state checksum)."""
    for chunk in range(lo, hi):
        t = chunk_tensor[chunk]
        start = chunk_block[chunk] * BLOCK_ELEMENTS
        count = min(CHUNK_BLOCKS * BLOCK_ELEMENTS, numel[t] - start)
        weights = carray(_float_pointer(address[t] + 4 * start), (count,), np.float32)
        scale = inverse[t]
        total = np.uint64(0)
        for i in range(count):
            units = np.uint32(np.int32(weights[i] * scale))
            total += np.uint64(units) * np.uint64(2 * (start + i) + 1)
        sums[t] += total


@lru_cache(maxsize=8)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="zo-kernel")


# a forked child inherits the pools but not their threads: work submitted to them would wait for ever
os.register_at_fork(after_in_child=_pool.cache_clear)


class NumbaKernel(Kernel):
    """Knows where the trained tensors lie in memory, cut into chunks of equal work.

    Args:
        tensors: contiguous float32 CPU tensors, whose storage must outlive the kernel.
        threads: how many threads share a pass.
    """

    def __init__(self, tensors: tuple[LatticeTensor, ...], threads: int) -> None:
        super().__init__(tensors)
        self.threads = threads
        numels = [t.weight.numel() for t in tensors]
        self.address = np.array([t.weight.data_ptr() for t in tensors], np.int64)
        self.numel = np.array(numels, np.int64)
        self.tid = np.array([t.tensor_id for t in tensors], np.uint32)
        self.inverse = np.array([2.0**-t.grid_exponent for t in tensors], np.float32)
        self.grid = np.array([2.0**t.grid_exponent for t in tensors], np.float32)
        blocks = [range(0, -(-n // BLOCK_ELEMENTS), CHUNK_BLOCKS) for n in numels]
        self.chunk_tensor = np.array([t for t, r in enumerate(blocks) for _ in r], np.int64)
        self.chunk_block = np.array([b for r in blocks for b in r], np.int64)

    def add(self, seeds: list[int], units: NDArray[np.int64]) -> None:
        """See `Kernel.add`."""
        keys = np.array([[s & 0xFFFFFFFF, s >> 32] for s in seeds], np.uint32).reshape(-1, 2)
        coefficients = np.ascontiguousarray(units.astype(np.float32) * self.grid[:, None])
        self._run(lambda _, lo, hi: shift_chunks(lo, hi, *self._where(), self.tid, keys, coefficients))

    def peaks(self) -> NDArray[np.int64]:
        """See `Kernel.peaks`."""
        bits = np.zeros((self.threads, len(self.numel)), np.int32)
        self._run(lambda part, lo, hi: peak_chunks(lo, hi, *self._where(), bits[part]))
        units: NDArray[np.int64] = np.rint(bits.max(axis=0).view(np.float32) * self.inverse).astype(np.int64)
        return units

    def checksum_sums(self) -> list[int]:
        """See `Kernel.checksum_sums`."""
        sums = np.zeros((self.threads, len(self.numel)), np.uint64)
        self._run(lambda part, lo, hi: sum_chunks(lo, hi, *self._where(), self.inverse, sums[part]))
        return [int(s) for s in sums.sum(axis=0, dtype=np.uint64)]

    def _where(self) -> tuple[NDArray[np.int64], ...]:
        return self.chunk_tensor, self.chunk_block, self.address, self.numel

    def _run(self, work: Callable[[int, int, int], Any]) -> None:
        """Call work(part, first chunk, last chunk) on every thread's share and wait for all."""
        bounds = [len(self.chunk_tensor) * p // self.threads for p in range(self.threads + 1)]
        if self.threads == 1:
            work(0, bounds[0], bounds[1])
            return
        futures = [_pool(self.threads).submit(work, p, bounds[p], bounds[p + 1]) for p in range(self.threads)]
        for future in futures:
            future.result()
