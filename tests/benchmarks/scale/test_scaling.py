"""The scaling page's arithmetic against messages that were really encoded and counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scale import scaling
from zo_common.estimator.settings import EstimatorConfig
from zo_common.ledger.record import Contribution, Record
from zo_common.wire.plan import Plan, encode_plan


@pytest.mark.parametrize("contributions", [1, 2, 7])
def test_plans_are_as_long_as_encoded_ones(contributions: int) -> None:
    parts = tuple(
        Contribution(c, c, np.ones((scaling.STEPS, scaling.QUERIES), np.float32)) for c in range(contributions)
    )
    estimator = EstimatorConfig("leave-one-out", scaling.QUERIES, 1e-3)
    plan = Plan(2, 1, 2, 3, 4, scaling.STEPS, scaling.BATCH, 1e-3, estimator, (Record(1, 5, parts),))

    assert scaling.plan_bytes(contributions) == len(encode_plan(plan))


def test_a_reply_is_51_bytes_and_four_bytes_a_scalar() -> None:
    assert scaling.reply_bytes() == 51 + 4 * scaling.STEPS * scaling.QUERIES


def test_lora_of_the_large_model_by_hand() -> None:
    # 32 encoder layers with one attention, 32 decoder layers with two; q and v; A and B of rank 8 on 1280 x 1280
    assert scaling.LARGE.lora_bytes() == 4 * 2 * (32 + 2 * 32) * 8 * (1280 + 1280)


def test_trained_weights_of_the_large_model_by_hand() -> None:
    # first convolution, and the feed-forward weights of two layers
    expected = (3 * 128 * 1280 + 1280) + 2 * (2 * 1280 * 5120 + 5120 + 1280)

    assert scaling.LARGE.trained("encoder-early") == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (119.0, "119 s"), (120.0, "2.0 min"), (7200.0, "2.0 h"), (864000.0, "10.0 days")],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert scaling.duration(seconds) == text
