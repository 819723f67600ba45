"""Which device a node config names."""

from __future__ import annotations

from typing import Any

import pytest

from client.device_identity import DeviceIdentity, identity_of


@pytest.mark.parametrize(
    ("node", "identity"),
    [
        ({}, DeviceIdentity(13773073425553841337)),
        ({"client-id": 4}, DeviceIdentity(4)),
        ({"partition-id": 2, "num-partitions": 5}, DeviceIdentity(2, 2, 5)),
        ({"partition-id": 2, "num-partitions": 5, "client-id": 4}, DeviceIdentity(4, 2, 5)),
        ({"partition-id": 2, "num-partitions": 5, "own-data": True}, DeviceIdentity(2)),
        ({"partition-id": 2}, DeviceIdentity(2)),
    ],
)
def test_id_and_partition(node: dict[str, Any], identity: DeviceIdentity) -> None:
    assert identity_of(node, 99) == identity
