"""A device's own account: no server makes it spend more than its owner allows, in however many runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client.device import requests as device
from client.device.privacy_account import PrivacyAccount
from client.device_identity import DeviceIdentity
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed
from zo_common.errors import ConfigError
from zo_common.privacy.accountant import Release, epsilon_spent
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan import Plan, Reply, Status

CONFIG = RunConfig()
PLAN = Plan(
    1, client_seed(0, 1, 3), 3, 0, 0, 2, 2, 1e-3, CONFIG.estimator_config, (), Mechanism("example", 5.0, 2.0, 8)
)
RELEASE = Release(2.0, 2, 10)
AFTER = [epsilon_spent({RELEASE: 2 * n}, 1e-6) for n in range(4)]


@pytest.fixture
def account(tmp_path: Path) -> Callable[[], PrivacyAccount]:
    """The account as each process opens it; two plans fit."""
    return lambda: PrivacyAccount(tmp_path / "privacy.account", (AFTER[2] + AFTER[3]) / 2)


def test_answers_add_up_over_processes_until_no_more_fit(account: Callable[[], PrivacyAccount]) -> None:
    for n in (1, 2):
        account().check(PLAN, 10)
        account().charge(PLAN, 10)
        assert account().epsilon == AFTER[n]
    with pytest.raises(ConfigError, match=f"round 1 would take it from {AFTER[2]:.3f} to {AFTER[3]:.3f}") as error:
        account().check(PLAN, 10)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError):
        account().charge(PLAN, 10)
    assert account().epsilon == AFTER[2]


def test_what_counts_is_the_device_s_own_number_of_utterances(account: Callable[[], PrivacyAccount]) -> None:
    account().charge(PLAN, 10)
    with pytest.raises(ConfigError, match="would take it from"):
        account().charge(PLAN, 2)  # all of them in every step


@pytest.mark.parametrize("privacy", [None, Mechanism("device", 5.0, 0.0, 1)])
def test_without_noise_of_its_own_nothing_is_answered(account: Callable[[], PrivacyAccount], privacy: Any) -> None:
    with pytest.raises(ConfigError, match="scalars without noise"):
        account().check(replace(PLAN, privacy=privacy), 10)


def test_a_damaged_account_answers_nothing(account: Callable[[], PrivacyAccount], tmp_path: Path) -> None:
    account().charge(PLAN, 10)
    path = tmp_path / "privacy.account"
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="the amount spent is unknown"):
        account().check(PLAN, 10)


@pytest.mark.parametrize("limits", [(0.0, 1e-6), (float("inf"), 1e-6), (float("nan"), 1e-6), (8.0, 0.0), (8.0, 1.0)])
def test_limits_that_are_none(tmp_path: Path, limits: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="max-epsilon is"):
        PrivacyAccount(tmp_path / "a", *limits)


def test_a_device_charges_what_leaves_and_refuses_before_it_trains(
    account: Callable[[], PrivacyAccount], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine:
        applied: tuple[Any, ...] = ()
        status, trained = Status.BEHIND, 0
        state = SimpleNamespace(num_elements=64)

        def train(
            self, plan: Plan, data: Any, on_step: Any, on_synced: Any, before: Callable[[], None], *_: Any
        ) -> Reply:
            if self.status is Status.OK:
                before()
            self.trained += 1
            return Reply(self.status, 1, 0, 3, plan.seed, 1, 10, 0.0, np.ones((2, 8), np.float32))

    engine = Engine()
    monkeypatch.setattr(device, "warm_engine", lambda config: engine)
    monkeypatch.setattr(device, "_train_data", lambda *_: range(10))

    def train(plan: Plan = PLAN) -> Reply:
        return device.train(CONFIG, plan, DeviceIdentity(3), account=account())

    assert train().status is Status.BEHIND and account().epsilon == 0  # nothing was measured
    engine.status = Status.OK
    assert [train().status for _ in range(3)] == [Status.OK, Status.OK, Status.ERROR]
    assert engine.trained == 3 and account().epsilon == AFTER[2]
    assert "owner limits" in device.evaluate(CONFIG, PLAN, DeviceIdentity(3), account=account()).message
    assert "owner limits" in device.check_held_out(CONFIG, PLAN, DeviceIdentity(3), account=account()).message
