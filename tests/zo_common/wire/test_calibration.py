"""A calibration's messages: round trips, bounds, and numbers that cannot be."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from zo_common.errors import CodecError
from zo_common.estimator.calibration import GroupMeasure
from zo_common.wire.calibration import (
    MOST_GROUPS,
    CalibrationAnswer,
    CalibrationAsk,
    decode_answer,
    decode_ask,
    encode_answer,
    encode_ask,
    is_calibration,
)
from zo_common.wire.plan import Status

ASK = CalibrationAsk(seed=2**63 + 1, client_id=7, place=2, devices=8, passes=16, batch_size=4)
MEASURE = GroupMeasure(2304, 10, 0.5, 0.25, 4.0, -0.125, 0.5)
ANSWER = CalibrationAnswer(Status.OK, 2**63 + 1, 7, {"encoder-first/norm": MEASURE}, "Grüße")


def test_round_trips_and_documented_sizes() -> None:
    assert decode_ask(encode_ask(ASK)) == ASK
    assert len(encode_ask(ASK)) == 33
    assert is_calibration(encode_ask(ASK))
    assert not is_calibration(encode_answer(ANSWER))
    assert decode_answer(encode_answer(ANSWER)) == ANSWER
    assert len(encode_answer(replace(ANSWER, measures={}, message=""))) == 24
    assert len(encode_answer(ANSWER)) == 24 + 54 + len("encoder-first/norm") + len("Grüße".encode())


@pytest.mark.parametrize("data", [encode_ask(ASK), encode_answer(ANSWER)])
def test_truncated_and_oversized_bytes_are_refused(data: bytes) -> None:
    decode = decode_ask if is_calibration(data) else decode_answer
    for length in range(len(data)):
        with pytest.raises(CodecError):
            decode(data[:length])
    with pytest.raises(CodecError, match="too many"):
        decode(data + b"\0")


def test_another_version_or_kind_is_refused() -> None:
    with pytest.raises(CodecError, match="version 9"):
        decode_ask(b"ZK\x09" + encode_ask(ASK)[3:])
    with pytest.raises(CodecError, match="something else"):
        decode_answer(encode_ask(ASK))


@pytest.mark.parametrize("change", [{"place": 8}, {"passes": 0}, {"batch_size": 0}, {"devices": 0}])
def test_a_question_out_of_range_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(CodecError, match="out of range"):
        decode_ask(encode_ask(replace(ASK, **change)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_cannot_be_are_refused(bad: float) -> None:
    data = encode_answer(replace(ANSWER, message=""))
    with pytest.raises(CodecError, match="expected finite"):
        decode_answer(data[:-10] + struct.pack("<d", bad) + data[-2:])


def test_too_many_groups_are_refused() -> None:
    many = {f"g{n}": MEASURE for n in range(MOST_GROUPS + 1)}
    with pytest.raises(CodecError, match="at most 64"):
        encode_answer(replace(ANSWER, measures=many))
    data = bytearray(encode_answer(ANSWER))
    data[20:22] = struct.pack("<H", MOST_GROUPS + 1)
    with pytest.raises(CodecError, match="at most 64"):
        decode_answer(bytes(data))
