"""A run with a guarantee: noise settled, every round charged before it is asked, stopped before it costs too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid

from server.devices.roster import Member
from server.guards.privacy_guard import answered_rounds, settle_noise
from server.rounds.federation import LEDGER_NAME, Federation
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, LedgerAltered, LedgerError, RunStopped
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model
from zo_common.privacy.accountant import Release, epsilon_spent, noise_for
from zo_common.privacy.charges import LOG_NAME, PrivacyLog
from zo_common.wire.plan import Reply, decode_reply

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]
EXAMPLE = {"privacy": "example", "target_delta": 1e-3, "clip_norm": 5.0, "learning_rate": 1e-4}
DEVICE = {
    "privacy": "device",
    "target_delta": 1e-2,
    "clip_norm": 5.0,
    "learning_rate": 1e-4,
    "directions": "shared",
    "weighting": "uniform",
    "min_replies": 3,
}


class Stopped(Exception):
    """Stands for the end of the server's process."""


def _log(config: RunConfig) -> PrivacyLog:
    return PrivacyLog.read(Path(config.output) / LOG_NAME)


def _replies(grid: FakeGrid) -> list[Reply]:
    """Fills up with what the devices send."""
    seen: list[Reply] = []

    def watch(server_round: int, payload: bytes) -> bytes:
        seen.append(decode_reply(payload))
        return payload

    for device in grid.devices.values():
        device.after = watch
    return seen


def _killed(config: RunConfig, grid: FakeGrid, at: int) -> RunConfig:
    """The run ended while round `at` was being sent; its settings to go on."""
    sent: list[int] = []

    def stop(server_round: int) -> None:
        sent.append(server_round)
        if sent.count(at) == 2:  # one device has trained already
            raise Stopped

    grid.on_push = stop
    with pytest.raises(Stopped):
        Federation(config, grid).run()
    return replace(config, resume=True)


def test_example_level(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
) -> None:
    config = settings(**EXAMPLE)
    grid = grid_of(config)
    seen = _replies(grid)

    federation = federate(config, grid)

    # three utterances a device, two of them in a sample on average, two steps in three rounds
    noise = noise_for(8.0, 1e-3, 6, 2, 3)
    ledger, log = ledger_of(config), _log(config)
    assert ledger.header.settings["noise-multiplier"] == noise
    assert ledger.header.settings["privacy"] == "example"
    release = Release(noise, 2, 3)
    spent = [epsilon_spent({release: 2 * n}, 1e-3) for n in (1, 2, 3)]
    assert [c.epsilon for c in log.charges] == spent == [r.epsilon_spent for r in observed.reports]
    assert 7.9 < spent[-1] <= 8.0
    assert log.spent == {client: {release: 6} for client in range(3)}
    assert [r.loss for r in observed.reports] == [None] * 3
    assert {(r.loss, r.message) for r in seen} == {(0.0, "")}
    assert "example-level" in observed.text
    loaded = load_model(config.model).model
    assert replay(restore_state(loaded, ledger.header, threads=1), ledger) == federation.checksum


def test_the_same_seed_gives_another_run(
    settings: Settings, federate: Federate, ledger_of: Ledgers, tmp_path: Path
) -> None:
    first = settings(**EXAMPLE, num_server_rounds=1)
    second = replace(first, output=str(tmp_path / "second"))

    federate(first)
    federate(second)

    one, other = (ledger_of(c).records[0].contributions for c in (first, second))
    assert [c.seed for c in one] == [c.seed for c in other]
    assert all((a.coefficients != b.coefficients).all() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("noise_by", ["devices", "server"])
def test_device_level(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers, noise_by: str
) -> None:
    config = settings(**DEVICE, noise_by=noise_by)
    grid = grid_of(config)
    seen = _replies(grid)

    federation = federate(config, grid)

    ledger, log = ledger_of(config), _log(config)
    release = Release(noise_for(8.0, 1e-2, 3))
    assert log.spent == {client: {release: 3} for client in range(3)}
    assert observed.reports[-1].epsilon_spent == epsilon_spent({release: 3}, 1e-2) <= 8.0
    norms = [float(np.linalg.norm(r.projected_grads.astype(np.float64))) for r in seen]
    if noise_by == "server":
        assert max(norms) <= 5.0
        # what the ledger holds is not what the devices sent
        sent = np.mean([r.projected_grads for r in seen if r.server_round == 1], axis=0)
        coefficients = ledger.records[0].contributions[0].coefficients
        rate = np.float32(config.learning_rate_at(1))
        assert (coefficients != (-rate * sent / 2).astype(np.float32)).all()
    loaded = load_model(config.model).model
    assert replay(restore_state(loaded, ledger.header, threads=1), ledger) == federation.checksum


def test_the_run_stops_before_it_exceeds_the_target(settings: Settings, federate: Federate, ledger_of: Ledgers) -> None:
    release = Release(2.0, 2, 3)
    two, three = (epsilon_spent({release: 2 * n}, 1e-3) for n in (2, 3))
    config = settings(**EXAMPLE, noise_multiplier=2.0, target_epsilon=(two + three) / 2, num_server_rounds=5)

    with pytest.raises(RunStopped, match="privacy budget is spent: round 3 would take") as error:
        federate(config)

    assert "\n" not in str(error.value)
    assert ledger_of(config).last_round == 2
    assert [c.epsilon for c in _log(config).charges] == [
        epsilon_spent({release: 2}, 1e-3),
        two,
    ]
    with pytest.raises(RunStopped, match="round 3 would take"):
        federate(replace(config, resume=True))
    assert len(_log(config).charges) == 2


def test_a_killed_round_stays_charged(
    settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers, observed: Any
) -> None:
    config = settings(**EXAMPLE, noise_multiplier=4.0)
    config = _killed(config, grid_of(config), 2)
    assert [c.server_round for c in _log(config).charges] == [1, 2]
    assert ledger_of(config).last_round == 1

    federate(config)

    log = _log(config)
    assert [c.server_round for c in log.charges] == [1, 2, 2, 3]
    assert log.spent[0] == {Release(4.0, 2, 3): 8}
    assert log.charges[-1].epsilon == epsilon_spent({Release(4.0, 2, 3): 8}, 1e-3)
    assert ledger_of(config).last_round == 3


def test_a_killed_round_counts_towards_the_target(
    settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers
) -> None:
    """Noise for three rounds is for three: one of them was asked for twice."""
    config = settings(**EXAMPLE)
    config = _killed(config, grid_of(config), 2)

    with pytest.raises(RunStopped, match="round 3 would take"):
        federate(config)

    assert ledger_of(config).last_round == 2


class TestResume:
    @pytest.fixture
    def begun(self, settings: Settings, federate: Federate) -> RunConfig:
        config = settings(**EXAMPLE, num_server_rounds=1, target_epsilon=8.0)
        federate(config)
        return replace(config, resume=True, num_server_rounds=2)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"privacy": "none"}, "privacy is 'example' in the ledger, 'none' was asked"),
            ({"target_epsilon": 20.0}, "target-epsilon is 8.0 in the ledger, 20.0 was asked"),
            ({"target_delta": 1e-2}, "target-delta is 0.001 in the ledger"),
            ({"clip_norm": 1.0}, "clip-norm is 5.0 in the ledger"),
            ({"noise_multiplier": 0.5}, "0.5 was asked"),
        ],
    )
    def test_with_another_promise(
        self, begun: RunConfig, federate: Federate, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            federate(replace(begun, **changes))

    def test_without_the_log(self, begun: RunConfig, federate: Federate) -> None:
        (Path(begun.output) / LOG_NAME).unlink()

        with pytest.raises(LedgerError, match="the privacy that the run has spent is unknown"):
            federate(begun)

    def test_with_a_charge_cut_off(self, begun: RunConfig, federate: Federate) -> None:
        (Path(begun.output) / LOG_NAME).write_bytes(b"")

        with pytest.raises(LedgerAltered, match="round 1 of the ledger holds scalars that were not charged"):
            federate(begun)

    def test_a_ledger_without_privacy_does_not_get_any(self, settings: Settings, federate: Federate) -> None:
        config = settings(num_server_rounds=1)
        federate(config)

        with pytest.raises(ConfigError, match="privacy is 'none' in the ledger, 'example' was asked"):
            federate(replace(config, resume=True, **EXAMPLE))

    def test_a_log_without_its_ledger(self, begun: RunConfig, federate: Federate) -> None:
        (Path(begun.output) / LEDGER_NAME).unlink()

        with pytest.raises(ConfigError, match="exists without its ledger"):
            federate(begun)


def _members(*examples: int) -> list[Member]:
    return [Member(100 + i, i, count, {}) for i, count in enumerate(examples)]


class TestNoise:
    def test_the_device_with_the_fewest_utterances_decides(self, tmp_path: Path) -> None:
        config = RunConfig(privacy="example", num_server_rounds=12, batch_size=16)

        found = settle_noise(config, _members(58, 400, 90), tmp_path / "none")

        assert found.noise_multiplier == noise_for(8.0, 1e-6, 12, 16, 58)
        assert settle_noise(found, _members(2, 9), tmp_path / "none") == found

    def test_delta_too_large_for_so_many(self, tmp_path: Path) -> None:
        config = RunConfig(privacy="example", target_delta=1e-2)

        with pytest.raises(ConfigError, match="with 120 utterances"):
            settle_noise(config, _members(60, 60), tmp_path / "none")


def test_the_log_says_when_each_round_began(settings: Settings, federate: Federate, ledger_of: Ledgers) -> None:
    config = settings(**EXAMPLE, num_server_rounds=1)

    federation = federate(config)

    rows = [json.loads(line) for line in (Path(config.output) / LOG_NAME).read_text().splitlines()]
    assert [row["ledger"] for row in rows] == [federation.ledger.chains[0].hex()]
    assert rows[0]["devices"] == {"3": [0, 1, 2]}


@pytest.mark.parametrize("setup", [EXAMPLE, DEVICE], ids=["example", "device"])
def test_a_guards_record_of_earlier_scalars_costs_nothing_more(
    settings: Settings, federate: Federate, ledger_of: Ledgers, monkeypatch: pytest.MonkeyPatch, setup: dict[str, Any]
) -> None:
    """The last round is taken back by a record that no device was charged for; the log still is this ledger's."""
    losses = iter([1.0, 0.8, 0.801, 0.9])
    monkeypatch.setattr("server.guards.held_out_guard.utterance_losses", lambda *_: next(losses) + np.zeros(3))
    monkeypatch.setattr("server.guards.held_out_guard.rise", lambda found, best: (0.0, 1.0))
    config = settings(**setup, num_server_rounds=2, guard_split="test", guard_every=1)
    federate(config)
    ledger = ledger_of(config)
    assert ledger.records[2].checksum == ledger.records[0].checksum

    federate(replace(config, resume=True))

    answered = answered_rounds(ledger_of(config))
    assert ledger_of(config).last_round == 3 and sorted(answered) == [1, 2]
    assert answered == {1: [], 2: []} if setup is DEVICE else {1: [0, 1, 2], 2: [0, 1, 2]}
    assert [charge.server_round for charge in _log(config).charges] == [1, 2]
