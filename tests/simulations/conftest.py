"""The tiny federation's fixtures, and scenarios without Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_grid import FakeGrid
from fixtures import *  # noqa: F403
from flwr.app import Context, RecordDict

from server.app import make_server_app
from server.devices.enrolment import Enrolment
from server.rounds.federation import Events
from simulations import demo, simulation
from zo_common.config.run import RunConfig


@pytest.fixture
def in_memory(grid_of: Callable[..., FakeGrid], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs scenarios on the in-memory grid instead of Flower's simulation engine."""

    def simulate(config: RunConfig, devices: int, events: Events | None, actors: int, **_: Any) -> None:
        make_server_app(config, events, Enrolment(own_devices=True))(
            grid_of(config, devices), Context(1, 1, {}, RecordDict(), {})
        )

    for module in (demo, simulation):
        monkeypatch.setattr(module, "run_federation", simulate)
