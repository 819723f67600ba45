"""A deployment folder: where its files are, the commands of its processes, and the devices it knows."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ConfigDict

from zo_common.binary.durable import write_durably
from zo_common.checked import STRICT, Count, read_values
from zo_common.errors import ConfigError
from zo_common.secure_sum.node_keys import PEERS_NAME, peer_line

SETTINGS = "deployment.toml"
CONNECTION = "deployment"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_PATH = re.compile(r"[A-Za-z0-9/._+@~-]+")
FLOWER_SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def check_name(name: str, what: str) -> str:
    """Return a name that is safe as a folder, a systemd unit and a word in a shell script.

    Raises:
        ConfigError: other characters than letters, digits, - and _, or more than 32.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r} is no name: take at most 32 letters, digits, '-' and '_', a letter or digit first"
        )
    return name


def check_host(host: str) -> str:
    """Return a host that is a DNS name or an IP address.

    Raises:
        ConfigError: anything else.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
            raise ConfigError(
                f"host {host!r} is neither a DNS name nor an IP address: give one devices reach"
            ) from None
    return host


def check_path(path: Path, what: str) -> Path:
    """Return an absolute path that scripts, units and configuration files can hold without quotes.

    Raises:
        ConfigError: it holds a space or another character that has a meaning in one of these files.
    """
    if not _PATH.fullmatch(str(path)):
        raise ConfigError(f"{what} {str(path)!r} holds characters other than letters, digits and /._+@~-: move it")
    return path


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError:
        raise ConfigError(f"{path} cannot be read: check the folder and the name") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML ({error}): correct it by hand") from None


@dataclass
class Device:
    """A device as the server knows it.

    Attributes:
        public_key: empty until the device has made one and its operator has brought it.
        node_id: Flower's, empty until it is registered.
        nodes_before: ids that SuperLink listed before a registration that has not been completed yet; None: there is
            none. While it is set, SuperLink may have a node of this device whose id is not in `node_id`.
    """

    __pydantic_config__ = ConfigDict(**STRICT, alias_generator=lambda name: name.replace("_", "-"))
    name: str
    client_id: Count
    public_key: str
    node_id: str = ""
    revoked: bool = False
    nodes_before: list[str] | None = None

    @property
    def waits(self) -> bool:
        """Whether its registration is still to be made or completed."""
        return not self.revoked and (not self.node_id or self.nodes_before is not None)

    def to_mapping(self) -> dict[str, Any]:
        """Return the device's table for devices.toml, which has no null."""
        values = {f.name.replace("_", "-"): getattr(self, f.name) for f in fields(self)}
        del values["name"]
        return {key: value for key, value in values.items() if value is not None}


def _device_of(path: Path, name: str, table: Any) -> Device:
    """Read a device from its table, which may have been edited by hand."""
    check_name(name, "device")
    if not isinstance(table, dict):
        raise ConfigError(
            f"{path}: device {name!r} is {table!r}, expected a table [devices.{name}]: correct it by hand"
        )
    try:
        return read_values(Device, table | {"name": name})
    except ValueError as error:
        raise ConfigError(f"{path}: device {name!r}: {error}: correct it by hand") from None


@dataclass(frozen=True)
class Deployment:
    """A deployment folder `root` and the settings in its `deployment.toml`.

    Ports: devices connect to `port`; `superlink_port` is the SuperLink's on the loopback interface;
    device N's SuperNode listens on `device_port` + N of the device's own loopback interface.
    """

    root: Path
    hosts: tuple[str, ...]
    port: int = 9443
    superlink_port: int = 9440
    device_port: int = 9500
    bind: str = "0.0.0.0"
    model: str = "openai/whisper-tiny.en"
    data: str = "data"
    device_bin: str = "/opt/zo-asr/venv/bin"
    device_folder: str = "/etc/zo-asr"
    bin: Path = field(default_factory=lambda: Path(sys.executable).parent)

    def __post_init__(self) -> None:
        for name in ("port", "superlink_port", "device_port"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 65535:
                raise ConfigError(f"{name.replace('_', '-')} is {value!r}, expected 1 … 65535")
        if self.port == self.superlink_port:
            raise ConfigError(f"port and superlink-port are both {self.port}: the proxy needs one of its own")
        for name in ("bind", "model", "data", "device_bin", "device_folder"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name.replace('_', '-')} is {getattr(self, name)!r}, expected text in quotes")
        if not all(isinstance(host, str) for host in self.hosts):
            raise ConfigError(f"hosts is {list(self.hosts)!r}, expected a list of names and addresses in quotes")
        if not self.hosts:
            raise ConfigError("no host given: name at least one --host that devices reach")
        for host in (*self.hosts, self.bind):
            check_host(host)
        check_path(self.root, "the deployment folder")
        check_path(self.bin, "the folder of the installation")
        check_path(Path(self.device_bin), "device-bin")
        check_path(Path(self.device_folder), "device-folder")
        for name in ("model", "data"):
            if not re.fullmatch(r'[^"\\$`\x00-\x1f\x7f]+', getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected a path or name without quotes or $")

    @classmethod
    def open(cls, root: Path) -> Deployment:
        """Open the deployment in a folder.

        Raises:
            ConfigError: no deployment.toml there, or one with a wrong setting.
        """
        root = root.absolute()
        path = root / SETTINGS
        if not path.is_file():
            raise ConfigError(f"{root} is no deployment folder ({SETTINGS} is missing): make one with init")
        values = {key.replace("-", "_"): value for key, value in read_toml(path).items()}
        known = {f.name for f in fields(cls)} - {"root", "bin"}
        for key in values:
            if key not in known:
                raise ConfigError(f"{path} has the unknown setting {key!r}: known are {', '.join(sorted(known))}")
        hosts = values.pop("hosts", [])
        if not isinstance(hosts, list):
            hosts = [hosts]
        return cls(root=root, hosts=tuple(hosts), **values)

    def settings_text(self) -> str:
        """Return the text of deployment.toml."""
        left_out = ("root", "bin")
        return tomli_w.dumps(
            {f.name.replace("_", "-"): getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        )

    # places

    @property
    def keys(self) -> Path:
        """Private keys, the SuperExec secret and the certificates that belong to them."""
        return self.root / "keys"

    @property
    def authority(self) -> Path:
        """The authority's certificate; devices get a copy."""
        return self.keys / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """The authority's private key. Only renew needs it, so it may be kept elsewhere between renewals."""
        return self.keys / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.keys / "server.crt"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.keys / "server.key"

    @property
    def secret(self) -> Path:
        """The secret by which SuperLink and SuperExec authenticate each other."""
        return self.keys / "superexec.secret"

    @property
    def flower_home(self) -> Path:
        """Flower's folder, with the connection `deployment`."""
        return self.root / "flwr-home"

    @property
    def app(self) -> Path:
        """The thin Flower app."""
        return self.root / "app"

    @property
    def database(self) -> Path:
        """SuperLink's database: registered devices, runs, pending messages."""
        return self.root / "state" / "superlink.db"

    @property
    def runs(self) -> Path:
        """Folder with `NAME.toml` and, once started, `NAME/` of every run."""
        return self.root / "runs"

    @property
    def devices_file(self) -> Path:
        """The file of all devices ever added."""
        return self.root / "devices.toml"

    def device_folder_of(self, name: str) -> Path:
        """Return the folder to copy to a device."""
        return self.root / "devices" / name

    @property
    def superlink_address(self) -> str:
        """SuperLink's address on the loopback interface."""
        return f"127.0.0.1:{self.superlink_port}"

    # processes

    def environment(self) -> dict[str, str]:
        """Return the environment of the server's processes and of `flwr`."""
        path = f"{self.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return os.environ | FLOWER_SETTINGS | {"PATH": path, "FLWR_HOME": str(self.flower_home)}

    def superlink_command(self) -> list[str]:
        """Return SuperLink's command: TLS, node authentication, a database, separate app processes, loopback only."""
        return [
            f"{self.bin}/flower-superlink",
            "--ssl-ca-certfile", str(self.authority), "--ssl-certfile", str(self.certificate),
            "--ssl-keyfile", str(self.key), "--enable-supernode-auth", "--isolation", "process",
            "--superexec-auth-secret-file", str(self.secret), "--host", "127.0.0.1",
            "--port", str(self.superlink_port), "--database", str(self.database),
        ]  # fmt: skip

    def superexec_command(self) -> list[str]:
        """Return the command of SuperExec, which starts a run's ServerApp."""
        return [
            f"{self.bin}/flower-superexec",
            "--root-certificates", str(self.authority), "--runtime-api-address", self.superlink_address,
            "--superexec-auth-secret-file", str(self.secret),
        ]  # fmt: skip

    def proxy_command(self) -> list[str]:
        """Return the command of the reverse proxy that devices connect to."""
        return [f"{self.bin}/zo-asr", "server", "proxy", str(self.root)]

    # devices

    def devices(self) -> dict[str, Device]:
        """Return all devices ever added, by name."""
        path = self.devices_file
        if not path.exists():
            return {}
        tables = read_toml(path).get("devices", {})
        if not isinstance(tables, dict):
            raise ConfigError(
                f"{path}: devices is {tables!r}, expected a table [devices.NAME] each: correct it by hand"
            )
        return {name: _device_of(path, name, table) for name, table in tables.items()}

    def device(self, name: str) -> Device:
        """Return one device.

        Raises:
            ConfigError: no device of that name.
        """
        found = self.devices()
        if name not in found:
            raise ConfigError(f"no device {name!r}: known are {', '.join(found) or 'none'}")
        return found[name]

    @contextmanager
    def change_devices(self) -> Iterator[dict[str, Device]]:
        """Lock and yield the devices for a change; they are written when the block ends without an error."""
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"another command is changing the devices of {self.root}: try again") from None
            devices = self.devices()
            yield devices
            self.write_devices(devices)

    def write_devices(self, devices: dict[str, Device]) -> None:
        """Write the devices inside `change_devices`, for what must be on disk before its block goes on."""
        tables = {"devices": {device.name: device.to_mapping() for device in devices.values()}}
        write_durably(self.devices_file, tomli_w.dumps(tables).encode())
        lines = [
            peer_line(device.client_id, device.public_key)
            for device in devices.values()
            if device.public_key and not device.revoked
        ]
        write_durably(self.root / PEERS_NAME, "".join(lines).encode())
