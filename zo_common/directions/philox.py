"""Philox4x32-10 (Salmon et al. 2011) and the ±1 directions it addresses: the readable NumPy reference.

Element `i` of tensor `t` in the direction of `seed` depends on (seed, t, i) alone: no state, no order, any chunk.
The fast kernels (`zo_common.lattice.kernels`) are tested bit for bit against this module.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zo_common.directions.seeds import tensor_id

BLOCK_ELEMENTS = 128  # signs in one Philox output of 4 words x 32 bits
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_U32 = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
Key = int | NDArray[np.uint64]


def philox4x32(counter: NDArray[np.uint64], key: tuple[Key, Key]) -> NDArray[np.uint32]:
    """Encrypt counters of shape (n, 4), u32 values held in u64, under a key of two u32; returns (n, 4) u32.

    With keys of shape (s, 1), u32 values held in u64, the result has shape (s, n, 4).
    """
    c0, c1, c2, c3 = (counter[:, j] for j in range(4))
    k0, k1 = (np.asarray(k, np.uint64) for k in key)
    m0, m1 = (np.uint64(m) for m in MULTIPLIERS)
    w0, w1 = (np.uint64(w) for w in WEYL)
    for _ in range(ROUNDS):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ k0,
            p1 & _U32,
            (p0 >> _SHIFT) ^ c3 ^ k1,
            p0 & _U32,
        )
        k0, k1 = (k0 + w0) & _U32, (k1 + w1) & _U32
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def direction_words(seed: int, name: str, first_block: int, num_blocks: int) -> NDArray[np.uint32]:
    """Philox words of blocks [first_block, first_block + num_blocks) of one tensor; shape (num_blocks, 4)."""
    return philox4x32(counters(tensor_id(name), first_block, num_blocks), (seed & 0xFFFFFFFF, seed >> 32))


def counters(tid: int, first_block: int, num_blocks: int) -> NDArray[np.uint64]:
    """Counters of blocks [first_block, first_block + num_blocks) of one tensor; shape (num_blocks, 4)."""
    blocks = np.arange(first_block, first_block + num_blocks, dtype=np.uint64)
    counter = np.zeros((num_blocks, 4), dtype=np.uint64)
    counter[:, 0] = blocks & _U32
    counter[:, 1] = blocks >> _SHIFT
    counter[:, 2] = tid
    return counter


def direction(seed: int, name: str, numel: int) -> NDArray[np.int8]:
    """Return the ±1 direction of a flattened tensor of `numel` elements; bit 0 is +1, bit 1 is −1."""
    words = direction_words(seed, name, 0, -(-numel // BLOCK_ELEMENTS)).astype("<u4")
    bits = np.unpackbits(words.reshape(-1).view(np.uint8), bitorder="little")[:numel]
    return (1 - 2 * bits.astype(np.int8)).astype(np.int8)
