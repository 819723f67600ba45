"""Measurements that the planner needs of a model and its speech: steepness, and differences of utterances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.hostile.rounds import Crowd, round_plan
from zo_common.config.run import RunConfig
from zo_common.privacy.plan import PrivacyCost, PrivacyPlan
from zo_common.wire.plan import Status

LEAST_SQUARE = 1e-12
BEARABLE = 2.0  # times the steps of a run without privacy
MOST_DEVICES = 1 << 20


@dataclass(frozen=True)
class Slopes:
    """Along a random direction of the trained tensors: |g|², and the variance of one utterance's slope."""

    gradient_square: float
    gradient_variance: float


def measure_slopes(crowd: Crowd, config: RunConfig) -> Slopes:
    """Measure a round of devices with one utterance each: the mean's square, less that of chance."""
    plan = round_plan(config, 1, 0.0, crowd.restart())
    replies = [crowd.measure(replace(plan, client_id=device), False) for device in range(crowd.devices)]
    grads = np.stack([r.projected_grads.reshape(-1) for r in replies if r.status is Status.OK]).astype(np.float64)
    variance = float(grads.var(axis=0, ddof=1).mean())
    square = float(np.square(grads.mean(axis=0)).mean()) - variance / len(grads)
    return Slopes(max(square, LEAST_SQUARE), max(variance, LEAST_SQUARE))


def price(level: Any, target: float, config: RunConfig, devices: int, examples: int, slopes: Slopes) -> PrivacyCost:
    """Return the plan of a run: noise, the usual norm as clip norm, and the effect on progress."""
    return PrivacyPlan(
        level,
        target,
        config.target_delta,
        config.num_server_rounds,
        config.local_steps,
        config.batch_size,
        examples,
        config.num_queries,
        devices,
        0.0,
        slopes.gradient_square,
        slopes.gradient_variance,
        config.directions,
    ).result()


def devices_for(target: float, config: RunConfig, slopes: Slopes) -> dict[str, float]:
    """Return the number of devices, doubled, from which a device-level ε costs at most `BEARABLE` × the steps.

    δ is the run's, or a tenth of a device where that is less.
    """
    devices = 1
    while True:
        devices *= 2
        delta = min(config.target_delta, 0.1 / devices)
        cost = price("device", target, replace(config, target_delta=delta), devices, 1, slopes)
        if cost.slow_down <= BEARABLE or devices >= MOST_DEVICES:
            return {"target": target, "delta": delta, "devices": devices, "slow_down": cost.slow_down}
