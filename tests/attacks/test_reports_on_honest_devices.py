"""Fault: honest devices with few utterances are reported, and reports tell what the server's noise is to hide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from server.devices.device_status import DeviceStatuses
from server.devices.suspicion import Suspicions
from zo_common.aggregation.mean import ClientScalars
from zo_common.config.run import RunConfig

BATCH, QUERIES, ROUNDS = 16, 16, 60


def _reported_once(utterances: int, seed: int, noise_alone: bool = False) -> bool:
    """Whether device 0 is ever reported among nine with many utterances; noise falls with √b."""
    rng = np.random.default_rng(seed)
    suspicions = Suspicions(DeviceStatuses(), comparable=True, batch=BATCH)
    sizes = np.array([utterances] + 9 * [100])
    noise = np.sqrt(BATCH / np.minimum(sizes, BATCH))[:, None]
    for server_round in range(1, ROUNDS + 1):
        grads = rng.standard_normal(QUERIES) + noise * rng.standard_normal((10, QUERIES))
        if noise_alone:
            grads[0] = rng.standard_normal(QUERIES)
        clients = [
            ClientScalars(device, 1, int(sizes[device]), row[None].astype(np.float32))
            for device, row in enumerate(grads)
        ]
        suspicions.review(server_round, clients, None)
        if "0" in suspicions.reported:
            return True
    return False


@pytest.mark.parametrize("utterances", [1, 2, 4, 100])
def test_an_honest_device_is_reported_in_hardly_any_run(utterances: int) -> None:
    assert sum(_reported_once(utterances, seed) for seed in range(30)) <= 1


def test_a_device_that_sends_noise_is_reported_still() -> None:
    assert all(_reported_once(100, seed, noise_alone=True) for seed in range(10))


@pytest.mark.parametrize(("noise_by", "reported"), [("server", False), ("devices", True)])
def test_nothing_is_told_of_replies_before_the_servers_noise(
    settings: Callable[..., RunConfig], noise_by: str, reported: bool
) -> None:
    private = {"privacy": "device", "noise_by": noise_by, "directions": "shared", "weighting": "uniform"}
    statuses = DeviceStatuses()
    suspicions = Suspicions.of(settings(**private), statuses)
    rng = np.random.default_rng(0)
    words = []
    for server_round in range(1, 21):
        signal = rng.standard_normal(QUERIES).astype(np.float32)
        clients = [ClientScalars(device, 1, 9, (-1 if device == 2 else 1) * signal[None]) for device in range(5)]
        words += suspicions.review(server_round, clients, None)

    assert ("2" in suspicions.reported, bool(words)) == (reported, reported)
    assert (statuses.of(2).scalars.rounds > 0) == reported
