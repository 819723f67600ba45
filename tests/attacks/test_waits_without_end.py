"""Attack: a device is busy, or catches up, in every round, and each round waits for it to its time-out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from fake_grid import FakeGrid

from server.devices.device_status import DeviceStatuses
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
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
