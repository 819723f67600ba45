"""CPU kernel: one in-place pass over all trained tensors for any number of directions (Numba, threaded).

The unit of work is a chunk of Philox blocks, so 500 small tensors cost what one tensor of their total size costs.
Threads are ours (the kernels release the GIL): Numba's own threading layers are neither fork- nor Ray-safe everywhere.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from zo_common.philox import BLOCK_ELEMENTS, MULTIPLIERS, ROUNDS, WEYL

CHUNK_BLOCKS = 64
_M0, _M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_W0, _W1 = np.uint32(WEYL[0]), np.uint32(WEYL[1])
# a chunk's running sums are int32: beyond this bound on Σ|units| the caller must take the int64 torch kernel
MAX_TOTAL_UNITS = (1 << 31) - (1 << 25)


@intrinsic
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
        c0 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0)
        c1 = p1 & np.uint64(0xFFFFFFFF)
        c2 = (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c3 = p0 & np.uint64(0xFFFFFFFF)
        k0 = np.uint32(k0 + _W0)
        k1 = np.uint32(k1 + _W1)
    return np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)


@njit(inline="always")
def _add_word(acc, base, word, unit, twice):  # type: ignore[no-untyped-def]
    for i in range(32):
        bit = np.int32((word >> np.uint32(i)) & np.uint32(1))
        acc[base + i] = np.int32(acc[base + i] + unit - (twice & np.int32(-bit)))


@njit(nogil=True, cache=True, boundscheck=False)
def shift_chunks(lo, hi, chunk_tensor, chunk_block, address, numel, tid, inverse, grid, keys, units, peak):  # type: ignore[no-untyped-def]
    """Add Σ_j units[t, j]·z_j grid units to chunks [lo, hi); `peak[t]` becomes the largest |n| reached."""
    acc = np.empty(BLOCK_ELEMENTS, np.int32)
    for chunk in range(lo, hi):
        t = chunk_tensor[chunk]
        weights = carray(_float_pointer(address[t]), (numel[t],), np.float32)
        to_units, to_weight = inverse[t], grid[t]
        largest = np.int32(0)
        first = chunk_block[chunk]
        last = min(first + CHUNK_BLOCKS, (numel[t] + BLOCK_ELEMENTS - 1) // BLOCK_ELEMENTS)
        for block in range(first, last):
            start = block * BLOCK_ELEMENTS
            count = min(BLOCK_ELEMENTS, numel[t] - start)
            if count == BLOCK_ELEMENTS:
                for i in range(BLOCK_ELEMENTS):
                    acc[i] = np.int32(weights[start + i] * to_units)
            else:
                for i in range(BLOCK_ELEMENTS):
                    acc[i] = np.int32(weights[start + i] * to_units) if i < count else np.int32(0)
            for j in range(keys.shape[0]):
                unit = np.int32(units[t, j])
                if unit != 0:
                    w0, w1, w2, w3 = _philox(block, tid[t], keys[j, 0], keys[j, 1])
                    twice = np.int32(2 * unit)
                    _add_word(acc, 0, w0, unit, twice)
                    _add_word(acc, 32, w1, unit, twice)
                    _add_word(acc, 64, w2, unit, twice)
                    _add_word(acc, 96, w3, unit, twice)
            for i in range(count):
                largest = max(largest, np.int32(abs(acc[i])))
                weights[start + i] = np.float32(acc[i]) * to_weight
        peak[t] = max(peak[t], largest)


@njit(nogil=True, cache=True, boundscheck=False)
def sum_chunks(lo, hi, chunk_tensor, chunk_block, address, numel, inverse, sums):  # type: ignore[no-untyped-def]
    """Add Σ_i (n_i mod 2**32)·(2i+1) mod 2**64 of chunks [lo, hi) to `sums[t]` (state checksum)."""
    for chunk in range(lo, hi):
        t = chunk_tensor[chunk]
        weights = carray(_float_pointer(address[t]), (numel[t],), np.float32)
        total = np.uint64(0)
        start = chunk_block[chunk] * BLOCK_ELEMENTS
        stop = min(start + CHUNK_BLOCKS * BLOCK_ELEMENTS, numel[t])
        for i in range(start, stop):
            units = np.uint32(np.int32(weights[i] * inverse[t]))
            total += np.uint64(units) * np.uint64(2 * i + 1)
        sums[t] += total


@lru_cache(maxsize=8)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="zo-kernel")


class NumbaTable:
    """Where the trained tensors lie in memory, cut into chunks of equal work; built once per lattice state.

    Args:
        addresses: data pointers of contiguous float32 tensors, which must outlive the table.
        numels, tensor_ids, grid_exponents: one entry a tensor.
        threads: how many threads share a pass.
    """

    def __init__(
        self, addresses: list[int], numels: list[int], tensor_ids: list[int], grid_exponents: list[int], threads: int
    ) -> None:
        self.address = np.array(addresses, np.int64)
        self.numel = np.array(numels, np.int64)
        self.tid = np.array(tensor_ids, np.uint32)
        self.inverse = np.array([2.0**-k for k in grid_exponents], np.float32)
        self.grid = np.array([2.0**k for k in grid_exponents], np.float32)
        self.threads = threads
        per_tensor = [range(0, -(-n // BLOCK_ELEMENTS), CHUNK_BLOCKS) for n in numels]
        self.chunk_tensor = np.array([t for t, r in enumerate(per_tensor) for _ in r], np.int64)
        self.chunk_block = np.array([b for r in per_tensor for b in r], np.int64)

    def shift(self, seeds: list[int], units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Move every tensor by Σ_j units[t, j]·z_j; units has shape (tensors, seeds). Returns the peak |n|, (tensors,)."""
        keys = np.array([[s & 0xFFFFFFFF, s >> 32] for s in seeds], np.uint32).reshape(-1, 2)
        peaks = np.zeros((self.threads, len(self.numel)), np.int32)
        narrow = np.ascontiguousarray(units.astype(np.int32))

        def work(part: int, lo: int, hi: int) -> None:
            shift_chunks(
                lo, hi, self.chunk_tensor, self.chunk_block, self.address, self.numel, self.tid,
                self.inverse, self.grid, keys, narrow, peaks[part],
            )  # fmt: skip

        self._run(work)
        return peaks.max(axis=0).astype(np.int64)

    def checksum_sums(self) -> list[int]:
        """The u64 sum S of every tensor, in table order."""
        sums = np.zeros((self.threads, len(self.numel)), np.uint64)

        def work(part: int, lo: int, hi: int) -> None:
            sum_chunks(
                lo, hi, self.chunk_tensor, self.chunk_block, self.address, self.numel, self.inverse, sums[part]
            )  # fmt: skip

        self._run(work)
        return [int(s) for s in sums.sum(axis=0, dtype=np.uint64)]

    def _run(self, work: Any) -> None:
        bounds = np.linspace(0, len(self.chunk_tensor), self.threads + 1).astype(int)
        parts = [(p, int(bounds[p]), int(bounds[p + 1])) for p in range(self.threads)]
        if self.threads == 1:
            work(*parts[0])
            return
        futures = [_pool(self.threads).submit(work, *part) for part in parts]
        for future in futures:
            future.result()
