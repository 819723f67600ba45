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
    aim = np.zeros(weights)
    aim[0] = 1.0
    directions = np.stack([direction(seed, "w", weights) for seed in range(SEEDS)]).astype(np.float64)
    cosines = directions @ aim / np.linalg.norm(directions, axis=1)

    bound = math.sqrt(2 * math.log(SEEDS) / weights)
    assert 0.6 * bound < cosines.max() < 1.25 * bound


def test_an_owner_asks_for_more_weights_than_can_be_ground() -> None:
    demands = Demands.of({"least-weights": 10_000})
    with pytest.raises(ZOError, match="10000 trained weights or more"):
        demands.check_weights(9_999)
    demands.check_weights(10_000)
