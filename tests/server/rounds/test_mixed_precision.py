"""Devices that hold frozen weights in different precisions share one ledger, with one checksum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_grid import Device, FakeGrid, Memory

from client.app import make_client_app
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig

PRECISIONS = ("float32", "bfloat16", "int8")


class _MixedGrid(FakeGrid):
    """Each device's own setting replaces the run's, as a worker's does."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config, [Memory() for _ in PRECISIONS])
        self._apps = {
            100 + place: make_client_app(replace(config, frozen_precision=precision))
            for place, precision in enumerate(PRECISIONS)
        }

    def _ask(self, device: Device, message: Any, server_round: int) -> Any:
        self.app = self._apps[device.context.node_id]
        return super()._ask(device, message, server_round)


def test_one_checksum(
    settings: Callable[..., RunConfig], federate: Callable[..., Federation], ledger_of: Callable[..., Any]
) -> None:
    pytest.importorskip("torchao")
    config = settings()
    grid = _MixedGrid(config)

    federation = federate(config, grid)

    records = ledger_of(config).records
    assert [[c.client_id for c in record.contributions] for record in records] == [[0, 1, 2]] * 3
    engines = [grid[place].engine for place in range(3)]
    assert tuple(engine.held_in for engine in engines) == PRECISIONS
    assert {engine.state.checksum() for engine in engines} == {records[1].checksum}
    assert records[-1].checksum == federation.checksum
    assert len({engine.fingerprint for engine in engines}) == 1
