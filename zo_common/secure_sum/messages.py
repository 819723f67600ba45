"""Messages of a secure sum: packed bytes of bounded size, each with its session.

Every message is `"ZA"`, version u8 = 2, kind u8, 16 bytes of session, and then its class' fields. Server to device:
Invitation, KeyList, Sharers, Survivors, RevealRequest; device to server: Advertisement, SealedShares, MaskedInput,
Consent, RevealedShares. The rounds are those of Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving
Machine Learning, CCS 2017, figure 4.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from zo_common.binary.packing import Reader
from zo_common.errors import CodecError
from zo_common.secure_sum.boxes import ENTRY_BYTES, HASHES_BYTES
from zo_common.secure_sum.masks import KEY_BYTES
from zo_common.secure_sum.node_keys import MOST_SIGNATURE_BYTES
from zo_common.secure_sum.shamir import SHARE_BYTES
from zo_common.secure_sum.terms import MOST_DEVICES, MOST_LENGTH, PERSON, SESSION_BYTES, Terms

MESSAGE_VERSION = 2
_MAGIC = b"ZA"
_BITMAP_BYTES = MOST_DEVICES // 8


def open_message(data: bytes, kind: int, what: str) -> tuple[Reader, bytes]:
    """Read the head; return a reader after it, and the session.

    Raises:
        CodecError: the bytes are another message, or of another version.
    """
    reader = Reader(data, what)
    magic, version, found = reader.take("2sBB")
    if magic != _MAGIC or found != kind:
        raise CodecError(f"{what} starts with {magic!r} kind {found}, expected {_MAGIC!r} kind {kind}")
    if version != MESSAGE_VERSION:
        raise CodecError(f"{what} has version {version}, this program speaks {MESSAGE_VERSION}: update the older side")
    return reader, reader.raw(SESSION_BYTES)


def _head(kind: int, session: bytes) -> bytes:
    return struct.pack("<2sBB", _MAGIC, MESSAGE_VERSION, kind) + session


def _counted(reader: Reader, size: int, what: str) -> int:
    """Read a u32 count of items of at least `size` bytes each."""
    (count,) = reader.take("I")
    if count > min(MOST_DEVICES, reader.remaining // size):
        raise CodecError(f"{what}: {count} are announced in {reader.remaining} bytes")
    return int(count)


def _pack_signature(signature: bytes) -> bytes:
    return struct.pack("<B", len(signature)) + signature


def _take_signature(reader: Reader) -> bytes:
    (size,) = reader.take("B")
    if size > MOST_SIGNATURE_BYTES:
        raise CodecError(f"a signature of {size} bytes was announced, expected at most {MOST_SIGNATURE_BYTES}")
    return reader.raw(size)


def _take_bitmap(reader: Reader) -> bytes:
    (size,) = reader.take("H")
    if size > _BITMAP_BYTES:
        raise CodecError(f"a set of devices of {size} bytes was announced, expected at most {_BITMAP_BYTES}")
    return reader.raw(size)


def _pack_bitmap(bitmap: bytes) -> bytes:
    return struct.pack("<H", len(bitmap)) + bitmap


def _ascending(ids: Iterable[int], what: str) -> None:
    if any(a >= b for a, b in pairwise(ids)):
        raise CodecError(f"{what}: client ids are not ascending, or one comes twice")


@dataclass(frozen=True)
class Invitation:
    """Server → device: the terms (67 bytes); the answer is an Advertisement."""

    KIND: ClassVar[int] = 1
    terms: Terms

    def encode(self) -> bytes:
        """Pack to 87 bytes."""
        return _head(self.KIND, self.terms.session) + self.terms.encode()

    @classmethod
    def decode(cls, data: bytes) -> Invitation:
        """Inverse of `encode`; raises CodecError for malformed bytes, or a session that is not the terms'."""
        reader, session = open_message(data, cls.KIND, "invitation")
        terms = Terms.take(reader)
        reader.finish()
        if session != terms.session:
            raise CodecError("invitation names a session that is not its terms'")
        return cls(terms)


@dataclass(frozen=True)
class Advertisement:
    """Device → server: id u64, two X25519 public keys (for boxes, for masks), signature (u8 length)."""

    KIND: ClassVar[int] = 2
    session: bytes
    client_id: int
    box_key: bytes
    mask_key: bytes
    signature: bytes = b""

    def signed(self) -> bytes:
        """Return the bytes that the node key signs."""
        return b"zo-asr/secagg/v2 advertise\0" + self.session + self._body()

    def _body(self) -> bytes:
        return struct.pack("<Q", self.client_id) + self.box_key + self.mask_key

    def pack(self) -> bytes:
        """Pack without the head, as an entry of a KeyList."""
        return self._body() + _pack_signature(self.signature)

    @classmethod
    def take(cls, reader: Reader, session: bytes) -> Advertisement:
        """Inverse of `pack`."""
        (client_id,) = reader.take("Q")
        return cls(session, client_id, reader.raw(KEY_BYTES), reader.raw(KEY_BYTES), _take_signature(reader))

    def encode(self) -> bytes:
        """Pack to 93 bytes and the signature."""
        return _head(self.KIND, self.session) + self.pack()

    @classmethod
    def decode(cls, data: bytes) -> Advertisement:
        """Inverse of `encode`; raises CodecError for malformed bytes."""
        reader, session = open_message(data, cls.KIND, "advertisement")
        found = cls.take(reader, session)
        reader.finish()
        return found


@dataclass(frozen=True)
class KeyList:
    """Server → device: ids of the cohort (u32 count, u64 each, ascending), and the advertisements that it needs.

    Those are the device's own and its neighbours' (u32 count, ascending by id).
    """

    KIND: ClassVar[int] = 3
    session: bytes
    cohort: tuple[int, ...]
    keys: tuple[Advertisement, ...]

    def encode(self) -> bytes:
        """Pack to 28 bytes, 8 per device of the cohort, and 73 and the signature per advertisement."""
        ids = struct.pack(f"<I{len(self.cohort)}Q", len(self.cohort), *self.cohort)
        entries = b"".join(key.pack() for key in self.keys)
        return _head(self.KIND, self.session) + ids + struct.pack("<I", len(self.keys)) + entries

    @classmethod
    def decode(cls, data: bytes) -> KeyList:
        """Inverse of `encode`; raises CodecError for malformed bytes, or ids out of order."""
        reader, session = open_message(data, cls.KIND, "key list")
        cohort = reader.take(f"{_counted(reader, 8, 'key list')}Q")
        count = _counted(reader, 73, "key list")
        keys = tuple(Advertisement.take(reader, session) for _ in range(count))
        reader.finish()
        _ascending(cohort, "key list")
        _ascending((key.client_id for key in keys), "key list")
        return cls(session, cohort, keys)


@dataclass(frozen=True)
class SealedShares:
    """Device → server: id u64, BLAKE2b-256 of the self mask's seed, hashes of its own shares, boxes for its neighbours.

    Hashes are 32 bytes (`boxes.share_hashes`). Boxes: u32 count, then receiver u64, the box of 82 bytes and the hashes
    of the shares in it, ascending.
    """

    KIND: ClassVar[int] = 4
    session: bytes
    client_id: int
    commitment: bytes
    own: bytes
    boxes: dict[int, bytes]

    def encode(self) -> bytes:
        """Pack to 96 bytes and 122 per neighbour."""
        head = _head(self.KIND, self.session) + struct.pack("<Q", self.client_id)
        return head + self.commitment + self.own + _boxes(self.boxes)

    @classmethod
    def decode(cls, data: bytes) -> SealedShares:
        """Inverse of `encode`; raises CodecError for malformed bytes."""
        reader, session = open_message(data, cls.KIND, "sealed shares")
        (client_id,) = reader.take("Q")
        found = cls(session, client_id, reader.raw(KEY_BYTES), reader.raw(HASHES_BYTES), _take_boxes(reader))
        reader.finish()
        return found


def _boxes(boxes: dict[int, bytes]) -> bytes:
    packed = b"".join(struct.pack("<Q", client) + boxes[client] for client in sorted(boxes))
    return struct.pack("<I", len(boxes)) + packed


def _take_boxes(reader: Reader) -> dict[int, bytes]:
    count = _counted(reader, 8 + ENTRY_BYTES, "boxes")
    entries = [(reader.take("Q")[0], reader.raw(ENTRY_BYTES)) for _ in range(count)]
    _ascending((client for client, _ in entries), "boxes")
    return dict(entries)


@dataclass(frozen=True)
class Sharers:
    """Server → device, with the plan: who sent shares (bitmap, u16 length), and their weights.

    Weights: u32 count, then u32 each in the order of the bitmap; none where every device counts once.
    """

    KIND: ClassVar[int] = 5
    session: bytes
    bitmap: bytes
    weights: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Pack to 26 bytes, a bit per device of the cohort, and 4 bytes per weight."""
        weights = struct.pack(f"<I{len(self.weights)}I", len(self.weights), *self.weights)
        return _head(self.KIND, self.session) + _pack_bitmap(self.bitmap) + weights

    @classmethod
    def decode(cls, data: bytes) -> Sharers:
        """Inverse of `encode`; raises CodecError for malformed bytes."""
        reader, session = open_message(data, cls.KIND, "list of sharers")
        bitmap = _take_bitmap(reader)
        weights = reader.take(f"{_counted(reader, 4, 'weights')}I")
        reader.finish()
        return cls(session, bitmap, weights)


@dataclass(frozen=True, eq=False)
class MaskedInput:
    """Device → server: id u64 and the masked vector, u32 length and u64 each."""

    KIND: ClassVar[int] = 6
    session: bytes
    client_id: int
    values: NDArray[np.uint64]

    def encode(self) -> bytes:
        """Pack to 32 bytes and 8 per number."""
        head = _head(self.KIND, self.session) + struct.pack("<QI", self.client_id, len(self.values))
        return head + self.values.astype("<u8").tobytes()

    @classmethod
    def decode(cls, data: bytes) -> MaskedInput:
        """Inverse of `encode`; raises CodecError for malformed bytes."""
        reader, session = open_message(data, cls.KIND, "masked input")
        client_id, length = reader.take("QI")
        if length > min(MOST_LENGTH, reader.remaining // 8):
            raise CodecError(f"masked input announces {length} numbers in {reader.remaining} bytes")
        values = np.frombuffer(reader.raw(8 * length), "<u8").astype(np.uint64)
        reader.finish()
        return cls(session, client_id, values)


@dataclass(frozen=True)
class Survivors:
    """Server → device: whose masked vectors came (bitmap); the answer is a Consent."""

    KIND: ClassVar[int] = 7
    session: bytes
    bitmap: bytes

    def encode(self) -> bytes:
        """Pack to 22 bytes and a bit per device of the cohort."""
        return _head(self.KIND, self.session) + _pack_bitmap(self.bitmap)

    @classmethod
    def decode(cls, data: bytes) -> Survivors:
        """Inverse of `encode`; raises CodecError for malformed bytes."""
        reader, session = open_message(data, cls.KIND, "list of survivors")
        found = cls(session, _take_bitmap(reader))
        reader.finish()
        return found


def mask_context(sharers: Sharers, checksum: int) -> bytes:
    """Return 16 bytes in place of the session for the pairs' masks: all that a device was told before it masked.

    Of two devices that were told different lists or weights, or have trained at different states, the masks do not
    cancel: their vectors are in no sum that can be read, whoever consents to it.
    """
    data = sharers.encode() + struct.pack("<Q", checksum)
    return hashlib.blake2b(data, digest_size=SESSION_BYTES, person=PERSON).digest()


def agreement(sharers: Sharers, cohort: bytes, survivors: bytes, checksum: int) -> bytes:
    """Return the bytes of a device's consent: session, digest of the cohort, sharers, their weights, survivors, state.

    Args:
        cohort: `Graph.digest`.
        survivors: bitmap over the cohort.
        checksum: of the weights that the device was trained at; the plan may leave it open.
    """
    weights = struct.pack(f"<I{len(sharers.weights)}I", len(sharers.weights), *sharers.weights)
    sets = _pack_bitmap(sharers.bitmap) + _pack_bitmap(survivors) + weights
    return b"zo-asr/secagg/v2 survivors\0" + sharers.session + cohort + sets + struct.pack("<Q", checksum)


@dataclass(frozen=True)
class Consent:
    """Device → server: id u64 and its signature on the `agreement`, empty where it has no node key."""

    KIND: ClassVar[int] = 8
    session: bytes
    client_id: int
    signature: bytes = b""

    def encode(self) -> bytes:
        """Pack to 29 bytes and the signature."""
        return _head(self.KIND, self.session) + struct.pack("<Q", self.client_id) + _pack_signature(self.signature)

    @classmethod
    def decode(cls, data: bytes) -> Consent:
        """Inverse of `encode`; raises CodecError for malformed bytes."""
        reader, session = open_message(data, cls.KIND, "consent")
        found = cls(session, reader.take("Q")[0], _take_signature(reader))
        reader.finish()
        return found


@dataclass(frozen=True)
class RevealRequest:
    """Server → device: its neighbours' consents (u32 count; id u64, signature) and the boxes they sealed for it."""

    KIND: ClassVar[int] = 9
    session: bytes
    signatures: dict[int, bytes] = field(default_factory=dict)
    boxes: dict[int, bytes] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Pack to 28 bytes, 9 and the signature per consent, 122 per box."""
        signed = b"".join(struct.pack("<Q", c) + _pack_signature(self.signatures[c]) for c in sorted(self.signatures))
        head = _head(self.KIND, self.session) + struct.pack("<I", len(self.signatures))
        return head + signed + _boxes(self.boxes)

    @classmethod
    def decode(cls, data: bytes) -> RevealRequest:
        """Inverse of `encode`; raises CodecError for malformed bytes."""
        reader, session = open_message(data, cls.KIND, "request to reveal")
        count = _counted(reader, 9, "consents")
        entries = [(reader.take("Q")[0], _take_signature(reader)) for _ in range(count)]
        _ascending((client for client, _ in entries), "consents")
        found = cls(session, dict(entries), _take_boxes(reader))
        reader.finish()
        return found


@dataclass(frozen=True)
class RevealedShares:
    """Device → server: id u64 and, for each sharer it holds shares of, owner u64 and one share (u32 count, ascending).

    Of a survivor it is the self mask's, of a device that dropped out the mask key's; never both. Left out are shares
    whose box does not hold what its owner's hashes say.
    """

    KIND: ClassVar[int] = 10
    session: bytes
    client_id: int
    shares: dict[int, bytes]

    def encode(self) -> bytes:
        """Pack to 32 bytes and 41 per share."""
        packed = b"".join(struct.pack("<Q", owner) + self.shares[owner] for owner in sorted(self.shares))
        return _head(self.KIND, self.session) + struct.pack("<QI", self.client_id, len(self.shares)) + packed

    @classmethod
    def decode(cls, data: bytes) -> RevealedShares:
        """Inverse of `encode`; raises CodecError for malformed bytes."""
        reader, session = open_message(data, cls.KIND, "revealed shares")
        (client_id,) = reader.take("Q")
        count = _counted(reader, 8 + SHARE_BYTES, "shares")
        entries = [(reader.take("Q")[0], reader.raw(SHARE_BYTES)) for _ in range(count)]
        reader.finish()
        _ascending((owner for owner, _ in entries), "shares")
        return cls(session, client_id, dict(entries))
