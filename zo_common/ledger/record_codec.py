"""Encoding of one ledger round, the same in a ledger file and in a plan."""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np

from zo_common.binary.packing import Reader
from zo_common.errors import CodecError
from zo_common.ledger.record import Contribution, Record


@lru_cache(maxsize=2)  # all plans of a round carry the same one
def encode_record(record: Record) -> bytes:
    """server_round u32, checksum u64, count u32; then for each contribution seed u64, client_id u64, K u16, q u16,
    K·q float32.

    Raises:
        CodecError: there is no coefficient, or one is not finite; such a record could never be read again.
    """
    for c in record.contributions:
        if not c.coefficients.size:
            raise CodecError(f"round {record.server_round} has a contribution without coefficients: leave it out")
        if not np.isfinite(c.coefficients).all():
            raise CodecError(
                f"round {record.server_round} has a coefficient that is not finite: lower the learning rate or weight"
            )
    parts = [struct.pack("<IQI", record.server_round, record.checksum, len(record.contributions))]
    for c in record.contributions:
        parts.append(struct.pack("<QQHH", c.seed, c.client_id, *c.coefficients.shape))
        parts.append(c.coefficients.astype("<f4").tobytes())
    return b"".join(parts)


def described_size(data: bytes | memoryview) -> int | None:
    """Return the size that the record at the start of `data` claims, or None if `data` is too short to tell."""
    at = struct.calcsize("<IQI")
    if len(data) < at:
        return None
    (count,) = struct.unpack_from("<I", data, at - 4)
    for _ in range(count):
        if len(data) < at + 20:
            return None
        steps, queries = struct.unpack_from("<HH", data, at + 16)
        at += 20 + 4 * steps * queries
    return at


@lru_cache(maxsize=2)  # virtual devices in one process all receive the same record
def decode_record(data: bytes) -> Record:
    """Inverse of `encode_record`.

    Raises:
        CodecError: truncated, oversized or non-finite coefficients.
    """
    reader = Reader(data, "ledger record")
    server_round, checksum, count = reader.take("IQI")
    if count > reader.remaining // 20:
        raise CodecError(f"ledger record announces {count} contributions in {reader.remaining} bytes")
    contributions = []
    for _ in range(count):
        seed, client_id, steps, queries = reader.take("QQHH")
        if not steps * queries or 4 * steps * queries > reader.remaining:
            raise CodecError(f"ledger record announces {steps}·{queries} coefficients in {reader.remaining} bytes")
        coefficients = reader.floats(steps * queries).reshape(steps, queries)
        if not np.isfinite(coefficients).all():
            raise CodecError(f"ledger record of round {server_round} holds a coefficient that is not finite")
        coefficients.setflags(write=False)  # the record is shared by all callers that decode these bytes
        contributions.append(Contribution(seed, client_id, coefficients))
    reader.finish()
    return Record(server_round, checksum, tuple(contributions))
