"""Encryption of shares that go from one device to another through the server, which must not read or alter them."""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from zo_common.errors import SecureAggregationError
from zo_common.secure_sum.masks import agree, derive
from zo_common.secure_sum.shamir import SHARE_BYTES
from zo_common.secure_sum.terms import PERSON

BOX_BYTES = 2 * SHARE_BYTES + 16
HASHES_BYTES = 32
ENTRY_BYTES = BOX_BYTES + HASHES_BYTES
_NONCE = bytes(12)  # a key seals one box: it is of this session, this sender and this receiver


def seal(
    private: bytes, public: bytes, session: bytes, sender: int, receiver: int, shares: tuple[bytes, bytes]
) -> bytes:
    """Seal the sender's shares of its mask key and self mask for one receiver: 82 bytes (ChaCha20-Poly1305)."""
    key = derive(agree(private, public), session, b"share box", sender, receiver)
    return ChaCha20Poly1305(key).encrypt(_NONCE, b"".join(shares), _context(session, sender, receiver))


def unseal(
    private: bytes, public: bytes, session: bytes, sender: int, receiver: int, box: bytes
) -> tuple[bytes, bytes]:
    """Inverse of `seal`, at the receiver.

    Raises:
        SecureAggregationError: the box is not what the sender sealed for this receiver in this session.
    """
    key = derive(agree(private, public), session, b"share box", sender, receiver)
    try:
        data = ChaCha20Poly1305(key).decrypt(_NONCE, box, _context(session, sender, receiver))
    except InvalidTag:
        data = b""
    if len(data) != 2 * SHARE_BYTES:
        raise SecureAggregationError(
            f"the shares that device {sender} sent to device {receiver} were altered on the way, or are of another "
            "round: nothing is unmasked; find out what lies between the devices"
        )
    return data[:SHARE_BYTES], data[SHARE_BYTES:]


def share_hashes(session: bytes, owner: int, holder: int, shares: tuple[bytes, bytes]) -> bytes:
    """Return two BLAKE2b-128, by which a server verifies a share that its holder reveals: mask key's and self mask's.

    A share looks random to all but its owner and its holder, so its hash says nothing of it.
    """
    return b"".join(_hash(session, owner, holder, kind, share) for kind, share in enumerate(shares))


def is_share(session: bytes, owner: int, holder: int, hashes: bytes, share: bytes, *, of_key: bool) -> bool:
    """Return whether a share is the one that its owner made for this holder."""
    kind = 0 if of_key else 1
    expected = hashes[16 * kind : 16 * (kind + 1)]
    return hmac.compare_digest(_hash(session, owner, holder, kind, share), expected)


def _hash(session: bytes, owner: int, holder: int, kind: int, share: bytes) -> bytes:
    data = session + struct.pack("<QQB", owner, holder, kind) + share
    return hashlib.blake2b(data, digest_size=16, person=PERSON).digest()


def _context(session: bytes, sender: int, receiver: int) -> bytes:
    return session + struct.pack("<QQ", sender, receiver)
