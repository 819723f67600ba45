"""Bounded packing: whatever the bytes, a `Reader` gives fields or a `CodecError`."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo_common.binary.packing import Reader, pack_text
from zo_common.errors import CodecError


def test_fields_come_off_in_order() -> None:
    floats = np.array([1.5, -0.0, 3e38], "<f4")
    data = struct.pack("<BQ", 7, 2**64 - 1) + pack_text("Grüezi") + floats.tobytes() + b"end"
    reader = Reader(data, "reply")

    assert reader.take("BQ") == (7, 2**64 - 1)
    assert reader.text() == "Grüezi"
    assert reader.floats(3).tobytes() == floats.tobytes()
    assert reader.remaining == 3
    assert reader.raw(3) == b"end"
    reader.finish()


def test_layouts_are_little_endian_and_unpadded() -> None:
    assert Reader(bytes([1, 2, 0, 0, 0]), "x").take("BI") == (1, 2)


@pytest.mark.parametrize("count", [-1, -4, 4, 2**40])
def test_raw_refuses_what_is_not_there(count: int) -> None:
    reader = Reader(b"abc", "plan")

    with pytest.raises(CodecError, match=f"plan ends early: {count} bytes expected at offset 0, 3 left"):
        reader.raw(count)

    assert reader.remaining == 3


@pytest.mark.parametrize("count", [-1, 2, 2**30, 2**60])
def test_floats_are_bounded_before_anything_is_allocated(count: int) -> None:
    with pytest.raises(CodecError, match="ends early"):
        Reader(bytes(7), "reply").floats(count)


def test_floats_are_an_own_writable_copy() -> None:
    data = np.array([1.0, 2.0], "<f4").tobytes()
    values = Reader(data, "reply").floats(2)

    values[0] = 9.0

    assert data == np.array([1.0, 2.0], "<f4").tobytes()
    assert values.dtype == np.float32


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "ends early"), (b"\x01", "ends early"), (b"\x03\x00ab", "ends early"), (b"\x02\x00\xff\xfe", "not UTF-8")],
)
def test_malformed_text_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        Reader(data, "reply").text()


def test_trailing_bytes_are_refused() -> None:
    reader = Reader(b"abcd", "plan")
    reader.raw(1)

    with pytest.raises(CodecError, match="plan has 3 bytes too many"):
        reader.finish()


@given(st.text())
def test_text_survives_the_round_trip(text: str) -> None:
    reader = Reader(pack_text(text, limit=60_000), "reply")

    assert reader.text() == text
    reader.finish()


@given(st.text(max_size=40), st.integers(0, 20))
def test_long_text_is_cut_between_characters(text: str, limit: int) -> None:
    found = Reader(pack_text(text, limit), "reply").text()

    assert text.startswith(found)
    assert len(found.encode()) <= limit
    if found != text:
        assert len(found.encode()) + len(text[len(found)].encode()) > limit


@given(st.binary(max_size=40), st.lists(st.sampled_from(["B", "IQ", "text", "floats", "raw"]), max_size=6))
def test_any_bytes_give_fields_or_a_codec_error(data: bytes, fields: list[str]) -> None:
    reader = Reader(data, "reply")
    try:
        for field in fields:
            if field == "text":
                reader.text()
            elif field in ("floats", "raw"):
                getattr(reader, field)(reader.take("I")[0])
            else:
                reader.take(field)
        reader.finish()
    except CodecError:
        return
    assert reader.remaining == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ZX\x02", r"reply starts with b'ZX', expected b'ZR': these bytes are something else"),
        (b"ZR\x01", "reply has version 1, this program speaks 2: update the older side"),
        (b"ZR", "reply ends early"),
    ],
)
def test_bytes_of_another_kind_or_version_are_refused(data: bytes, message: str) -> None:
    assert Reader.open(b"ZR\x02rest", "reply", b"ZR", 2).rest() == b"rest"
    with pytest.raises(CodecError, match=message):
        Reader.open(data, "reply", b"ZR", 2)
