"""Status of a deployment: processes, certificates, devices and the state of a run, as data and as tables."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.deploy.certificates import WARN_BELOW_DAYS, client_context, days_left, read_certificate
from server.deploy.deployment import CONNECTION, Deployment, check_name
from server.deploy.flower import FlowerError, flwr_json
from server.run.log import read_rows
from zo_common.device_key import KEY_NAME
from zo_common.errors import ConfigError

_PROBE_SECONDS = 5.0
_ROUNDS_SHOWN = 5


def collect(deployment: Deployment, run: str = "") -> dict[str, Any]:
    """Return everything that `status` shows, as plain values for JSON."""
    return {
        "folder": str(deployment.root),
        "processes": _processes(deployment),
        "certificates": _certificates(deployment),
        "private_keys": sorted(path.parent.name for path in deployment.root.glob(f"devices/*/{KEY_NAME}")),
        **_devices(deployment, run),
        **(_run(deployment, run) if run else {"runs": _runs(deployment)}),
    }


def _processes(deployment: Deployment) -> dict[str, str]:
    return {
        "superlink": _tls_answer("127.0.0.1", deployment.superlink_port, deployment.authority),
        "superexec": _running(str(deployment.secret)),
        "proxy": _tls_answer(_reachable(deployment.bind), deployment.port, deployment.authority),
    }


def _reachable(bind: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)


def _tls_answer(host: str, port: int, authority: Path) -> str:
    """Return whether the proxy is up, or why not, e.g. a certificate not signed by this folder's authority."""
    try:
        context = client_context(authority)
        with socket.create_connection((host, port), _PROBE_SECONDS) as plain:
            plain.settimeout(_PROBE_SECONDS)
            with context.wrap_socket(plain, server_hostname="localhost") as tls:
                served = tls.getpeercert() or {}
                until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(served["notAfter"])), UTC)
                return f"up, serves a certificate until {until:%Y-%m-%d}"
    except ssl.SSLCertVerificationError as error:
        return f"answers with a certificate that is not this folder's ({error.verify_message}): restart it"
    except OSError as error:
        return f"down ({error.strerror or type(error).__name__})"


def _running(mark: str) -> str:
    """Return whether a SuperExec with this deployment's secret runs, found by the processes' command lines."""
    if not Path("/proc/self/cmdline").exists():
        return "unknown"
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended
        if mark in arguments and any(Path(path).name == "flower-superexec" for path in arguments[:2]):
            return "up"
    return "down"


def _certificates(deployment: Deployment) -> dict[str, float]:
    """Return the days left of the server's and the authority's certificate."""
    return {
        path.name: round(days_left(read_certificate(path)), 1)
        for path in (deployment.certificate, deployment.authority)
    }


def _devices(deployment: Deployment, run: str) -> dict[str, Any]:
    """Return every device with Flower's state and, for a run, its entry in `devices.json`."""
    online: dict[str, dict[str, Any]] = {}
    trouble = ""
    try:
        answer = flwr_json(deployment, "supernode", "list", CONNECTION, timeout=20.0)
        online = {str(node["node-id"]): node for node in answer["nodes"]}
    except FlowerError as error:
        trouble = str(error)
    entries = _entries(deployment, run)
    rows = []
    for device in deployment.devices().values():
        node = online.get(device.node_id, {})
        state = str(node.get("status", "unknown" if trouble else "not registered"))
        row = {"name": device.name, "client_id": device.client_id, "node_id": device.node_id}
        row |= {"state": "revoked" if device.revoked else state}
        rows.append(row | entries.get(device.client_id, {}))
    return {"devices": rows, "trouble": trouble}


def _entries(deployment: Deployment, run: str) -> dict[int, dict[str, Any]]:
    """Return the entries of the run's `devices.json`, by client id."""
    path = deployment.runs / run / "devices.json"
    if not run or not path.exists():
        return {}
    fields = (
        "have_round",
        "last_seen_round",
        "payload_up",
        "payload_down",
        "refused",
        "standing",
        "until_round",
        "word",
    )
    try:
        rows = json.loads(path.read_text())["devices"]
        return {
            int(row["client_id"]): {key: row[key] for key in fields if key in row}
            | {"suspected": row.get("scalars", {}).get("report", "")}
            for row in rows
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise ConfigError(f"{path} is not what a run writes: remove it, the run writes it again") from None


def _run(deployment: Deployment, run: str) -> dict[str, Any]:
    output = deployment.runs / check_name(run, "run")
    if not output.is_dir():
        raise ConfigError(f"{output} does not exist: runs are {', '.join(_runs(deployment)) or 'none'}")
    log = output / "rounds.jsonl"
    rounds = read_rows(log) if log.exists() else []
    ledger = output / "ledger.zo"
    size = ledger.stat().st_size if ledger.exists() else 0
    return {"run": run, "ledger_bytes": size, "rounds_done": len(rounds), "rounds": rounds[-_ROUNDS_SHOWN:]}


def _runs(deployment: Deployment) -> list[str]:
    return sorted(path.parent.name for path in deployment.runs.glob("*/ledger.zo"))


def warnings(status: dict[str, Any]) -> Iterator[str]:
    """Yield warnings that need the operator's action."""
    for name, days in status["certificates"].items():
        if days < WARN_BELOW_DAYS:
            remedy = "renew --ca" if name == "ca.crt" else "renew"
            state = f"expires in {days:.0f} days" if days > 0 else "has expired: devices refuse this server"
            yield f"{name} {state}: run zo-asr server {remedy} {status['folder']}"
    if status["private_keys"]:
        names = ", ".join(status["private_keys"])
        yield (
            f"private keys of devices lie on this server ({names}): whoever reads them passes for the device, also in "
            f"secure sums; remove {status['folder']}/devices/*/{KEY_NAME} once they are carried, and let devices make "
            "their own"
        )
    if status["trouble"]:
        yield status["trouble"]


def show(status: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    table = Table("process", "state", title=_plain(status["folder"]), title_justify="left")
    for name, state in status["processes"].items():
        table.add_row(name, _plain(state))
    for name, days in status["certificates"].items():
        table.add_row(name, f"{days:.0f} days left")
    console.print(table)
    console.print(_device_table(status["devices"]))
    if status.get("rounds"):
        console.print(_round_table(status))
    elif status.get("runs"):
        console.print(_plain(f"runs: {', '.join(status['runs'])}"))
    for message in warnings(status):
        console.print(Text.assemble(("warning: ", "yellow"), _plain(message)))


def _plain(value: Any) -> Text:
    """Return text from a device or Flower without markup and without terminal control characters."""
    return Text("".join(each if each.isprintable() else " " for each in str(value)))


def _device_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "device", "id", "state", "has round", "seen", "up B", "down B", "refused", "standing", title="devices"
    )
    table.title_justify = "left"
    for row in rows:
        refused = ", ".join(f"{reason} {count}" for reason, count in row.get("refused", {}).items())
        standing = str(row.get("standing", ""))
        if row.get("until_round"):
            standing += f" until round {row['until_round']}"
        for reason in filter(None, (row.get("word"), row.get("suspected"))):
            standing += f": {reason}"
        numbers = [str(row.get(key, "")) for key in ("have_round", "last_seen_round", "payload_up", "payload_down")]
        cells = (row["name"], row["client_id"], row["state"], *numbers, refused, standing)
        table.add_row(*map(_plain, cells))
    return table


def _round_table(status: dict[str, Any]) -> Table:
    table = Table("round", "answered", "loss", "up B", "down B", "refused", "s")
    table.title = _plain(f"run {status['run']}: {status['rounds_done']} rounds, ledger {status['ledger_bytes']} B")
    table.title_justify = "left"
    for row in status["rounds"]:
        loss = row.get("loss")
        refused = ", ".join(f"{reason} {count}" for reason, count in (row.get("refused") or {}).items())
        table.add_row(
            str(row["server_round"]), f"{row['answered']}/{row['asked']}", "" if loss is None else f"{loss:.4f}",
            str(row["up"]["payload"]), str(row["down"]["payload"]), _plain(refused), f"{row['seconds']:.1f}",
        )  # fmt: skip
    return table
