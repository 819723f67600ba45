"""A server cannot choose directions: plans and the rounds behind them follow from the run's one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client.device import requests as device
from client.device.checks import check_history, check_seed
from client.device_identity import DeviceIdentity
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed, shared_seed
from zo_common.errors import ConfigError
from zo_common.ledger.record import Contribution, Record
from zo_common.wire.plan import Plan, Reply, Status

CONFIG = RunConfig(run_seed=7)
SHARED = replace(CONFIG, directions="shared")
IDENTITY = DeviceIdentity(3)
PLAN = Plan(2, client_seed(7, 2, 3), 3, 0, 0, 1, 1, 1e-3, CONFIG.estimator_config)
ONE = np.ones((1, 8), np.float32)


def _record(server_round: int, *seeds: tuple[int, int]) -> Record:
    return Record(server_round, 0, tuple(Contribution(seed, client, ONE) for seed, client in seeds))


class TestPlans:
    def test_the_derived_seed_passes(self) -> None:
        check_seed(CONFIG, PLAN, IDENTITY)
        check_seed(SHARED, replace(PLAN, seed=shared_seed(7, 2)), IDENTITY)

    @pytest.mark.parametrize(
        ("config", "changes", "word"),
        [
            (CONFIG, {"seed": 42}, "has seed 000000000000002a"),
            (CONFIG, {"seed": shared_seed(7, 2)}, "a server does not choose them"),
            (SHARED, {}, "a server does not choose them"),
            (replace(CONFIG, run_seed=8), {}, "from run-seed 8"),
            (CONFIG, {"server_round": 3}, "the plan of round 3"),
            (CONFIG, {"client_id": 4, "seed": client_seed(7, 2, 4)}, "for device 4, this is device 3"),
        ],
    )
    def test_any_other_is_refused(self, config: RunConfig, changes: dict[str, Any], word: str) -> None:
        with pytest.raises(ConfigError, match=word) as error:
            check_seed(config, replace(PLAN, **changes), IDENTITY)
        assert "\n" not in str(error.value)


class TestHistory:
    def test_of_the_run(self) -> None:
        check_history(CONFIG, [])
        check_history(CONFIG, [_record(1, (client_seed(7, 1, 3), 3), (client_seed(7, 1, 5), 5)), Record(2, 0, ())])
        check_history(SHARED, [_record(1, (shared_seed(7, 1), 0))])

    def test_rounds_that_are_taken_back_are_those_of_the_run(self) -> None:
        """A record of a guard: its own round's directions beside those of rounds before it."""
        check_history(
            CONFIG, [_record(9, (client_seed(7, 9, 3), 3), (client_seed(7, 8, 3), 3), (client_seed(7, 6, 5), 5))]
        )
        check_history(SHARED, [_record(9, (shared_seed(7, 9), 0), (shared_seed(7, 7), 0))])
        for seed in (client_seed(7, 10, 3), client_seed(8, 8, 3)):
            with pytest.raises(ConfigError, match="another run-seed"):
                check_history(CONFIG, [_record(9, (client_seed(7, 9, 3), 3), (seed, 3))])

    def test_a_look_back_is_bounded(self) -> None:
        with pytest.raises(ConfigError, match="another run-seed"):
            check_history(CONFIG, [_record((1 << 32) - 1, (client_seed(7, 1, 3), 3))])

    def test_a_run_seed_that_changes_within_a_run_is_noticed(self) -> None:
        before = [_record(1, (client_seed(7, 1, 3), 3)), Record(2, 0, ())]

        with pytest.raises(ConfigError, match="round 1 has directions of another run-seed than 8"):
            check_history(replace(CONFIG, run_seed=8), before)


class _Measures:
    """An engine in step with everything, that trains nothing."""

    state = SimpleNamespace(num_elements=64)

    def __init__(self, applied: list[Record]) -> None:
        self.applied = applied
        self.asked = 0

    def train(self, plan: Plan, data: Any, on_step: Any, on_synced: Any, before: Callable[[], None], *_: Any) -> Reply:
        self.asked += 1
        before()
        return Reply(Status.OK, plan.server_round, 1, plan.client_id, plan.seed, 1, 3, 0.5, ONE)


def test_a_device_measures_along_no_other_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _Measures([_record(1, (client_seed(7, 1, 3), 3))])
    monkeypatch.setattr(device, "warm_engine", lambda config: engine)
    monkeypatch.setattr(device, "_train_data", lambda *_: None)

    assert device.train(CONFIG, PLAN, IDENTITY).status is Status.OK
    chosen = device.train(CONFIG, replace(PLAN, seed=1), IDENTITY)
    other = replace(CONFIG, run_seed=8)
    ground = device.train(other, replace(PLAN, seed=client_seed(8, 2, 3)), IDENTITY)

    assert engine.asked == 2  # a chosen seed is not even tried
    assert (chosen.status, chosen.projected_grads.size) == (Status.ERROR, 0)
    assert (ground.status, ground.projected_grads.size) == (Status.ERROR, 0)
    assert "another run-seed" in ground.message
