"""The bytes of an adaptation: sizes, round trips, and nothing but CodecError from bytes that no encoder wrote."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.adapt.record import (
    AdaptationRecord,
    Layout,
    decode_adaptation,
    encode_adaptation,
    quantise,
)
from zo_common.errors import CodecError, ConfigError

HEAD = 40
LAYOUTS: list[Layout] = ["float32", "float16", "sign"]


def _record(layout: Layout, steps: int = 40, queries: int = 8, seed: int = 0) -> AdaptationRecord:
    grads = np.random.default_rng(seed).normal(size=(steps, queries)).astype(np.float32)
    return AdaptationRecord(2**64 - 1, 1.6e-4, quantise(grads, layout, 0.7), layout, 2**64 - 2, 3)


def _sealed(content: bytes) -> bytes:
    return content + hashlib.blake2b(content, digest_size=8, person=b"zo-asr/adapt/v1").digest()


@pytest.mark.parametrize(("layout", "size"), [("float32", 1328), ("float16", 688), ("sign", 92)])
def test_forty_steps_of_eight_queries(layout: Layout, size: int) -> None:
    record = _record(layout)

    data = encode_adaptation(record)
    again = decode_adaptation(data)

    assert len(data) == size
    assert again == record
    assert again.projected_grads.tobytes() == record.projected_grads.tobytes()
    assert (again.seed, again.learning_rate, again.layout) == (2**64 - 1, 1.6e-4, layout)
    assert (again.start, again.end, again.steps) == (2**64 - 2, 3, 40)
    assert again.updates() == record.updates()


def test_the_bytes_by_hand() -> None:
    grads = np.array([[0.5, -0.5], [-0.5, 0.5]], np.float32)

    data = encode_adaptation(AdaptationRecord(1, 0.25, grads, "sign", 2, 3))

    head = b"ZT" + bytes([1, 2]) + struct.pack("<QdQQHH", 1, 0.25, 2, 3, 2, 2)
    assert data == _sealed(head + struct.pack("<f", 0.5) + bytes([0b0110]))


def test_coefficients_are_those_of_a_step() -> None:
    record = AdaptationRecord(1, 0.25, np.array([[2.0, -3.0]], np.float32))

    assert [update.coefficient for update in record.updates()] == [-0.25, 0.375]


class TestQuantise:
    def test_float32_keeps_every_bit(self) -> None:
        values = np.array([1e-45, -0.0, 3e38], np.float32)

        assert quantise(values, "float32").tobytes() == values.tobytes()

    def test_float16_rounds_and_stops_at_its_largest(self) -> None:
        values = np.array([1 / 3, 1e6, -1e30, 65519.0, 1e-9], np.float32)

        assert quantise(values, "float16").tolist() == [0.333251953125, 65504.0, -65504.0, 65504.0, 0.0]

    def test_signs_count_zero_as_positive(self) -> None:
        values = np.array([0.0, -0.0, -1e-30, 5.0], np.float32)

        assert quantise(values, "sign", 0.5).tolist() == [0.5, 0.5, -0.5, 0.5]
        assert not np.signbit(quantise(values, "sign", 0.0)).any()


@pytest.mark.parametrize(
    ("layout", "grads", "message"),
    [
        ("float16", [[1 / 3]], "do not fit the layout float16"),
        ("float16", [[1e6]], "do not fit"),
        ("sign", [[1.0, 2.0]], "do not fit"),
        ("float32", [[np.nan]], "do not fit"),
        ("float32", np.zeros((65536, 1)), "exceeds 65535"),
    ],
)
def test_what_the_bytes_cannot_hold_is_not_encoded(layout: Layout, grads: list[list[float]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encode_adaptation(AdaptationRecord(1, 0.1, np.array(grads, np.float32), layout))


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    steps=st.integers(0, 5),
    queries=st.integers(0, 9),
    seed=st.integers(0, 2**64 - 1),
    learning_rate=st.floats(1e-30, 1e30),
    magnitude=st.floats(0, 2.0**99, width=32),
)
def test_round_trips(
    layout: Layout, steps: int, queries: int, seed: int, learning_rate: float, magnitude: float
) -> None:
    grads = np.random.default_rng(seed % 1000).normal(size=(steps, queries)).astype(np.float32)
    record = AdaptationRecord(seed, learning_rate, quantise(grads, layout, magnitude), layout, seed, 0)

    again = decode_adaptation(encode_adaptation(record))

    assert again == record
    assert again.projected_grads.shape == (steps, queries)
    assert again.projected_grads.tobytes() == record.projected_grads.tobytes()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_adaptation(data)


@settings(max_examples=300, deadline=None)
@given(
    layout=st.integers(0, 3),
    shape=st.tuples(st.integers(0, 65535), st.integers(0, 65535)) | st.tuples(st.integers(0, 3), st.integers(0, 9)),
    learning_rate=st.floats(),
    body=st.binary(max_size=120),
)
def test_sealed_noise_is_refused_or_a_record(
    layout: int, shape: tuple[int, int], learning_rate: float, body: bytes
) -> None:
    data = _sealed(b"ZT" + bytes([1, layout]) + struct.pack("<QdQQHH", 1, learning_rate, 2, 3, *shape) + body)

    try:
        record = decode_adaptation(data)
    except CodecError:
        return
    assert encode_adaptation(record)[:HEAD] == data[:HEAD]
    assert decode_adaptation(encode_adaptation(record)) == record


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_cut_and_every_flipped_bit_is_noticed(layout: Layout) -> None:
    data = encode_adaptation(_record(layout, 2, 3))

    for end in range(len(data)):
        with pytest.raises(CodecError):
            decode_adaptation(data[:end])
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            decode_adaptation(bytes(altered))
    with pytest.raises(CodecError, match="bytes too many"):
        decode_adaptation(data + b"\0")


@pytest.mark.parametrize(
    ("magnitude", "signs", "shape"),
    [
        (-1.0, 0, (1, 3)),
        (-0.0, 0, (1, 3)),
        (np.nan, 0, (1, 3)),
        (np.inf, 0, (1, 3)),
        (1.0, 0b1000, (1, 3)),
        (0.0, 1, (1, 3)),
    ],
)
def test_signs_that_no_encoder_writes(magnitude: float, signs: int, shape: tuple[int, int]) -> None:
    head = b"ZT" + bytes([1, 2]) + struct.pack("<QdQQHH", 1, 0.25, 2, 3, *shape)

    with pytest.raises(CodecError):
        decode_adaptation(_sealed(head + struct.pack("<f", magnitude) + bytes([signs])))


def test_records_compare_by_their_bytes() -> None:
    one, same, other = _record("float32"), _record("float32"), _record("float32", seed=1)

    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != "a record"
