"""Devices of a deployment: key pairs, what is carried to each, registration at the SuperLink."""

from __future__ import annotations

from pathlib import Path

from server.certificates import new_device_key, read_public_key, write_private
from server.deploy_flower import flwr_json
from server.deployment import CONNECTION, Deployment, Device, check_name
from server.units import write_device_files
from zo_common.durable import write_durably
from zo_common.errors import ConfigError

_DEVICES_AT_MOST = 10_000  # their ports on one machine, from device-port on, stay below 65536


def add_device(deployment: Deployment, name: str, public_key: Path | None = None) -> Device:
    """Give a device a number and write its folder, with a new private key where it brings no public key of its own.

    A revoked device's name may be used again: it keeps its number and gets a new key.

    Raises:
        ConfigError: the name is taken or cannot be used, or the key is not usable or another device's.
    """
    check_name(name, "device")
    public = read_public_key(public_key) if public_key else None
    with deployment.change_devices() as devices:
        before = devices.get(name)
        if before and not before.revoked:
            raise ConfigError(f"device {name!r} is enrolled already: revoke it first, or take another name")
        for other in devices.values():
            if public and other.public_key == public.decode():
                raise ConfigError(f"{public_key} is the key of device {other.name!r}: make one for each device")
        number = before.client_id if before else max((d.client_id for d in devices.values()), default=-1) + 1
        if number >= _DEVICES_AT_MOST or deployment.device_port + number > 65535:
            raise ConfigError(f"there are {number} devices already: lower device-port, or start another deployment")
        folder = deployment.device_folder_of(name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "node.key").unlink(missing_ok=True)
        if public is None:
            private, public = new_device_key()
            write_private(folder / "node.key", private)
        write_durably(folder / "node.key.pub", public + b"\n")
        devices[name] = Device(name, number, public.decode())
        write_device_files(deployment, devices[name])
        return devices[name]


def register_device(deployment: Deployment, name: str) -> Device:
    """Tell the running SuperLink a device's key.

    Raises:
        ConfigError: no such device, or a revoked one.
        FlowerError: SuperLink is not running or refuses the key.
    """
    with deployment.change_devices() as devices:
        device = deployment.device(name)
        if device.revoked:
            raise ConfigError(f"device {name!r} is revoked: enroll it again to give it a new key")
        if not device.node_id:
            key = deployment.device_folder_of(name) / "node.key.pub"
            write_durably(key, device.public_key.encode() + b"\n")
            answer = flwr_json(deployment, "supernode", "register", str(key), CONNECTION, "--name", name)
            device.node_id = str(answer["node-id"])
        devices[name] = device
        return device


def enroll(deployment: Deployment, name: str, public_key: Path | None = None) -> Device:
    """Add a device if it is not there yet, and register it."""
    known = deployment.devices().get(check_name(name, "device"))
    if known is None or known.revoked or public_key:
        add_device(deployment, name, public_key)
    return register_device(deployment, name)


def revoke(deployment: Deployment, name: str) -> Device:
    """Let a device in no more; its SuperNode ends at its next request. Its private key here is removed.

    Raises:
        ConfigError: no such device, or it is revoked already.
        FlowerError: SuperLink is not running.
    """
    with deployment.change_devices() as devices:
        device = deployment.device(name)
        if device.revoked:
            raise ConfigError(f"device {name!r} is revoked already")
        if device.node_id:
            flwr_json(deployment, "supernode", "unregister", device.node_id, CONNECTION)
        device.revoked, device.node_id = True, ""
        devices[name] = device
        (deployment.device_folder_of(name) / "node.key").unlink(missing_ok=True)
        return device
