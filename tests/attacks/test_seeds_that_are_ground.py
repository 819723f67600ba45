"""Attack: a server tries run-seeds until a direction of few weights points where it wants: √(2 ln N / n) of the way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from client.device.demands import Demands
from zo_common.directions.philox import direction
from zo_common.errors import ZOError

SEEDS = 400


@pytest.mark.parametrize("weights", [64, 1024])
def test_what_seeds_can_be_ground_to(weights: int) -> None:
    aims = np.random.default_rng(0).standard_normal((weights, 50))  # as the slopes of guessed utterances
    aims /= np.linalg.norm(aims, axis=0)
    directions = np.stack([direction(seed, "w", weights) for seed in range(SEEDS)]).astype(np.float64)
    cosines = directions @ aims / math.sqrt(weights)

    bound = math.sqrt(2 * math.log(SEEDS) / weights)
    assert 0.75 * bound < cosines.max(axis=0).mean() < bound


def test_an_owner_asks_for_more_weights_than_can_be_ground() -> None:
    demands = Demands.of({"least-weights": 10_000})
    with pytest.raises(ZOError, match="10000 trained weights or more"):
        demands.check_weights(9_999)
    demands.check_weights(10_000)
