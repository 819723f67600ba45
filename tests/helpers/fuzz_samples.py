"""Valid inputs that several of the fuzzed readers share, and folders that end with the process."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from zo_common.estimator.calibration import GroupMeasure
from zo_common.estimator.curvature import Curvature
from zo_common.estimator.settings import EstimatorConfig
from zo_common.ledger.ledger import (
    LedgerHeader,
    TensorEntry,
)
from zo_common.ledger.record import Contribution, Record
from zo_common.speech.metrics import ErrorCounts, Scores
from zo_common.wire.calibration import (
    CalibrationAnswer,
    encode_answer,
)
from zo_common.wire.evaluation import EvaluationReply, encode_evaluation
from zo_common.wire.plan import Plan, Reply, Status, encode_reply

GRADS = np.array([[1.5, -2.0, 0.25], [-0.5, 3.0, 1e-3]], np.float32)


def some_records() -> tuple[Record, ...]:
    """Three ledger records."""
    parts = Contribution(2**63, 3, GRADS), Contribution(7, 2**64 - 1, GRADS[:1])
    return tuple(Record(number, 2**64 - number, parts[: 1 + number % 2]) for number in (1, 2, 3))


def some_header() -> LedgerHeader:
    """A header of two tensors."""
    tensors = TensorEntry("a.weight", (3, 11), -24, 0), TensorEntry("b", (), -26, -3)
    return LedgerHeader(
        *("0123456789abcdef" * 4, 2**64 - 3, "openai/whisper-tiny.en", "encoder-ffn", "unit", 1e-3, "two-sided"),
        *(2**63 - 1, "2026-01-02T03:04:05Z", tensors, {"learning-rate": 0.25, "note": "Grüße"}),
    )


def some_plan(records: tuple[Record, ...] = ()) -> Plan:
    """A plan without a guarantee."""
    rule = EstimatorConfig("two-sided", 3, 1e-3)
    return Plan(len(records) + 1, 2**64 - 1, 3, 5, 0, 2, 16, 1e-3, rule, records)


def some_replies() -> tuple[bytes, ...]:
    """Replies of all kinds, encoded."""
    good = Reply(Status.OK, 1, 0, 3, 2**64 - 1, 0, 12, 0.75, GRADS, "a word")
    behind = Reply(Status.BEHIND, 1, 0, 3, 2**64 - 1, 0)
    curved = replace(good, curvature=Curvature(1e4, -2.5, 0.125, 3.0))
    return tuple(map(encode_reply, (good, replace(good, one_bit=True), behind, curved)))


def some_evaluations() -> tuple[bytes, ...]:
    """An evaluation and a refusal, encoded."""
    scores = Scores(ErrorCounts(1, 2, 3, 9), ErrorCounts(4, 5, 6, 40), ErrorCounts(1, 1, 1, 9), 3)
    good = EvaluationReply(Status.OK, 1, 0, 3, 0, 2.5, scores, "Grüße")
    return encode_evaluation(good), encode_evaluation(replace(good, status=Status.ERROR, scores=Scores()))


def some_calibrations() -> tuple[bytes, ...]:
    """A calibration's answer and a refusal, encoded."""
    measure = GroupMeasure(2304, 10, 0.5, 0.25, 4.0, -0.125, 0.5)
    good = CalibrationAnswer(Status.OK, 2**63, 3, {"encoder-first/norm": measure, "rest/bias": measure})
    return encode_answer(good), encode_answer(CalibrationAnswer(Status.ERROR, 1, 2, message="Grüße"))


_folders: list[tempfile.TemporaryDirectory[str]] = []


def new_folder() -> Path:
    """A folder in memory where there is one."""
    memory = Path("/dev/shm")
    _folders.append(tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None))
    return Path(_folders[-1].name)
