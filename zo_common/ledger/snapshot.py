"""The snapshot: a whole ledger compacted into the integer difference between the weights and the base model's.

If the ledger is larger than the snapshot, a device that joins late gets the snapshot instead, in parts. Differences are
whole grid units, so the resulting weights equal the replay's bit for bit.

Layout, little-endian: `ZD`, version u8, count u32, for each trained tensor in name order tensor id u32, grid exponent
i16 and elements u64; then one zlib stream of pieces of at most 2**20 elements of one tensor: each difference d as the
u32 2d or −2d−1 ("zigzag"), first the lowest bytes of all of them, last the highest. Small differences so become small
first bytes and runs of zeros, which Huffman codes of runs bring to a few percent of their entropy.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zo_common.binary.packing import Reader
from zo_common.errors import CodecError, ConfigError
from zo_common.lattice.state import LatticeState

_VERSION = 1
_SNAPSHOT, _PART = b"ZD", b"ZS"
_HEAD, _TENSOR = "2sBI", "<IhQ"
_PART_FIELDS = "QQIQIII"
_PART_HEAD = "2sB" + _PART_FIELDS
_PART_BYTES = struct.calcsize("<" + _PART_HEAD)
_INPUT_BYTES = 1 << 16  # compressed bytes processed at a time
MAX_PARTS = 1 << 20


@dataclass(frozen=True)
class SnapshotPart:
    """The part of a snapshot in one message.

    Attributes:
        base_id: first 8 bytes of the base model's fingerprint, as u64.
        client_id: the client that the server sends it to.
        server_round: the ledger round whose weights the snapshot leads to.
        checksum: state checksum of these weights.
        part: place of this part, from 0.
        parts: number of parts.
        data: bytes of the snapshot, joined in the order of the parts.
    """

    base_id: int
    client_id: int
    server_round: int
    checksum: int
    part: int
    parts: int
    data: bytes


def encode_part(part: SnapshotPart) -> bytes:
    """Pack the part: 43 bytes and the data."""
    head = struct.pack(
        "<" + _PART_HEAD,
        _PART,
        _VERSION,
        part.base_id,
        part.client_id,
        part.server_round,
        part.checksum,
        part.part,
        part.parts,
        len(part.data),
    )
    return head + part.data


def decode_part(data: bytes) -> SnapshotPart:
    """Inverse of `encode_part`.

    Raises:
        CodecError: truncated, oversized, empty, or a number out of range.
    """
    reader = Reader.open(data, "snapshot part", _PART, _VERSION)
    base, client, rnd, checksum, part, parts, length = reader.take(_PART_FIELDS)
    if not 0 <= part < parts <= MAX_PARTS or length == 0:
        raise CodecError(f"snapshot part {part} of {parts} with {length} bytes: expected one of 1 … {MAX_PARTS} parts")
    body = reader.raw(length)
    reader.finish()
    return SnapshotPart(base, client, rnd, checksum, part, parts, body)


def snapshot_part(
    data: bytes, index: int, *, base_id: int, client_id: int, server_round: int, checksum: int, limit: int
) -> SnapshotPart:
    """Return part `index` of a snapshot cut into parts that are at most `limit` bytes each when encoded.

    Raises:
        ConfigError: `limit` is too small for the snapshot to go into 2**20 parts.
    """
    size = limit - _PART_BYTES
    parts = -(-len(data) // size) if size > 0 else 0
    if not 0 < parts <= MAX_PARTS:
        raise ConfigError(
            f"a snapshot of {len(data)} bytes does not go into parts of {limit} bytes: allow larger messages"
        )
    body = data[index * size : (index + 1) * size]
    return SnapshotPart(base_id, client_id, server_round, checksum, index, parts, body)


def encode_snapshot(base: LatticeState, now: LatticeState) -> bytes:
    """Return the difference of two states of the same tensors; needs a few pieces of memory besides its result.

    Raises:
        CodecError: the two states do not have the same tensors on the same grids.
    """
    head = _describe(base)
    if head != _describe(now):
        raise CodecError("the two states of a snapshot train different tensors: take both from one base model")
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    parts = [head]
    for before, after in zip(base.grid_units(), now.grid_units(), strict=True):
        parts.append(packer.compress(_to_planes(after - before)))
    parts.append(packer.flush())
    return b"".join(parts)


def apply_snapshot(state: LatticeState, data: bytes, sign: int = 1) -> None:
    """Apply a snapshot to a state with the base weights; compare the checksum afterwards.

    `sign=-1` undoes it bit for bit.

    The bytes are read twice, first to check that they are complete and stay within the lattice. Only a few pieces of
    memory are allocated, whatever sizes the bytes claim.

    Raises:
        CodecError: not a snapshot, of other tensors, truncated, damaged or too long; nothing is changed.
        LatticeOverflow: a weight would leave its lattice; nothing is changed.
    """
    body = _expect_tensors(state, data)
    state.move(lambda: (sign * difference for difference in _differences(state, body)))


def largest_snapshot(state: LatticeState) -> int:
    """Return the maximum size of a snapshot of these tensors, at which a receiver of parts may stop."""
    raw = 4 * state.num_elements
    # zlib's own bound for what cannot be compressed
    return len(_describe(state)) + raw + (raw >> 3) + (raw >> 6) + 64


def _describe(state: LatticeState) -> bytes:
    table = [struct.pack(_TENSOR, t.tensor_id, t.grid_exponent, t.weight.numel()) for t in state.tensors]
    return struct.pack("<" + _HEAD, _SNAPSHOT, _VERSION, len(table)) + b"".join(table)


def _expect_tensors(state: LatticeState, data: bytes) -> memoryview:
    """Return the compressed bytes of a snapshot of just this state's tensors."""
    reader = Reader.open(data, "snapshot", _SNAPSHOT, _VERSION)
    (count,) = reader.take("I")
    if count != len(state.tensors):
        raise CodecError(
            f"snapshot has {count} tensors, {len(state.tensors)} are trained here: compare base model and "
            "trained-tensors on both sides"
        )
    for t in state.tensors:
        found = struct.unpack(_TENSOR, reader.raw(struct.calcsize(_TENSOR)))
        expected = (t.tensor_id, t.grid_exponent, t.weight.numel())
        if found != expected:
            raise CodecError(
                f"snapshot has (id, grid exponent, elements) {found} where tensor {t.name!r} has {expected}: compare "
                "base model and trained-tensors on both sides"
            )
    return reader.rest()


def _to_planes(differences: NDArray[np.int32]) -> bytes:
    """Zigzag, then the bytes of equal significance together."""
    zigzag = ((differences << 1) ^ (differences >> 31)).astype("<u4", copy=False)
    return np.ascontiguousarray(zigzag.view(np.uint8).reshape(-1, 4).T).tobytes()


def _from_planes(planes: bytes) -> NDArray[np.int32]:
    """Inverse of `_to_planes`."""
    zigzag = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(4, -1).T).view("<u4").reshape(-1)
    return ((zigzag >> 1) ^ -(zigzag & 1)).astype(np.uint32, copy=False).view(np.int32)


def _differences(state: LatticeState, body: memoryview) -> Iterator[NDArray[np.int32]]:
    stream = _Stream(body)
    for _, part in state.pieces():
        yield _from_planes(stream.take(4 * part.numel()))
    stream.finish()


class _Stream:
    """Reader of a zlib stream that never decompresses more bytes than requested.

    Raises:
        CodecError: the stream is damaged, ends early, or has data after its end.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0
        self._left: bytes | memoryview = b""
        self._unzip = zlib.decompressobj()

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        taken = bytearray()
        while len(taken) < count:
            found = self._inflate(count - len(taken))
            if found is None:
                raise CodecError("snapshot ends early: fetch it again")
            taken += found
        return bytes(taken)

    def finish(self) -> None:
        """Raise CodecError unless the stream ends here."""
        while not self._unzip.eof:
            found = self._inflate(1)
            if found is None:
                raise CodecError("snapshot ends early: fetch it again")
            if found:
                raise CodecError("snapshot has more differences than weights are trained: fetch it again")
        if self._unzip.unused_data or self._at < len(self._data):
            raise CodecError("snapshot goes on after its end: fetch it again")

    def _inflate(self, limit: int) -> bytes | None:
        """Return at most `limit` bytes, possibly none yet; None at the end of the stream."""
        if not self._left:
            self._left = self._data[self._at : self._at + _INPUT_BYTES]
            self._at += len(self._left)
        last = not self._left
        try:
            found = self._unzip.decompress(self._left, limit)
        except zlib.error as error:
            raise CodecError(f"snapshot is damaged ({error}): fetch it again") from None
        self._left = self._unzip.unconsumed_tail
        return None if not found and (last or self._unzip.eof) else found
