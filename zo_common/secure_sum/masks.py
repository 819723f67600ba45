"""Masks: key agreement, key derivation and keystream, all from `cryptography` (Bonawitz et al. 2017, sections 3 and 4).

    pair:  X25519(my private, your public) → HKDF-SHA256(session, "pair mask", lower id, higher id) → ChaCha20 → u64
    self:  32 random bytes                 → HKDF-SHA256(session, "self mask", id, id)              → ChaCha20 → u64

Keys are fresh in every round and each is used for one keystream, so ChaCha20's counter and nonce are zero.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from zo_common.errors import SecureAggregationError
from zo_common.secure_sum.terms import PERSON

KEY_BYTES = 32
Masks = NDArray[np.uint64]


def new_private() -> bytes:
    """Generate an X25519 private key."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(private: bytes) -> bytes:
    """Return the public key of a private one, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """Return the 32-byte secret that two devices share.

    Raises:
        SecureAggregationError: the public key has small order, so that all would share the same secret.
    """
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise SecureAggregationError(
            "a public key gives no shared secret, as no honest device's does: leave its device out"
        ) from None


def derive(secret: bytes, session: bytes, purpose: bytes, first: int, second: int) -> bytes:
    """Derive a 32-byte key for one purpose between two ids in one session (HKDF-SHA256, RFC 5869, without salt)."""
    info = PERSON + session + struct.pack("<QQ", first, second) + purpose
    return HKDF(hashes.SHA256(), KEY_BYTES, None, info).derive(secret)


def keystream(key: bytes, length: int) -> Masks:
    """Return `length` numbers, uniform on u64: ChaCha20's keystream from block 0, nonce 0, as little-endian words."""
    stream: Any = Cipher(ChaCha20(key, bytes(16)), None).encryptor()
    return np.frombuffer(stream.update(bytes(8 * length)), "<u8").astype(np.uint64)


def self_mask(seed: bytes, session: bytes, client_id: int, length: int) -> Masks:
    """Return the mask that hides a device's vector even from one who knows all its pairwise masks."""
    return keystream(derive(seed, session, b"self mask", client_id, client_id), length)


def pair_mask(secret: bytes, session: bytes, mine: int, other: int, length: int) -> Masks:
    """Return the mask that `mine` adds for `other`: the negative, modulo 2**64, of that of `other` for `mine`."""
    mask = keystream(derive(secret, session, b"pair mask", min(mine, other), max(mine, other)), length)
    return mask if mine < other else np.uint64(0) - mask
