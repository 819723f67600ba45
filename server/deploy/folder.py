"""Create a deployment folder, and renew its certificates."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from secrets import token_bytes

from cryptography.hazmat.primitives.serialization import Encoding

from server.deploy.certificates import (
    Authority,
    load_authority,
    new_authority,
    private_pem,
    server_certificate,
    write_private,
)
from server.deploy.deployment import SETTINGS, Deployment, check_name
from server.deploy.devices import add_device
from server.deploy.files import write_device_files, write_example_run, write_server_files
from zo_common.binary.durable import write_durably
from zo_common.errors import ConfigError

_FOLDERS = ("keys", "flwr-home", "app", "runs", "devices", "state", "log", "systemd")


def init_folder(deployment: Deployment, devices: Sequence[str] = (), *, make_keys: bool = False) -> None:
    """Write a deployment folder with its own keys; if that fails, remove what was written.

    Args:
        devices: names of devices to write folders for.
        make_keys: as `add_device`.

    Raises:
        ConfigError: the folder exists and is not empty, or a device's name cannot be used.
    """
    root = deployment.root
    for name in devices:
        check_name(name, "device")
    if len(set(devices)) != len(devices):
        raise ConfigError(f"devices are named twice in {', '.join(devices)}: give every device a name of its own")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root} exists and is not empty: name a new folder, or change this one with renew and units")
    fresh = not root.exists()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        for name in _FOLDERS:
            (root / name).mkdir(mode=0o700)
        _write_authority(deployment, new_authority())
        _write_certificate(deployment)
        write_private(deployment.secret, token_bytes(32))
        write_server_files(deployment)
        write_example_run(deployment, len(devices))
        for name in devices:
            add_device(deployment, name, make_key=make_keys)
        # written last: without it, the folder is not a deployment
        write_durably(root / SETTINGS, deployment.settings_text().encode())
    except BaseException:
        _remove(root, itself=fresh)
        raise


def renew(deployment: Deployment, *, authority: bool) -> list[str]:
    """Make a new server certificate, and a new authority if asked for; return the next steps for the operator.

    Raises:
        ConfigError: the authority's key is not there or not its own.
    """
    todo = [
        "restart SuperLink and the proxy: stop start.sh and start it again; or: systemctl restart zo-asr-superlink "
        "zo-asr-proxy; and with nginx: nginx -s reload"
    ]
    if authority:
        _write_authority(deployment, new_authority())
        names = [device.name for device in deployment.devices().values() if not device.revoked]
        for name in names:
            write_device_files(deployment, deployment.device(name))
        todo.append("restart SuperExec, which read the old authority's certificate")
        for name in names:
            ca = deployment.device_folder_of(name) / "ca.crt"
            todo.append(f"carry {ca} to {name} and restart its SuperNode: until then it refuses this server")
    _write_certificate(deployment)
    return todo


def _write_authority(deployment: Deployment, made: Authority) -> None:
    write_private(deployment.authority_key, made.key_pem)
    write_durably(deployment.authority, made.certificate_pem)


def _write_certificate(deployment: Deployment) -> None:
    authority = load_authority(deployment.authority, deployment.authority_key)
    certificate, key = server_certificate(authority, deployment.hosts)
    write_private(deployment.key, private_pem(key))
    write_durably(deployment.certificate, certificate.public_bytes(Encoding.PEM))


def _remove(root: Path, *, itself: bool) -> None:
    if itself:
        shutil.rmtree(root, ignore_errors=True)
        return
    for entry in root.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
