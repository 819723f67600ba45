"""Registration of devices' keys at SuperLink, by Flower's public commands.

`flwr supernode list` has ids and states of nodes, but not their keys. So the ids that it lists before a registration
are written down with the device. If the answer is lost, the device's node is the one that has come since. A key that
was registered by hand is not adopted: nothing tells which of the nodes before it has.
"""

from __future__ import annotations

from server.deploy.deployment import CONNECTION, Deployment, Device
from server.deploy.flower import KEY_IN_USE, NODE_NOT_FOUND, FlowerError, flwr_json
from zo_common.binary.durable import write_durably
from zo_common.device_key import PUBLIC_NAME

_ENDED = "unregistered"  # a node that may no longer connect; SuperLink keeps it, and its key, for good


def register(deployment: Deployment, devices: dict[str, Device], device: Device) -> None:
    """Register a device's key unless SuperLink has its node; complete a registration that was cut off.

    Args:
        devices: all devices, from `deployment.change_devices()`, which this must be called inside.

    Raises:
        FlowerError: SuperLink is not running, refuses the key, or does not tell which node has it.
    """
    if not (device.node_id and _states(deployment).get(device.node_id, _ENDED) != _ENDED):
        node_id = _node_of_key(deployment, devices, device)
        if not node_id:
            raise FlowerError(
                f"SuperLink takes no key again once it was revoked: revoke {device.name} and enroll it with a new key",
                KEY_IN_USE,
            )
        device.node_id = node_id
    device.nodes_before = None


def unregister(deployment: Deployment, devices: dict[str, Device], device: Device) -> None:
    """End a device's node; afterwards SuperLink accepts the device's key neither from a node nor for a new one.

    A key that SuperLink does not have under a known id is registered first: the answer proves that no node has it, or
    that one has. Nobody is told of a node that is made so, and it ends at once.

    Args:
        devices: as for `register`.

    Raises:
        FlowerError: SuperLink is not running, or does not tell which node has the key. The device may still connect.
    """
    node_id = device.node_id
    if not (node_id and _end(deployment, node_id)):
        node_id = _node_of_key(deployment, devices, device)
        if node_id:
            _end(deployment, node_id)
    device.node_id, device.nodes_before = "", None
    for other in devices.values():
        if other.nodes_before is not None and node_id:
            other.nodes_before.append(node_id)  # no longer in this device's record, and none of the other's


def _states(deployment: Deployment) -> dict[str, str]:
    """Return the state of every node that SuperLink has ever had, by id."""
    nodes = flwr_json(deployment, "supernode", "list", CONNECTION).get("nodes", [])
    return {str(node["node-id"]): str(node["status"]) for node in nodes}


def _end(deployment: Deployment, node_id: str) -> bool:
    """End a node; return whether SuperLink has, or had, one of that id."""
    try:
        flwr_json(deployment, "supernode", "unregister", node_id, CONNECTION)
    except FlowerError as error:
        state = _states(deployment).get(node_id) if error.code == NODE_NOT_FOUND else "unknown"
        if state not in (None, _ENDED):
            raise
        return state is not None
    return True


def _node_of_key(deployment: Deployment, devices: dict[str, Device], device: Device) -> str:
    """Return the node that has the device's key, a new one if none has; empty: it had one, which has ended."""
    if device.nodes_before is None:
        device.nodes_before = sorted(_states(deployment))
        deployment.write_devices(devices)
    key = deployment.device_folder_of(device.name) / PUBLIC_NAME
    write_durably(key, device.public_key.encode() + b"\n")
    try:
        answer = flwr_json(deployment, "supernode", "register", str(key), CONNECTION, "--name", device.name)
    except FlowerError as error:
        if error.code != KEY_IN_USE:
            raise
        return _node_since(deployment, devices, device)
    return str(answer["node-id"])


def _node_since(deployment: Deployment, devices: dict[str, Device], device: Device) -> str:
    """Return the node that has come since the device's registration began; empty: it has ended.

    SuperLink has the key. Nodes of other devices cannot have it, but those that were registered by hand can.
    """
    states = _states(deployment)
    if states.get(device.node_id) == _ENDED:
        return ""
    others = {other.node_id for other in devices.values() if other.name != device.name}
    free = [node_id for node_id in states if node_id not in others]
    since = [node_id for node_id in free if node_id not in (device.nodes_before or [])]
    if not since:  # the key was there before: this registration has made no node, and never will
        device.nodes_before = None
        deployment.write_devices(devices)
    active = [node_id for node_id in since or free if states[node_id] != _ENDED]
    if active and len(since) != 1:
        raise FlowerError(
            f"SuperLink has the key of device {device.name!r}, but {len(since)} nodes have come since its registration "
            f"began, expected 1; it may be {', '.join(active)}: find it with FLWR_HOME={deployment.flower_home} flwr "
            f"supernode list {CONNECTION}, and write its id as node-id of {device.name} into {deployment.devices_file}",
            KEY_IN_USE,
        )
    return active[0] if active else ""
