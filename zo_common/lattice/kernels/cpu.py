"""CPU kernel: one in-place pass over all trained tensors for any number of directions (Numba, threaded).

The unit of work is a chunk of Philox blocks, of one tensor or of many, so 500 small tensors cost about what one tensor
of their total size costs. A segment is the part of a chunk that lies in one tensor.
It uses Python threads (the kernels release the GIL): Numba's threading layers are not fork- or Ray-safe everywhere.

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

from zo_common.directions.philox import BLOCK_ELEMENTS, MULTIPLIERS, ROUNDS, WEYL
from zo_common.lattice.kernels.base import Kernel, LatticeTensor

CHUNK_BLOCKS = 64
PART_CHUNKS = 32  # chunks × directions below which another thread costs more than it saves
# the table of segments: its tensor, its first block there and their number, the place of the first in the chunk, the
# address of its first weight and their number
TENSOR, BLOCK, BLOCKS, COLUMN, ADDRESS, COUNT, SEGMENT_COLUMNS = range(7)
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


@intrinsic  # type: ignore[untyped-decorator]
def _as_float(typingctx: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), codegen


@njit(inline="always")
def _signed(word, i, coefficient):  # type: ignore[no-untyped-def]
    sign = (word << np.uint32(31 - i)) & np.uint32(0x80000000)
    return _as_float(sign ^ coefficient)


@njit(inline="always")
def _add_signed(weights, words, column, coefficient):  # type: ignore[no-untyped-def]
    """Add ±coefficient (float32 bits) to a range of weights whose words begin at `column` of (4, blocks)."""
    whole = len(weights) // 32
    for v in range(whole):
        word = words[v & 3, column + (v >> 2)]
        for i in range(32):
            weights[32 * v + i] += _signed(word, i, coefficient)
    at = 32 * whole
    if at < len(weights):
        word = words[whole & 3, column + (whole >> 2)]
        # fours become vector instructions, a loop of unknown length would not
        for _ in range((len(weights) - at) // 4):
            for i in range(4):
                weights[at + i] += _signed(word, (at + i) & 31, coefficient)
            at += 4
        for i in range(at, len(weights)):
            weights[i] += _signed(word, i & 31, coefficient)


@njit(inline="always")
def _weights(segment):  # type: ignore[no-untyped-def]
    """Return the live weights of a segment."""
    return carray(_float_pointer(segment[ADDRESS]), (segment[COUNT],), np.float32)


@njit(nogil=True, cache=True, boundscheck=False)
def shift_chunks(lo, hi, first, segments, tid, keys, coefficients):  # type: ignore[no-untyped-def]
    """Add Σ_j coefficients[t, j]·z_j to chunks [lo, hi); coefficients are the bits of float32 multiples of the grid."""
    words = np.empty((4, CHUNK_BLOCKS), np.uint32)
    block = np.zeros(CHUNK_BLOCKS, np.int64)
    tensor = np.zeros(CHUNK_BLOCKS, np.uint32)
    for chunk in range(lo, hi):
        for s in range(first[chunk], first[chunk + 1]):
            for b in range(segments[s, BLOCKS]):
                block[segments[s, COLUMN] + b] = segments[s, BLOCK] + b
                tensor[segments[s, COLUMN] + b] = tid[segments[s, TENSOR]]
        for j in range(keys.shape[0]):
            moving = False
            for s in range(first[chunk], first[chunk + 1]):
                moving = moving or coefficients[segments[s, TENSOR], j] != 0
            if not moving:
                continue
            key0, key1 = keys[j, 0], keys[j, 1]
            # a fixed number of blocks, whatever tensors they belong to: the loop becomes vector instructions
            for g in range(CHUNK_BLOCKS):
                w0, w1, w2, w3 = _philox(block[g], tensor[g], key0, key1)
                words[0, g] = w0
                words[1, g] = w1
                words[2, g] = w2
                words[3, g] = w3
            for s in range(first[chunk], first[chunk + 1]):
                coefficient = coefficients[segments[s, TENSOR], j]
                if coefficient != 0:
                    _add_signed(_weights(segments[s]), words, segments[s, COLUMN], coefficient)


@njit(nogil=True, cache=True, boundscheck=False)
def peak_chunks(lo, hi, first, segments, peak):  # type: ignore[no-untyped-def]
    """`peak[t]` becomes the largest |w| of chunks [lo, hi), as float32 bits (their order is that of integers)."""
    for s in range(first[lo], first[hi]):
        bits = _weights(segments[s]).view(np.int32)
        largest = np.int32(0)
        for i in range(len(bits)):
            largest = max(largest, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
        t = segments[s, TENSOR]
        peak[t] = max(peak[t], largest)


@njit(nogil=True, cache=True, boundscheck=False)
def sum_chunks(lo, hi, first, segments, inverse, sums):  # type: ignore[no-untyped-def]
    """Add Σ_i (n_i mod 2**32)·(2i+1) mod 2**64 of chunks [lo, hi) to `sums[t]` (state checksum)."""
    for s in range(first[lo], first[hi]):
        t = segments[s, TENSOR]
        start = segments[s, BLOCK] * BLOCK_ELEMENTS
        weights = _weights(segments[s])
        scale = inverse[t]
        total = np.uint64(0)
        for i in range(len(weights)):
            units = np.uint32(np.int32(weights[i] * scale))
            total += np.uint64(units) * np.uint64(2 * (start + i) + 1)
        sums[t] += total


def _cut(address: NDArray[np.int64], numel: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lay the blocks of all tensors end to end and cut them every CHUNK_BLOCKS and at the tensors' ends.

    Returns the first segment of every chunk, then one past the last, shape (chunks + 1,); and the table of segments.
    """
    ends = np.cumsum(-(-numel // BLOCK_ELEMENTS))
    begins = np.concatenate([np.zeros(1, np.int64), ends])
    chunks = np.arange(0, begins[-1], CHUNK_BLOCKS)
    cuts = np.unique(np.concatenate([begins, chunks]))
    at, blocks = cuts[:-1], np.diff(cuts)
    tensor = np.searchsorted(ends, at, side="right")
    block = at - begins[tensor]
    count = np.minimum(blocks * BLOCK_ELEMENTS, numel[tensor] - block * BLOCK_ELEMENTS)
    segments = np.empty((len(at), SEGMENT_COLUMNS), np.int64)
    segments[:, TENSOR], segments[:, BLOCK], segments[:, BLOCKS] = tensor, block, blocks
    segments[:, COLUMN] = at % CHUNK_BLOCKS
    segments[:, ADDRESS], segments[:, COUNT] = address[tensor] + 4 * BLOCK_ELEMENTS * block, count
    return np.searchsorted(cuts, np.append(chunks, begins[-1])), segments


@lru_cache(maxsize=8)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="zo-kernel")


# a forked child inherits the pools but not their threads: submitted work would wait forever
os.register_at_fork(after_in_child=_pool.cache_clear)


class NumbaKernel(Kernel):
    """CPU kernel with the addresses of the trained tensors, cut into chunks of equal work.

    Args:
        tensors: contiguous float32 CPU tensors, whose storage must outlive the kernel.
        threads: maximum number of threads; short passes use fewer.
    """

    def __init__(self, tensors: tuple[LatticeTensor, ...], threads: int) -> None:
        super().__init__(tensors)
        self.threads = threads
        self.tid = np.array([t.tensor_id for t in tensors], np.uint32)
        self.inverse = np.array([2.0**-t.grid_exponent for t in tensors], np.float32)
        self.grid = np.array([2.0**t.grid_exponent for t in tensors], np.float32)
        address = np.array([t.weight.data_ptr() for t in tensors], np.int64)
        self.first, self.segments = _cut(address, np.array([t.weight.numel() for t in tensors], np.int64))

    def add(self, seeds: list[int], units: NDArray[np.int64]) -> None:
        """See `Kernel.add`."""
        keys = np.array([[s & 0xFFFFFFFF, s >> 32] for s in seeds], np.uint32).reshape(-1, 2)
        bits = np.ascontiguousarray(units.astype(np.float32) * self.grid[:, None]).view(np.uint32)
        self._run(lambda _, lo, hi: shift_chunks(lo, hi, self.first, self.segments, self.tid, keys, bits), len(seeds))

    def peaks(self) -> NDArray[np.int64]:
        """See `Kernel.peaks`."""
        bits = np.zeros((self.threads, len(self.tensors)), np.int32)
        self._run(lambda part, lo, hi: peak_chunks(lo, hi, self.first, self.segments, bits[part]))
        units: NDArray[np.int64] = np.rint(bits.max(axis=0).view(np.float32) * self.inverse).astype(np.int64)
        return units

    def checksum_sums(self) -> list[int]:
        """See `Kernel.checksum_sums`."""
        sums = np.zeros((self.threads, len(self.tensors)), np.uint64)
        self._run(lambda part, lo, hi: sum_chunks(lo, hi, self.first, self.segments, self.inverse, sums[part]))
        return [int(s) for s in sums.sum(axis=0, dtype=np.uint64)]

    def _run(self, work: Callable[[int, int, int], Any], directions: int = 1) -> None:
        """Call work(part, first chunk, last chunk) for every thread's share, one on this thread, and wait for all."""
        chunks = len(self.first) - 1
        parts = max(1, min(self.threads, chunks * directions // PART_CHUNKS))
        bounds = [chunks * p // parts for p in range(parts + 1)]
        futures = [_pool(self.threads).submit(work, p, bounds[p], bounds[p + 1]) for p in range(1, parts)]
        work(0, bounds[0], bounds[1])
        for future in futures:
            future.result()
