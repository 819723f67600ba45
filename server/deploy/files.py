"""Files of a deployment folder, from templates: scripts, systemd units, nginx and Flower settings."""

from __future__ import annotations

import getpass
import shlex
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined

from server.deploy.deployment import CONNECTION, FLOWER_SETTINGS, Deployment, Device
from zo_common.binary.durable import write_durably
from zo_common.config.run import RunConfig
from zo_common.device_key import KEY_NAME

_TEMPLATES = Environment(
    loader=PackageLoader("server.deploy"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    comment_start_string="{##",  # "{#" is a string's length in a shell
    comment_end_string="##}",
)
SERVER_UNITS = ("zo-asr-superlink.service", "zo-asr-superexec.service", "zo-asr-proxy.service")
DEVICE_UNITS = ("zo-asr-worker.service", "zo-asr-supernode.service")


def render(template: str, values: dict[str, Any]) -> str:
    """Fill in a template of `server/deploy/templates`; raises UndefinedError for a field without a value."""
    return _TEMPLATES.get_template(template).render(values)


def write_server_files(deployment: Deployment) -> None:
    """Write the files that depend on deployment.toml: start.sh, systemd units, nginx.conf, Flower's settings, app."""
    values = _server_values(deployment)
    root = deployment.root
    _write(root / "start.sh", render("start.sh", values), executable=True)
    for name in SERVER_UNITS:
        _write(root / "systemd" / name, render(name, values))
    _write(root / "nginx.conf", render("nginx.conf", values))
    _write(deployment.flower_home / "config.toml", render("flower-config.toml", values))
    write_app(deployment)


def write_app(deployment: Deployment) -> None:
    """Write the Flower app: settings, and two modules that import the installed packages."""
    config = tomli_w.dumps(RunConfig(model=deployment.model, data=deployment.data).to_mapping())
    _write(deployment.app / "pyproject.toml", render("app-pyproject.toml", {"config": config}))
    for part, module in (("client", "client.app"), ("server", "server.deploy.app")):
        text = render("app-part.txt", {"part": part, "module": module})
        _write(deployment.app / "zo_asr_app" / f"on_{part}.py", text)
    _write(deployment.app / "zo_asr_app" / "__init__.py", "")


def write_example_run(deployment: Deployment, devices: int) -> None:
    """Write `runs/example.toml`."""
    chosen = {"model": deployment.model, "min-clients": max(1, devices)}
    _write(deployment.runs / "example.toml", render("run.toml", {"chosen": tomli_w.dumps(chosen)}))


def write_device_files(deployment: Deployment, device: Device) -> None:
    """Write a device's folder except its private key; an existing `device.env` is kept."""
    folder = deployment.device_folder_of(device.name)
    home = Path(deployment.device_folder)
    values = {
        "name": device.name,
        "client_id": device.client_id,
        "superlink": f"{_bracketed(deployment.hosts[0])}:{deployment.port}",
        "runtime_port": deployment.device_port + device.client_id,
        "device_bin": deployment.device_bin,
        "device_venv": str(Path(deployment.device_bin).parent),
        "device_folder": home,
        "model": deployment.model,
        "data": deployment.data,
        "exports": _exports(),
        "unit_settings": _unit_settings(),
        "made_here": (folder / KEY_NAME).exists(),
        "root": deployment.root,
    }
    write_durably(folder / "ca.crt", deployment.authority.read_bytes())
    _write(folder / "start-device.sh", render("start-device.sh", values), executable=True)
    for name in DEVICE_UNITS:
        _write(folder / name, render(name, values))
    _write(folder / "README.md", render("device.md", values))
    if not (folder / "device.env").exists():
        _write(folder / "device.env", render("device.env", values))


def _server_values(deployment: Deployment) -> dict[str, Any]:
    return {
        "root": deployment.root,
        "bin": deployment.bin,
        "user": getpass.getuser(),
        "superlink": shlex.join(deployment.superlink_command()),
        "superexec": shlex.join(deployment.superexec_command()),
        "proxy": shlex.join(deployment.proxy_command()),
        "address": deployment.superlink_address,
        "authority": deployment.authority,
        "certificate": deployment.certificate,
        "key": deployment.key,
        "port": deployment.port,
        "hosts": " ".join(deployment.hosts),
        "connection": CONNECTION,
        "exports": _exports(),
        "unit_settings": _unit_settings(),
    }


def _exports() -> str:
    return "\n".join(f"export {key}={value}" for key, value in FLOWER_SETTINGS.items())


def _unit_settings() -> str:
    return "\n".join(f"Environment={key}={value}" for key, value in FLOWER_SETTINGS.items())


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _write(path: Path, text: str, *, executable: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, text.encode())
    if executable:
        path.chmod(0o755)
