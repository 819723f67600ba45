"""The identity of this device among all, from its node config."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DeviceIdentity:
    """A device's id, its partition of `num_partitions`, or None where the recordings are its own.

    Attributes:
        simulated: whether it is a virtual device, or the only one, on the operator's own machine, so that its
            recordings are the operator's.
    """

    client_id: int
    partition_id: int | None = None
    num_partitions: int = 1
    simulated: bool = field(default=False, compare=False)


def identity_of(node_config: Mapping[str, Any], node_id: int) -> DeviceIdentity:
    """Return the device's identity; its id is the node config's `client-id`, else the partition, else from `node_id`.

    Client ids are in ledgers, in plans and in other devices' hands. Flower's node id never is: SuperLink takes messages
    for a node from everyone who is enrolled and knows its id.
    """
    client_id = int(node_config.get("client-id", node_config.get("partition-id", _public_id(node_id))))
    if "partition-id" not in node_config or "num-partitions" not in node_config or node_config.get("own-data"):
        return DeviceIdentity(client_id, simulated=bool(node_config.get("simulated", False)))
    simulated = "worker-address" not in node_config
    return DeviceIdentity(client_id, int(node_config["partition-id"]), int(node_config["num-partitions"]), simulated)


def _public_id(node_id: int) -> int:
    """Return a u64 from which the node id cannot be had, but by trying all of them: its BLAKE2b-64."""
    digest = hashlib.blake2b(str(node_id).encode(), digest_size=8, person=b"zo-asr/client-id")
    return int.from_bytes(digest.digest(), "little")


def known_identity(node_config: Mapping[str, Any], node_id: int) -> DeviceIdentity | None:
    """As `identity_of`; None where the node config does not tell."""
    with suppress(TypeError, ValueError):
        return identity_of(node_config, node_id)
    return None
