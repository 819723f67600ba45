"""Evaluation replies: round trip, bounds, and counts that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo_common.errors import CodecError
from zo_common.speech.metrics import ErrorCounts, Scores
from zo_common.wire.evaluation import EvaluationReply, decode_evaluation, encode_evaluation
from zo_common.wire.plan import Status

REPLY = EvaluationReply(
    Status.OK,
    server_round=5,
    have_round=4,
    client_id=7,
    checksum=0xFEDCBA9876543210,
    loss_sum=12.5,
    scores=Scores(ErrorCounts(3, 1, 2, 40), ErrorCounts(5, 4, 3, 200), ErrorCounts(9, 1, 2, 41), 6),
    message="",
)


def test_round_trip_and_documented_size() -> None:
    data = encode_evaluation(REPLY)

    assert decode_evaluation(data) == REPLY
    assert len(data) == 90


@given(st.integers(0, 89))
def test_every_truncation_is_refused(length: int) -> None:
    with pytest.raises(CodecError, match="ends early"):
        decode_evaluation(encode_evaluation(REPLY)[:length])


@given(st.binary(max_size=120))
def test_foreign_bytes_never_raise_anything_else(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_evaluation(data)


@pytest.mark.parametrize(
    "broken",
    [
        replace(REPLY, scores=replace(REPLY.scores, words=ErrorCounts(30, 20, 0, 40))),
        replace(REPLY, loss_sum=float("nan")),
        replace(REPLY, loss_sum=-1.0),
    ],
)
def test_counts_that_cannot_be_are_refused(broken: EvaluationReply) -> None:
    with pytest.raises(CodecError, match="evaluation reply"):
        decode_evaluation(encode_evaluation(broken))
