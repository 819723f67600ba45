"""Attack: a device claims so many errors, or utterances, that an evaluation is its own."""

from __future__ import annotations

import pytest

from zo_common.errors import CodecError
from zo_common.speech.metrics import ErrorCounts, Scores
from zo_common.wire.evaluation import EvaluationReply, decode_evaluation, encode_evaluation
from zo_common.wire.plan import Status

MOST = (1 << 32) - 1


def _reply(scores: Scores) -> bytes:
    return encode_evaluation(EvaluationReply(Status.OK, 1, 0, 3, 5, 1.0, scores))


@pytest.mark.parametrize(
    "scores",
    [
        Scores(utterances=MOST),
        Scores(words=ErrorCounts(insertions=MOST), utterances=3),
        Scores(characters=ErrorCounts(length=MOST, substitutions=MOST), utterances=3),
        Scores(raw_words=ErrorCounts(length=1), utterances=0),
    ],
)
def test_what_cannot_be_said_is_refused(scores: Scores) -> None:
    with pytest.raises(CodecError, match="evaluation reply counts"):
        decode_evaluation(_reply(scores))


def test_long_recordings_pass() -> None:
    scores = Scores(ErrorCounts(10, 10, 900, 9000), ErrorCounts(10, 10, 10, 50_000), ErrorCounts(length=9000), 1)
    assert decode_evaluation(_reply(scores)).scores == scores
