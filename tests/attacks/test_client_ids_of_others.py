"""Attack: a device takes the client id of one that is away, or another one to come back from an exclusion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid
from stand_in_flower import Flower, deployment, flower

from server.deploy.app import enrolment_of
from server.deploy.deployment import Deployment
from server.deploy.devices import register_device, revoke
from server.devices.enrolment import Enrolment
from server.devices.roster import Roster
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.ledger.ledger import Ledger

__all__ = ["deployment", "flower"]  # fixtures
Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]
ENROLLED = Enrolment(register=lambda: {0: 100, 1: 101, 2: 102})


def _clients(ledger: Ledger) -> list[list[int]]:
    return [[c.client_id for c in record.contributions] for record in ledger.records]


def test_an_id_is_not_taken_over_while_its_owner_is_away(
    settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers, observed: Any
) -> None:
    config = settings(num_server_rounds=5, round_timeout=600.0)
    grid = grid_of(config)
    grid[2].context.node_config["client-id"] = 1

    def leave(server_round: int) -> None:
        grid[1].online = server_round != 2

    grid[0].before = leave

    federate(config, grid, ENROLLED)

    assert _clients(ledger_of(config)) == [[0, 1], [0], [0], [0, 1], [0, 1]]
    assert "node 102 claims client id 1, which is not enrolled with its key" in observed.text


def test_an_excluded_device_does_not_come_back_under_another_id(
    settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers
) -> None:
    config = settings(round_timeout=600.0)
    federate(config, grid_of(config), ENROLLED)
    path = Path(config.output) / "devices.json"
    told = json.loads(path.read_text())
    told["devices"][2]["standing"] = "excluded"
    path.write_text(json.dumps(told))
    grid = grid_of(config)
    grid[2].context.node_config["client-id"] = 7

    federate(replace(config, resume=True, num_server_rounds=5), grid, ENROLLED)

    assert _clients(ledger_of(config))[3:] == [[0, 1]] * 2


def test_a_device_that_was_enrolled_with_a_new_key_replaces_its_old_node(settings: Settings, grid_of: Grids) -> None:
    config, now = settings(round_timeout=600.0), {0: 100, 1: 101}
    grid = grid_of(config)
    grid[2].context.node_config["client-id"] = 1
    roster = Roster(grid, config, Enrolment(register=lambda: now))
    roster.start()
    assert sorted(roster.members) == [100, 101]
    now[1] = 102

    roster.refresh(1)

    assert sorted(roster.members) == [100, 102]


class TestTheRegister:
    """What a deployment's ServerApp reads of its devices."""

    def _enrolment(self, deployment: Deployment) -> Enrolment:
        return enrolment_of(deployment.runs / "example")

    def _nodes(self, deployment: Deployment) -> Mapping[int, int] | None:
        return self._enrolment(deployment).nodes(None)

    def test_has_the_nodes_of_enrolled_devices_alone(self, deployment: Deployment, flower: Flower) -> None:
        assert self._nodes(deployment) == {}
        flower.answer({"supernode": {"success": True, "node-id": 2**63 + 5}})
        register_device(deployment, "anna")
        assert self._nodes(deployment) == {0: 2**63 + 5}
        revoke(deployment, "anna")
        assert self._nodes(deployment) == {}

    def test_that_is_damaged_ends_no_run(self, deployment: Deployment) -> None:
        (deployment.root / "devices.toml").write_text("no table")
        with pytest.raises(ConfigError, match=r"devices\.toml"):
            self._nodes(deployment)
        assert self._enrolment(deployment).nodes({0: 7}) == {0: 7}

    def test_is_none_elsewhere(self, tmp_path: Path) -> None:
        assert enrolment_of(tmp_path / "runs" / "example") == Enrolment()
