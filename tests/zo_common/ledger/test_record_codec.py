"""Bytes of a ledger round: the documented layout, and nothing but a record or a CodecError from any bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from zo_common.errors import CodecError
from zo_common.ledger.record import Contribution, Record
from zo_common.ledger.record_codec import decode_record, encode_record

Records = Callable[[int], Record]
u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
coefficients = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=5),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
records = st.builds(Record, u32, u64, st.lists(st.builds(Contribution, u64, u64, coefficients), max_size=4).map(tuple))


@given(records)
def test_records_survive_the_round_trip(record: Record) -> None:
    found = decode_record(encode_record(record))

    assert found == record
    pairs = zip(found.contributions, record.contributions, strict=True)
    assert all(a.coefficients.tobytes() == b.coefficients.tobytes() for a, b in pairs)


@given(records)
def test_equal_records_have_equal_bytes_of_the_stated_size(record: Record) -> None:
    data = encode_record(record)

    assert len(data) == 16 + sum(20 + 4 * c.coefficients.size for c in record.contributions)
    assert encode_record(decode_record(data)) == data


def test_the_layout_is_the_documented_one() -> None:
    grads = np.array([[1.5, -2.0], [0.0, -0.0]], np.float32)
    expected = struct.pack("<IQI", 7, 2**64 - 1, 1) + struct.pack("<QQHH", 2**63, 5, 2, 2) + grads.tobytes()

    assert encode_record(Record(7, 2**64 - 1, (Contribution(2**63, 5, grads),))) == expected


def test_big_endian_and_wider_coefficients_have_the_same_bytes() -> None:
    values = np.array([[1.5, -2.0]], np.float32)
    expected = encode_record(Record(1, 0, (Contribution(1, 2, values),)))

    for dtype in (">f4", np.float64):
        assert encode_record(Record(1, 0, (Contribution(1, 2, values.astype(dtype)),))) == expected


def test_every_truncation_and_every_extension_is_refused(record_of: Records) -> None:
    data = encode_record(record_of(3))

    for length in range(len(data)):
        with pytest.raises(CodecError):
            decode_record(data[:length])
    with pytest.raises(CodecError, match="1 bytes too many"):
        decode_record(data + b"\0")


def test_every_altered_byte_gives_another_record_or_a_codec_error(record_of: Records) -> None:
    record = record_of(3)
    data = encode_record(record)

    for place in range(len(data)):
        for value in {0, 0x7F, 0x80, 0xFF, data[place] ^ 1} - {data[place]}:
            altered = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                assert encode_record(decode_record(altered)) == altered
            except CodecError:
                continue


@settings(max_examples=300)
@given(st.binary(max_size=120))
def test_any_bytes_are_a_record_or_a_codec_error(data: bytes) -> None:
    try:
        record = decode_record(data)
    except CodecError:
        return
    assert encode_record(record) == data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_coefficient_that_is_not_finite_is_refused(value: float) -> None:
    data = encode_record(Record(4, 0, (Contribution(1, 2, np.array([[0.0, 1.0]], np.float32)),)))
    data = data[:-4] + struct.pack("<f", value)

    with pytest.raises(CodecError, match="round 4 holds a coefficient that is not finite"):
        decode_record(data)


def test_announced_counts_are_checked_before_anything_is_allocated() -> None:
    with pytest.raises(CodecError, match="4294967295 contributions in 0 bytes"):
        decode_record(struct.pack("<IQI", 1, 0, 2**32 - 1))
    with pytest.raises(CodecError, match="65535·65535 coefficients in 4 bytes"):
        decode_record(struct.pack("<IQI", 1, 0, 1) + struct.pack("<QQHH", 1, 1, 65535, 65535) + bytes(4))


def test_decoded_coefficients_cannot_be_written_to(record_of: Records) -> None:
    """All who decode the same bytes share them."""
    decoded = decode_record(encode_record(record_of(1)))

    with pytest.raises(ValueError, match="read-only"):
        decoded.contributions[0].coefficients[0, 0] = 1.0
