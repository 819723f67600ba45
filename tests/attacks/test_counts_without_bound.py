"""Attack: a device claims so many errors, or utterances, that an evaluation is its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.rounds.inboxes import EvaluationInbox
from zo_common.errors import CodecError
from zo_common.estimator.settings import EstimatorConfig
from zo_common.speech.metrics import ErrorCounts, Scores
from zo_common.wire.evaluation import EvaluationReply, decode_evaluation, encode_evaluation
from zo_common.wire.plan import Plan, Status

PLAN = Plan(1, 0, 0, 0, 0, 1, 2, 1e-6, EstimatorConfig(), (), None)
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


def test_one_device_is_no_whole_evaluation() -> None:
    plans = {node: replace(PLAN, client_id=node) for node in range(4)}
    inbox = EvaluationInbox(plans)
    for node in range(4):
        many = 10**6 if node == 3 else 10  # it says so, and that it made no error
        errors = 0 if node == 3 else 25
        words = ErrorCounts(substitutions=errors, length=5 * many)
        scores = Scores(words, words, words, many)
        inbox.put(node, encode_evaluation(EvaluationReply(Status.OK, 1, 0, node, 0, 1.0 * many, scores)))

    told, rows = inbox.summary("en"), inbox.counts("en")

    assert (told["devices"], told["utterances"]) == (4, 50)
    assert told["wer"] == pytest.approx(75 / 250)
    assert told["loss"] == pytest.approx(1.0)
    assert [row["units"] for row in rows] == [50, 50, 50, 100]
