"""Attack: one enrolled device stops every start, by asking for it or by claiming another's client id."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fake_grid import FakeGrid
from flwr.app import ConfigRecord, RecordDict

from server.devices.enrolment import Enrolment
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.ledger.ledger import Ledger

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]


def _says(patch: pytest.MonkeyPatch, grid: FakeGrid, partition: int, hello: dict[str, Any]) -> None:
    """Let a device introduce itself in these words."""
    honest = grid._ask

    def lie(device: Any, message: Any, server_round: int) -> Any:
        answer = honest(device, message, server_round)
        if device is grid[partition] and "hello" in answer.content.config_records["zo"]:
            answer.content = RecordDict({"zo": ConfigRecord({"hello": json.dumps(hello).encode()})})
        return answer

    patch.setattr(grid, "_ask", lie)


def _clients(ledger: Ledger) -> list[list[int]]:
    return [[c.client_id for c in record.contributions] for record in ledger.records]


STOP = {"client_id": 2, "error": "the data must be corrected", "stop": True}


def test_a_device_that_asks_for_a_stop_is_left_out_and_named(
    settings: Settings,
    federate: Federate,
    grid_of: Grids,
    ledger_of: Ledgers,
    observed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings(round_timeout=600.0)
    grid = grid_of(config)
    _says(monkeypatch, grid, 2, STOP)

    federate(config, grid, Enrolment())

    assert _clients(ledger_of(config)) == [[0, 1]] * 3
    assert "device 2: the data must be corrected" in observed.text


def test_on_the_operators_own_devices_it_stops(
    settings: Settings, federate: Federate, grid_of: Grids, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(round_timeout=600.0)
    grid = grid_of(config)
    _says(monkeypatch, grid, 2, STOP)

    with pytest.raises(ConfigError, match="the data must be corrected before training starts"):
        federate(config, grid)


@pytest.mark.parametrize("thief", [0, 2])
def test_a_device_that_claims_a_taken_id_is_left_out_and_named(
    settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers, observed: Any, thief: int
) -> None:
    config = settings(round_timeout=600.0)
    grid = grid_of(config)
    grid[thief].context.node_config["client-id"] = 1

    federate(config, grid, Enrolment(register=lambda: {0: 100, 1: 101, 2: 102}))

    assert _clients(ledger_of(config)) == [sorted({0, 1, 2} - {thief})] * 3
    assert f"node {100 + thief} claims client id 1, which is not enrolled with its key" in observed.text
