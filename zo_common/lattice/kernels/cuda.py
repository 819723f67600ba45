"""CUDA kernel: one launch over all trained tensors for any number of directions (Triton).

A program owns one chunk of a tensor: it loads it once, keeps it in registers while it walks over the directions, and
stores it once. So one direction costs what a copy costs, and further directions cost arithmetic only.

Triton's Philox is Philox4x32-10 with the key and counter words of exact-ZO v1 (`zo_common.directions.philox`). Sizes
are chosen for many loads in flight and full 128-byte lines: word k of 32 blocks is a tile of 32 rows, each one line
long.

With `TRITON_INTERPRET=1` set before the first import the same kernels run on CPU tensors, slowly: that is for tests.
"""

# Triton's decorator is untyped, and its kernels take no annotations but `constexpr`
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from zo_common.directions.philox import BLOCK_ELEMENTS
from zo_common.lattice.kernels.base import Kernel, LatticeTensor

CHUNK_BLOCKS = 32  # a power of two, so that the blocks of a chunk share the high counter word
CHUNK_ELEMENTS = CHUNK_BLOCKS * BLOCK_ELEMENTS
COLUMNS = 4  # of the chunk table: address of the first weight, first block, number of weights, tensor
WARPS = 4
VECTOR_BYTES = 16  # of the widest access, if every tensor begins at a multiple of it


@triton.jit
def _pointer(chunk, aligned: tl.constexpr):
    weights = tl.load(chunk).to(tl.pointer_type(tl.float32))
    if aligned:
        weights = tl.multiple_of(weights, 16)
    return weights


@triton.jit
def _read(weights, at, count, masked: tl.constexpr):
    if masked:
        values = tl.load(weights + at, mask=at < count, other=0.0)
    else:
        values = tl.load(weights + at)
    return values


@triton.jit
def _write(weights, at, values, count, masked: tl.constexpr):
    if masked:
        tl.store(weights + at, values, mask=at < count)
    else:
        tl.store(weights + at, values)


@triton.jit
def _signed(words, left, coefficient):
    sign = (words[:, None] << left[None, :]) & 0x80000000
    return (sign ^ coefficient).to(tl.float32, bitcast=True)


@triton.jit
def _add_chunk(weights, first, count, tid, seeds, coefficients, num_seeds, blocks: tl.constexpr, masked: tl.constexpr):
    block = tl.arange(0, blocks)
    lane = tl.arange(0, 32)
    at = block[:, None] * 128 + lane[None, :]
    left = (31 - lane).to(tl.uint32)
    low = first.to(tl.uint32) + block.to(tl.uint32)
    high = (first >> 32).to(tl.uint32)
    w0 = _read(weights, at, count, masked)
    w1 = _read(weights, at + 32, count, masked)
    w2 = _read(weights, at + 64, count, masked)
    w3 = _read(weights, at + 96, count, masked)
    for j in range(num_seeds):
        coefficient = tl.load(coefficients + j).to(tl.uint32)
        if coefficient != 0:
            x0, x1, x2, x3 = tl.philox(tl.load(seeds + j), low, high, tid, 0)
            w0 += _signed(x0, left, coefficient)
            w1 += _signed(x1, left, coefficient)
            w2 += _signed(x2, left, coefficient)
            w3 += _signed(x3, left, coefficient)
    _write(weights, at, w0, count, masked)
    _write(weights, at + 32, w1, count, masked)
    _write(weights, at + 64, w2, count, masked)
    _write(weights, at + 96, w3, count, masked)


@triton.jit(do_not_specialize=["num_seeds"])
def _add(chunks, ids, terms, num_seeds, blocks: tl.constexpr, columns: tl.constexpr, aligned: tl.constexpr):
    chunk = chunks + tl.program_id(0) * columns
    weights = _pointer(chunk, aligned)
    first = tl.load(chunk + 1)
    count = tl.load(chunk + 2).to(tl.int32)
    tensor = tl.load(chunk + 3)
    tid = tl.load(ids + tensor).to(tl.uint32)
    coefficients = terms + (tensor + 1) * num_seeds
    # two copies of the code: only the unmasked one can use 16-byte accesses
    if count == blocks * 128:
        _add_chunk(weights, first, count, tid, terms, coefficients, num_seeds, blocks, False)
    else:
        _add_chunk(weights, first, count, tid, terms, coefficients, num_seeds, blocks, True)


@triton.jit
def _largest(weights, count, tile: tl.constexpr, masked: tl.constexpr):
    bits = _read(weights, tl.arange(0, tile), count, masked).to(tl.int32, bitcast=True)
    return tl.max(bits & 0x7FFFFFFF)


@triton.jit
def _peaks(chunks, largest, columns: tl.constexpr, tile: tl.constexpr, aligned: tl.constexpr):
    chunk = chunks + tl.program_id(0) * columns
    weights = _pointer(chunk, aligned)
    count = tl.load(chunk + 2).to(tl.int32)
    if count == tile:
        tl.atomic_max(largest + tl.load(chunk + 3), _largest(weights, count, tile, False), sem="relaxed")
    else:
        tl.atomic_max(largest + tl.load(chunk + 3), _largest(weights, count, tile, True), sem="relaxed")


@triton.jit
def _weighted(weights, start, count, inverse, tile: tl.constexpr, masked: tl.constexpr):
    at = tl.arange(0, tile)
    units = (_read(weights, at, count, masked) * inverse).to(tl.int32).to(tl.uint32, bitcast=True).to(tl.int64)
    # Σ n·(2(start + i) + 1): the products of the first sum are 45 bits wide, only the second needs 64-bit arithmetic
    return tl.sum(units * (2 * at + 1).to(tl.int64)) + 2 * start * tl.sum(units)


@triton.jit
def _sums(chunks, inverses, sums, columns: tl.constexpr, tile: tl.constexpr, aligned: tl.constexpr):
    chunk = chunks + tl.program_id(0) * columns
    weights = _pointer(chunk, aligned)
    start = tl.load(chunk + 1) * 128
    count = tl.load(chunk + 2).to(tl.int32)
    tensor = tl.load(chunk + 3)
    inverse = tl.load(inverses + tensor)
    if count == tile:
        tl.atomic_add(sums + tensor, _weighted(weights, start, count, inverse, tile, False), sem="relaxed")
    else:
        tl.atomic_add(sums + tensor, _weighted(weights, start, count, inverse, tile, True), sem="relaxed")


def _chunk_table(tensors: tuple[LatticeTensor, ...]) -> NDArray[np.int64]:
    """Return one row per chunk: address of its first weight, its first block, its number of weights, its tensor."""
    numel = np.array([t.weight.numel() for t in tensors], np.int64)
    address = np.array([t.weight.data_ptr() for t in tensors], np.int64)
    chunks = -(-numel // CHUNK_ELEMENTS)
    tensor = np.repeat(np.arange(len(tensors)), chunks)
    start = (np.arange(len(tensor)) - (np.cumsum(chunks) - chunks)[tensor]) * CHUNK_ELEMENTS
    left = np.minimum(numel[tensor] - start, CHUNK_ELEMENTS)
    return np.stack([address[tensor] + 4 * start, start // BLOCK_ELEMENTS, left, tensor], axis=1).astype(np.int64)


class TritonKernel(Kernel):
    """CUDA kernel with the addresses of the trained tensors; constant tables stay on the GPU between passes.

    Work is queued on the current stream of that GPU; `add` does not wait for it.

    Args:
        tensors: contiguous float32 tensors, at least one, all on one CUDA device (on the CPU under Triton's
            interpreter), whose storage must outlive the kernel.
    """

    def __init__(self, tensors: tuple[LatticeTensor, ...]) -> None:
        super().__init__(tensors)
        self.device = tensors[0].weight.device
        table = _chunk_table(tensors)
        self.num_chunks = len(table)
        self.aligned = not bool(np.any(table[:, 0] % VECTOR_BYTES))
        # waits for each copy, as passes may follow on another stream
        self.chunks = torch.from_numpy(table).to(self.device)
        self.ids = torch.tensor([t.tensor_id for t in tensors], dtype=torch.int64).to(self.device)
        self.inverse = np.array([2.0**-t.grid_exponent for t in tensors], np.float32)
        self.grid = np.array([2.0**t.grid_exponent for t in tensors], np.float32)
        self.inverses = torch.from_numpy(self.inverse).to(self.device)

    def add(self, seeds: list[int], units: NDArray[np.int64]) -> None:
        """See `Kernel.add`."""
        # row 0: seeds; row 1 + t: the coefficients of tensor t as float32 bits. One upload serves both
        terms = np.empty((1 + len(self.tensors), len(seeds)), np.int64)
        terms[0] = np.array(seeds, np.uint64).view(np.int64)
        terms[1:] = (units.astype(np.float32) * self.grid[:, None]).view(np.uint32)
        if seeds:
            self._launch(_add, self.ids, self._upload(terms), len(seeds), blocks=CHUNK_BLOCKS)

    def peaks(self) -> NDArray[np.int64]:
        """See `Kernel.peaks`."""
        bits = torch.zeros(len(self.tensors), dtype=torch.int32, device=self.device)
        self._launch(_peaks, bits, tile=CHUNK_ELEMENTS)
        units: NDArray[np.int64] = np.rint(bits.cpu().numpy().view(np.float32) * self.inverse).astype(np.int64)
        return units

    def checksum_sums(self) -> list[int]:
        """See `Kernel.checksum_sums`."""
        sums = torch.zeros(len(self.tensors), dtype=torch.int64, device=self.device)
        self._launch(_sums, self.inverses, sums, tile=CHUNK_ELEMENTS)
        return [total % 2**64 for total in sums.tolist()]

    def _launch(self, kernel: Any, *arguments: Any, **constants: int) -> None:
        """Launch one program per chunk on the tensors' device, even if another device is current."""
        if self.num_chunks == 0:
            return
        with self._on_device():
            kernel[(self.num_chunks,)](
                self.chunks, *arguments, **constants, columns=COLUMNS, aligned=self.aligned, num_warps=WARPS
            )

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _upload(self, values: NDArray[Any]) -> torch.Tensor:
        """Queue a copy to the device from pinned memory, so that the host need not wait for earlier passes."""
        host = torch.from_numpy(values)
        if self.device.type != "cuda":
            return host
        with self._on_device():
            return host.pin_memory().to(self.device, non_blocking=True)
