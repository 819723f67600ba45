"""The measured step on a quadratic loss: it learns where there is a signal, and does no harm where there is none.

Devices measure a loss ½ xᵀHx along directions of signs; each utterance's gradient has noise of covariance c·H, as that
of a likelihood has, with heavy tails. The noise decides how much of the scalars is signal.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.learning.rates import MeasuredRate
from zo_common.config.run import RunConfig
from zo_common.estimator.curvature import curvature_of
from zo_common.estimator.local_steps import LocalResult

WEIGHTS, QUERIES, UTTERANCES = 300, 8, 4
START = 0.3


def _run(noise: float, devices: int, rounds: int, seed: int) -> float:
    """Return the loss after some rounds, in units of that at the start."""
    rng = np.random.default_rng(seed)
    h = 1 / np.arange(1.0, WEIGHTS + 1)
    h *= 25 / h.sum()
    x = rng.standard_normal(WEIGHTS)
    x *= np.sqrt(2 * START / (h @ x**2))
    rate = MeasuredRate(RunConfig(num_queries=QUERIES))
    for number in range(1, rounds + 1):
        update, results = np.zeros(WEIGHTS), []
        for _ in range(devices):
            z = rng.choice([-1.0, 1.0], (QUERIES, WEIGHTS))
            apart = z - z.mean(axis=0)
            tails = np.exp(0.7 * rng.standard_normal(UTTERANCES) - 0.49)[:, None]
            gradients = h * x + np.sqrt(noise * h) * tails * rng.standard_normal((UTTERANCES, WEIGHTS))
            each = apart @ gradients.T * (QUERIES / (QUERIES - 1))
            found = curvature_of((apart * h) @ apart.T, each, "leave-one-out", 1e-3)
            results.append(LocalResult(each.mean(axis=1).astype(np.float32)[None], (0.0,), found))
            update += z.T @ each.mean(axis=1)
        x = x - rate.rate_of_round(number, results) * update / (devices * QUERIES)
    return float(h @ x**2) / 2 / START


def _mean(noise: float, devices: int, rounds: int) -> float:
    return float(np.mean([_run(noise, devices, rounds, seed) for seed in range(4)]))


@pytest.mark.parametrize(("devices", "rounds"), [(8, 24), (1, 192)])
@pytest.mark.parametrize(
    ("noise", "most"),
    [
        (0.01, 0.6),  # half of the first rounds' scalars' mean square is signal
        (0.3, 0.9),  # a twentieth
        (3.0, 1.5),  # a two-hundredth: a step for more signal than there is would take it to ten times the start
    ],
)
def test_what_it_learns_and_what_it_leaves(noise: float, most: float, devices: int, rounds: int) -> None:
    assert _mean(noise, devices, rounds) < most
