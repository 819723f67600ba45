"""Devices of a deployment: the folder for each, its public key, and its registration at the SuperLink."""

from __future__ import annotations

from server.deploy.deployment import Deployment, Device, check_name
from server.deploy.files import write_device_files
from server.deploy.registration import register, unregister
from zo_common.binary.durable import PRIVATE, write_durably
from zo_common.device_key import KEY_NAME, PUBLIC_NAME, new_device_key, read_public_key
from zo_common.errors import ConfigError

_DEVICES_AT_MOST = 10_000  # their ports on one machine, from device-port on, stay below 65536


def add_device(deployment: Deployment, name: str, public_key: str = "", *, make_key: bool = False) -> Device:
    """Give a device a number and write its folder; its key is made on the device and brought later.

    A revoked device's name may be used again: it keeps its number and gets another key.

    Args:
        public_key: the line or file of the public key that was made on the device; empty: it has none yet.
        make_key: make the key pair here, for machines that one person has; whoever reads the server's disk then has it.

    Raises:
        ConfigError: the name is taken or cannot be used, or the key is not usable or another device's.
    """
    check_name(name, "device")
    public = read_public_key(public_key) if public_key else b""
    with deployment.change_devices() as devices:
        before = devices.get(name)
        if before and not before.revoked and before.public_key:
            raise ConfigError(f"device {name!r} is enrolled already: revoke it first, or take another name")
        for other in devices.values():
            if public and other.name != name and other.public_key == public.decode():
                raise ConfigError(f"{public_key} is the key of device {other.name!r}: make one for each device")
        number = before.client_id if before else max((d.client_id for d in devices.values()), default=-1) + 1
        if number >= _DEVICES_AT_MOST or deployment.device_port + number > 65535:
            raise ConfigError(f"there are {number} devices already: lower device-port, or start another deployment")
        folder = deployment.device_folder_of(name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in (KEY_NAME, PUBLIC_NAME):
            (folder / left).unlink(missing_ok=True)
        if make_key and not public:
            private, public = new_device_key()
            write_durably(folder / KEY_NAME, private, PRIVATE)
        if public:
            write_durably(folder / PUBLIC_NAME, public + b"\n")
        devices[name] = Device(name, number, public.decode())
        write_device_files(deployment, devices[name])
        return devices[name]


def register_device(deployment: Deployment, name: str) -> Device:
    """Register a device's key at the running SuperLink, unless it is registered already.

    Raises:
        ConfigError: no such device, a revoked one, or one without a key.
        FlowerError: SuperLink is not running or refuses the key, or does not tell which node has it.
    """
    with deployment.change_devices() as devices:
        device = devices[name] = deployment.device(name)
        if device.revoked:
            raise ConfigError(f"device {name!r} is revoked: enroll it again to give it a new key")
        if not device.public_key:
            raise ConfigError(without_key(name))
        register(deployment, devices, device)
        return device


def enroll(deployment: Deployment, name: str, public_key: str = "", *, make_key: bool = False) -> Device:
    """Add a device if it does not exist yet, and register it if it has a key; may be repeated if that failed."""
    known = deployment.devices().get(check_name(name, "device"))
    brings_other = public_key and known and read_public_key(public_key).decode() != known.public_key
    first_key = make_key and known and not known.public_key
    if known is None or known.revoked or brings_other or first_key:
        known = add_device(deployment, name, public_key, make_key=make_key)
    return register_device(deployment, name) if known.public_key else known


def without_key(name: str) -> str:
    """Return what is to be done for a device whose key is not known yet."""
    return (
        f"device {name!r} has no key yet: carry its folder to it, run zo-asr worker key there, and enroll the line "
        "that it prints with --public-key"
    )


def revoke(deployment: Deployment, name: str) -> Device:
    """Revoke a device; its SuperNode ends at its next request. The server's copy of its private key is deleted.

    Raises:
        ConfigError: no such device, or it is revoked already.
        FlowerError: SuperLink is not running, or does not tell which node has the device's key.
    """
    with deployment.change_devices() as devices:
        device = devices[name] = deployment.device(name)
        if device.revoked:
            raise ConfigError(f"device {name!r} is revoked already")
        if device.public_key:
            unregister(deployment, devices, device)
        device.revoked = True
        (deployment.device_folder_of(name) / KEY_NAME).unlink(missing_ok=True)
        return device
