"""The record of an adaptation: a seed and the scalars of its steps, about a kilobyte that reproduces its weights.

Bytes, little-endian: magic "ZT", version u8, layout u8, seed u64, learning_rate f64, start u64, end u64, K u16, q u16;
then K·q scalars: float32, float16, or a magnitude float32 and one bit each (1 is negative, lowest bit first, the last
byte filled with 0); then the BLAKE2b-64 of all that.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from zo_common.binary.packing import Reader
from zo_common.directions.seeds import direction_seed
from zo_common.errors import CodecError, ConfigError
from zo_common.estimator.step import step_updates
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.ledger.replay import apply_all

Layout = Literal["float32", "float16", "sign"]
_LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_MAGIC = b"ZT"
_VERSION = 1
_HEAD = "<2sBBQdQQHH"
_PERSON = b"zo-asr/adapt/v1"
_DIGEST = 8
_MAX_FLOAT16 = np.float32(65504.0)


@dataclass(frozen=True, eq=False)
class AdaptationRecord:
    """K steps of q queries each, as they were applied.

    Attributes:
        seed: u64; direction (step, query) is `direction_seed(seed, step, query)`.
        learning_rate: of every step, for the mean over queries.
        projected_grads: float32 (K, q), already as `layout` can hold them (`quantise`).
        layout: their number format in the bytes.
        start, end: state checksums before and after; 0 where unknown. They bind the record to its model, its choice of
            trained tensors and its scale, none of which is in it.
    """

    seed: int
    learning_rate: float
    projected_grads: NDArray[np.float32]
    layout: Layout = "float32"
    start: int = 0
    end: int = 0

    @property
    def steps(self) -> int:
        """K."""
        return len(self.projected_grads)

    def updates(self) -> list[Update]:
        """Return the K·q updates, in step then query order (any order gives the same weights)."""
        return [
            update
            for step, row in enumerate(self.projected_grads)
            for update in step_updates(
                [direction_seed(self.seed, step, query) for query in range(len(row))], row, self.learning_rate
            )
        ]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AdaptationRecord):
            return NotImplemented
        return encode_adaptation(self) == encode_adaptation(other)

    def __hash__(self) -> int:
        return hash((self.seed, self.start, self.end))


def quantise(grads: NDArray[np.float32], layout: Layout, magnitude: float = 0.0) -> NDArray[np.float32]:
    """Return the float32 values that a layout holds in place of `grads`; only these may be applied.

    Args:
        grads: finite float32; float16 clips them to ±65504.
        magnitude: of every scalar of "sign", which holds 0 as positive.
    """
    if layout == "float32":
        return grads.astype(np.float32)
    if layout == "float16":
        return np.clip(grads, -_MAX_FLOAT16, _MAX_FLOAT16).astype(np.float16).astype(np.float32)
    size = np.float32(magnitude)
    return np.where(grads < 0, -size, size).astype(np.float32) + np.float32(0.0)


def encode_adaptation(record: AdaptationRecord) -> bytes:
    """Pack a record: 48 bytes, and 4 or 2 bytes a scalar, or 4 bytes and a bit a scalar.

    Raises:
        ConfigError: the scalars are not what the layout holds, or there are more than 65535 steps or queries.
    """
    grads = record.projected_grads
    flat = grads.reshape(-1)
    magnitude = float(abs(flat[0])) if flat.size else 0.0
    if max(grads.shape) > 0xFFFF:
        raise ConfigError(
            f"an adaptation of {grads.shape[0]} steps and {grads.shape[1]} queries exceeds 65535 of either"
        )
    if not np.isfinite(flat).all() or not np.array_equal(quantise(flat, record.layout, magnitude), flat):
        raise ConfigError(f"the scalars of this adaptation do not fit the layout {record.layout}: quantise them first")
    head = struct.pack(
        _HEAD,
        _MAGIC,
        _VERSION,
        _LAYOUTS.index(record.layout),
        record.seed,
        record.learning_rate,
        record.start,
        record.end,
        *grads.shape,
    )
    if record.layout == "sign":
        body = struct.pack("<f", magnitude) + np.packbits(flat < 0, bitorder="little").tobytes()
    else:
        body = flat.astype("<f4" if record.layout == "float32" else "<f2").tobytes()
    return head + body + _digest(head + body)


def decode_adaptation(data: bytes) -> AdaptationRecord:
    """Inverse of `encode_adaptation`; it allocates no more than a few times the bytes given.

    Raises:
        CodecError: the data is truncated, altered, of another version, or has scalars that are not finite.
    """
    reader = Reader.open(data, "adaptation record", _MAGIC, _VERSION)
    layout, seed, learning_rate, start, end, steps, queries = reader.take("BQdQQHH")
    if layout >= len(_LAYOUTS):
        raise CodecError(f"adaptation record has unknown layout {layout}")
    grads = _take_scalars(reader, _LAYOUTS[layout], steps * queries)
    found, expected = reader.raw(_DIGEST), _digest(data[:-_DIGEST])
    reader.finish()
    if found != expected:
        raise CodecError("adaptation record has been altered: its checksum does not hold")
    if not np.isfinite(grads).all() or not (math.isfinite(learning_rate) and learning_rate > 0):
        raise CodecError("adaptation record holds a scalar or learning rate that is not a finite number")
    return AdaptationRecord(seed, learning_rate, grads.reshape(steps, queries), _LAYOUTS[layout], start, end)


def _take_scalars(reader: Reader, layout: Layout, count: int) -> NDArray[np.float32]:
    if layout == "float32":
        return reader.floats(count)
    if layout == "float16":
        return np.frombuffer(reader.raw(2 * count), "<f2").astype(np.float32)
    (magnitude,) = reader.take("f")
    packed = np.frombuffer(reader.raw((count + 7) // 8), np.uint8)
    bits = np.unpackbits(packed, bitorder="little")
    # copysign: -0.0 is not below zero, and would be a second encoding of the magnitude 0.
    negative = math.copysign(1.0, magnitude) < 0 or math.isnan(magnitude)
    if bits[count:].any() or negative or (magnitude == 0 and bits.any()) or (not count and magnitude):
        raise CodecError("adaptation record has signs or a magnitude that no encoder writes")
    return quantise(np.where(bits[:count], -1.0, 1.0).astype(np.float32), "sign", magnitude)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST, person=_PERSON).digest()


def undo(state: LatticeState, record: AdaptationRecord) -> None:
    """Undo a record's updates, to the bit, whatever was applied before or after it."""
    apply_all(state, record.updates(), sign=-1)
