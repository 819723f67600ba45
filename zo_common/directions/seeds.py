"""From one run seed to every direction seed (exact-ZO v1, "fold_in" and "tensor_id")."""

from __future__ import annotations

import hashlib
import struct
from typing import Literal

Directions = Literal["independent", "shared"]  # of a round's devices
MASK64 = (1 << 64) - 1
MOST_ATTEMPTS = 16
"""Times that a round with secure sums may be begun: each gives a server another choice of directions."""
_PERSON = b"zo-asr/seed/v1"


def tensor_id(name: str) -> int:
    """First four bytes of SHA-256(name), little-endian u32: the tensor's address in the Philox counter."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def fold_in(seed: int, *data: int) -> int:
    """Derive a u64 seed from `seed` and integers of context (BLAKE2b-64, personalised), like JAX's `fold_in`.

    Raises:
        ValueError: an integer is outside [0, 2**64).
    """
    for word in (seed, *data):
        if not 0 <= word <= MASK64:
            raise ValueError(f"seed word {word} is outside 0 … 2**64 − 1")
    packed = struct.pack(f"<{1 + len(data)}Q", seed, *data)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8, person=_PERSON).digest(), "little")


def client_seed(run_seed: int, server_round: int, client_id: int) -> int:
    """Return one client's seed for one round; the plan carries it, and the server refuses replies with another."""
    return fold_in(run_seed, server_round, client_id)


def shared_seed(run_seed: int, server_round: int, attempt: int = 0) -> int:
    """Return the seed that all clients use in a round if `directions = "shared"`.

    Args:
        attempt: how often the round was begun before, in a run with secure sums; less than `MOST_ATTEMPTS`.
    """
    seed = fold_in(run_seed, server_round)
    return fold_in(seed, attempt) if attempt else seed


def direction_seed(seed: int, step: int, query: int) -> int:
    """Return the seed of the direction for one query of one local step."""
    return fold_in(seed, step, query)
