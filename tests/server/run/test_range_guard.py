"""Scalars that would throw the weights off their lattice: refused by name, and the round goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from server.run.range_guard import MAX_DIRECTION_UNITS, first_out_of_range
from zo_common.aggregation.mean import ClientScalars
from zo_common.config.run import RunConfig
from zo_common.ledger.ledger import LedgerHeader, TensorEntry
from zo_common.wire.plan import decode_reply, encode_reply


def _header(grid: int) -> LedgerHeader:
    tensors = (TensorEntry("w", (3,), grid, 0), TensorEntry("x", (3,), grid + 4, 0))
    return LedgerHeader("00" * 32, 0, "m", "all", "unit", 1e-3, "two-sided", 0, "now", tensors)


def _client(client_id: int, *scalars: float) -> ClientScalars:
    return ClientScalars(client_id, client_id, 1, np.array([scalars], np.float32))


def test_the_limit_is_in_units_of_the_finest_tensor() -> None:
    limit = MAX_DIRECTION_UNITS * 2.0**-20  # coefficient that moves the finest tensor by just that many units

    within = first_out_of_range([_client(1, limit)], 1.0, "uniform", _header(-20))
    beyond = first_out_of_range([_client(1, limit * 1.001)], 1.0, "uniform", _header(-20))

    assert within is None
    assert beyond is not None


def test_the_worst_client_is_named_and_nobody_gives_none() -> None:
    clients = [_client(1, 0.1, 0.2), _client(2, 1e9, 0.1), _client(3, 1e6, 0.1)]

    worst = first_out_of_range(clients, 1e-3, "examples", _header(-24))

    assert worst is clients[1]
    assert first_out_of_range([], 1e-3, "examples", _header(-24)) is None


@pytest.mark.parametrize("server_model", [True, False])
def test_one_hostile_device_cannot_stop_a_run(
    settings: Any, federate: Any, grid_of: Any, observed: Any, ledger_of: Any, server_model: bool
) -> None:
    config: RunConfig = settings(server_model=server_model)
    grid = grid_of(config)

    def huge(server_round: int, payload: bytes) -> bytes:
        reply = decode_reply(payload)
        reply.projected_grads[:] = 9e5  # within max-scalar
        return encode_reply(reply)

    grid[1].after = huge

    federate(config, grid)

    assert [[c.client_id for c in r.contributions] for r in ledger_of(config).records] == [[0, 2]] * 3
    assert "client 1's scalars would leave the lattice" in observed.text
