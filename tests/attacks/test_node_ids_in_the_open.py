"""Attack: a device learns another's node id, by which SuperLink takes messages for it from any enrolled one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid

from client.device_identity import identity_of
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.ledger.file import LEDGER_NAME, read_ledger

NODES = (0x1D0C0FFEE0DDF00D, 0x2BADCAFE5EED1234)


def test_a_client_id_is_no_node_id() -> None:
    found = [identity_of({}, node).client_id for node in NODES]

    assert not set(found) & set(NODES) and len(set(found)) == 2
    assert [identity_of({}, node).client_id for node in NODES] == found  # the same after a restart
    assert all(0 <= client < 1 << 64 for client in found)


def test_no_node_id_is_in_a_ledger_or_in_what_devices_get(
    settings: Callable[..., RunConfig],
    federate: Callable[..., Federation],
    grid_of: Callable[..., FakeGrid],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings(round_timeout=600.0)
    grid = grid_of(config)
    seen = bytearray()
    for old, node in zip((100, 101), NODES, strict=True):
        device = grid.devices.pop(old)
        device.context.node_id = node
        device.context.node_config.update({"own-data": True, "data": f"{config.data}/train"})
        device.context.node_config.pop("partition-id")
        grid.devices[node] = device
    honest = grid._ask

    def watch(device: Any, message: Any, server_round: int) -> Any:
        for values in message.content.config_records["zo"].values():
            seen.extend(values if isinstance(values, bytes) else str(values).encode())
        return honest(device, message, server_round)

    monkeypatch.setattr(grid, "_ask", watch)

    federate(config, grid)

    ledger = read_ledger(Path(config.output) / LEDGER_NAME)
    clients = {c.client_id for record in ledger.records for c in record.contributions}
    assert clients == {2, *(identity_of({}, node).client_id for node in NODES)}
    for written in (bytes(seen), (Path(config.output) / LEDGER_NAME).read_bytes()):
        assert not any(form in written for node in NODES for form in (node.to_bytes(8, "little"), str(node).encode()))
