"""Attack: a device is busy, or catches up, in every round, and each round waits for it to its time-out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid
from toy_fleet import TOY, toy_grids

from server.devices.device_status import DeviceStatuses
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.secure_sum.messages import RevealRequest, Survivors
from zo_common.wire.plan import Status, decode_reply, encode_reply

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]


def test_a_device_that_is_always_busy_is_asked_less_and_less(
    settings: Settings, federate: Callable[..., Federation], grid_of: Grids
) -> None:
    config = settings(num_server_rounds=14, round_timeout=600.0)
    grid = grid_of(config)

    def busy(server_round: int, payload: bytes) -> bytes:
        reply = decode_reply(payload)
        return encode_reply(replace(reply, status=Status.BUSY, projected_grads=reply.projected_grads[:0]))

    grid[2].after = busy

    federate(config, grid)

    assert [r for r in grid[2].asked if r] == [1, 2, 3, 5, 8, 13]


@pytest.mark.parametrize("reason", ["client-busy", "catching-up"])
def test_at_most_eight_rounds_pass_without_it_and_an_answer_forgives(reason: str) -> None:
    statuses, asked = DeviceStatuses(), []
    for server_round in range(1, 60):
        if statuses.may_be_asked(1, server_round):
            asked.append(server_round)
            statuses.failed(1, server_round, reason, "a word")
    assert asked == [1, 2, 3, 5, 8, 13, 22, 31, 40, 49, 58]

    statuses.answered(1, 60)

    statuses.failed(1, 61, reason, "a word")
    assert statuses.may_be_asked(1, 62)


@pytest.mark.parametrize("step", [Survivors, RevealRequest])
def test_a_device_that_masks_and_then_falls_silent_is_asked_less_and_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any, step: Any
) -> None:
    """Its vector counts, and each of the last steps waits for it."""
    secure: dict[str, Any] = {"directions": "shared", "secure_aggregation": True, "num_server_rounds": 9}
    config = RunConfig(**{**TOY, **secure, "round_timeout": 300.0, "output": str(tmp_path / "run")})
    grid = toy_grids(monkeypatch, 5)(config)
    honest, trained = grid._ask, []

    def ask(device: Any, message: Any, server_round: int) -> Any:
        data = message.content.config_records["zo"].get("secure", b"")
        if device is grid[4] and message.metadata.message_type == "train":
            trained.append(server_round)
        if device is grid[4] and message.metadata.message_type == "query.secure" and data[3] == step.KIND:
            raise ConnectionError("silent")
        return honest(device, message, server_round)

    monkeypatch.setattr(grid, "_ask", ask)

    Federation(config, grid, observed.events).run()

    assert sorted(set(trained)) == [1, 2, 3, 5, 8]
    assert [r.answered for r in observed.reports] == [5, 5, 5, 4, 5, 4, 4, 5, 4]
