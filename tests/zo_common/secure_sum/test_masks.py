"""Key derivation and keystreams against pinned values, and masks that cancel."""

from __future__ import annotations

import hashlib
import hmac
import struct

import numpy as np
import pytest

from zo_common.errors import SecureAggregationError
from zo_common.secure_sum.boxes import BOX_BYTES, seal, unseal
from zo_common.secure_sum.masks import agree, derive, keystream, new_private, pair_mask, public_of, self_mask

SESSION = bytes(range(16))


def _quarter(state: list[int], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[x] = (state[x] + state[y]) & 0xFFFFFFFF
        state[z] ^= state[x]
        state[z] = (state[z] << turn | state[z] >> (32 - turn)) & 0xFFFFFFFF


def chacha20(key: bytes, blocks: int) -> bytes:
    """RFC 8439 written out, counter from 0 and nonce 0."""
    out = b""
    for block in range(blocks):
        start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), block, 0, 0, 0]
        state = list(start)
        for _ in range(10):
            for column in range(4):
                _quarter(state, column, column + 4, column + 8, column + 12)
            for at in range(4):
                _quarter(state, at, (at + 1) % 4 + 4, (at + 2) % 4 + 8, (at + 3) % 4 + 12)
        out += struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(state, start, strict=True)))
    return out


def test_keystream_of_the_published_zero_key() -> None:
    # RFC 8439, appendix A.1, test vectors 1 and 2
    first = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a37"
    second = "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed29b721769ce64e43d57133b074d839d5"
    found = keystream(bytes(32), 16).tobytes()
    assert found.hex().startswith(first) and found[64:].hex().startswith(second)


def test_keystream_against_the_cipher_written_out() -> None:
    key = hashlib.sha256(b"a key").digest()
    assert keystream(key, 21).tobytes() == chacha20(key, 3)[: 8 * 21]


def test_derived_keys_against_hkdf_written_out() -> None:
    secret = bytes(range(32))
    info = b"zo-asr/secagg/v2" + SESSION + struct.pack("<QQ", 3, 5) + b"pair mask"
    prk = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    assert derive(secret, SESSION, b"pair mask", 3, 5) == hmac.new(prk, info + b"\x01", hashlib.sha256).digest()


def test_pinned_expansions() -> None:
    """From here on these are the protocol: another value is another version."""
    secret = bytes(range(32))
    assert derive(secret, SESSION, b"pair mask", 3, 5).hex() == PINNED_KEY
    assert [f"{v:016x}" for v in pair_mask(secret, SESSION, 3, 5, 3)] == PINNED_PAIR
    assert [f"{v:016x}" for v in self_mask(secret, SESSION, 3, 3)] == PINNED_SELF


PINNED_KEY = "c759a84d27510b00e5561ddc21aa81bb4902d8e353fd29337a67a9e19073b42a"
PINNED_PAIR = ["a01238cb3c2924ee", "45d61d409e07f19c", "9d595502853c40d8"]
PINNED_SELF = ["2de9f36c411c12a7", "a013692a27e5160c", "70cddac267f0bf69"]


def test_agreement_of_the_published_keys() -> None:
    # RFC 7748, section 6.1
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert public_of(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert agree(bob, alice).hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    mine, other = new_private(), new_private()
    assert agree(mine, public_of(other)) == agree(other, public_of(mine))


def test_pairwise_masks_cancel() -> None:
    secret = agree(new_private(), public_of(new_private()))
    both = pair_mask(secret, SESSION, 3, 5, 100) + pair_mask(secret, SESSION, 5, 3, 100)
    assert not both.any()
    assert pair_mask(secret, SESSION, 3, 5, 100).any()


def test_masks_differ_by_session_pair_and_purpose() -> None:
    secret = bytes(range(32))
    found = [
        pair_mask(secret, SESSION, 3, 5, 4),
        pair_mask(secret, SESSION, 3, 6, 4),
        pair_mask(secret, bytes(16), 3, 5, 4),
        self_mask(secret, SESSION, 3, 4),
        self_mask(secret, SESSION, 5, 4),
    ]
    assert len({values.tobytes() for values in found}) == len(found)


@pytest.mark.parametrize("public", [bytes(32), (1).to_bytes(32, "little")])
def test_a_key_of_small_order_is_refused(public: bytes) -> None:
    with pytest.raises(SecureAggregationError, match="no shared secret"):
        agree(new_private(), public)


def test_a_box_opens_for_its_receiver_in_its_session_only() -> None:
    sender, receiver = new_private(), new_private()
    shares = bytes(range(33)), bytes(range(100, 133))
    box = seal(sender, public_of(receiver), SESSION, 3, 5, shares)
    assert len(box) == BOX_BYTES
    assert unseal(receiver, public_of(sender), SESSION, 3, 5, box) == shares
    for session, a, b in ((bytes(16), 3, 5), (SESSION, 5, 3), (SESSION, 3, 6)):
        with pytest.raises(SecureAggregationError, match="altered"):
            unseal(receiver, public_of(sender), session, a, b, box)
    for at in (0, 40, BOX_BYTES - 1):
        changed = box[:at] + bytes([box[at] ^ 1]) + box[at + 1 :]
        with pytest.raises(SecureAggregationError, match="altered"):
            unseal(receiver, public_of(sender), SESSION, 3, 5, changed)
    assert np.frombuffer(box[:33], "u1").tobytes() != shares[0]
