"""Start, follow, stop and resume the runs of a deployment."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w

from server.deploy.deployment import CONNECTION, Deployment, check_name, read_toml
from server.deploy.files import write_app
from server.deploy.flower import RUN_ENDED, RUN_NOT_FOUND, FlowerError, flwr_command, flwr_json, run_status
from server.deploy.slow_start import watched_start
from server.rounds.federation import LEDGER_NAME, refuse_used_ledger
from server.run.lock import is_locked
from zo_common.binary.durable import write_durably
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, LedgerError, ProtocolMismatch
from zo_common.secure_sum.node_keys import PEERS_NAME

SETTINGS_USED = "run-config.toml"
RUN_ID = "flower-run-id"
_LOST_SECONDS = 120.0  # SuperLink may be restarted during a run: it is polled this long
_PAUSE_SECONDS = 2.0


def run_settings(deployment: Deployment, run: str, changes: Sequence[str] = (), *, resume: bool = False) -> RunConfig:
    """Return the settings of `runs/RUN.toml` with `key=value` changes; paths and output made absolute.

    Raises:
        ConfigError: no such file, a setting with an unknown name or a wrong value, or one that the command sets itself.
    """
    path = deployment.runs / f"{check_name(run, 'run')}.toml"
    if not path.exists():
        known = ", ".join(sorted(found.stem for found in deployment.runs.glob("*.toml")))
        raise ConfigError(f"{path} does not exist: copy runs/example.toml there (runs are: {known})")
    values: dict[str, Any] = {"model": deployment.model, "data": deployment.data} | read_toml(path)
    for change in changes:
        values |= _parsed(change)
    for key in ("output", "resume"):
        if key in values:
            raise ConfigError(f"{key} is set in {path.name} or --set: leave it out, start and resume see to it")
    for key in ("model", "data", "feature-cache"):
        if isinstance(values.get(key), str) and values[key] and (deployment.root / values[key]).exists():
            values[key] = str((deployment.root / values[key]).absolute())
    return RunConfig.from_mapping(values | {"output": str(output_of(deployment, run)), "resume": resume})


def _parsed(change: str) -> dict[str, Any]:
    """Parse `key=value`: a number, true or false; anything else is text."""
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {change!r} is not key=value")
    known = {"true": True, "false": False}
    for kind in (int, float):
        if text in known:
            break
        try:
            return {key: kind(text)}
        except ValueError:
            continue
    return {key: known.get(text, text.strip("\"'"))}


def output_of(deployment: Deployment, run: str) -> Path:
    """Return the folder with a run's ledger, round log and model."""
    return deployment.runs / run


def begin(deployment: Deployment, run: str, changes: Sequence[str] = (), *, resume: bool) -> str:
    """Submit a run to the SuperLink; return Flower's run id.

    Raises:
        ConfigError: a wrong setting, a run in progress, one to start that has a ledger, or one to resume that
            has none or was made with other settings.
        FlowerError: SuperLink is not running or refuses it.
    """
    settings = run_settings(deployment, run, changes, resume=resume)
    output = Path(settings.output)
    ledger = output / LEDGER_NAME
    if ledger.exists() and not resume:
        raise ConfigError(
            f"{ledger} exists: continue with resume {run}, or start a copy of {run}.toml under a new name"
        )
    if resume and not ledger.exists():
        raise ConfigError(f"{ledger} does not exist, so there is nothing to resume: use start {run}")
    if _under_way(deployment, output / RUN_ID):
        raise ConfigError(f"{run} is running: follow or stop it")
    if resume:
        with suppress(LedgerError, ProtocolMismatch):  # the run itself reports a ledger that cannot be read
            refuse_used_ledger(settings)
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_app(deployment)
    _link_peers(deployment, output)
    used = output / SETTINGS_USED
    write_durably(used, tomli_w.dumps(settings.to_mapping()).encode())
    answer = flwr_json(deployment, "run", str(deployment.app), CONNECTION, "--run-config", str(used))
    run_id = str(answer["run-id"])
    write_durably(output / RUN_ID, run_id.encode())
    return run_id


def _link_peers(deployment: Deployment, output: Path) -> None:
    """Show a run the devices' public keys, so that it names who signs a secure sum wrongly; the list may change."""
    peers, link = deployment.root / PEERS_NAME, output / PEERS_NAME
    if peers.exists() and not link.is_symlink():
        link.symlink_to(peers.absolute())


def _under_way(deployment: Deployment, path: Path) -> bool:
    """Return whether the run whose id is in a file is still running: two runs would write to one ledger."""
    if not path.exists():
        return False
    try:
        status, _ = run_status(deployment, path.read_text().strip())
    except FlowerError as error:
        if error.code == RUN_NOT_FOUND:
            return False
        raise
    if status == "running" and not is_locked(path.parent):
        return False  # its server was killed, which SuperLink takes a minute to notice
    return not status.startswith("finished")


def run_id_of(deployment: Deployment, run: str) -> str:
    """Return Flower's id of the last start of a run.

    Raises:
        ConfigError: it was never started here.
    """
    path = output_of(deployment, check_name(run, "run")) / RUN_ID
    try:
        return path.read_text().strip()
    except OSError:
        raise ConfigError(f"{run!r} was not started from this folder ({path} does not exist)") from None


def follow(deployment: Deployment, run_id: str, show: Callable[[str], None]) -> tuple[str, str]:
    """Show the log of a run, line by line, until it has finished; return its status and details.

    The connection survives a restart of SuperLink; lines shown before are not repeated.

    Raises:
        FlowerError: SuperLink cannot be reached for two minutes.
    """
    shown, lost_since = 0, time.monotonic()
    with watched_start(deployment, run_id):
        while True:
            shown = _stream(deployment, run_id, shown, show)
            try:
                status, details = run_status(deployment, run_id)
            except FlowerError:
                if time.monotonic() - lost_since > _LOST_SECONDS:
                    raise
            else:
                if status.startswith("finished"):
                    return status, details
                lost_since = time.monotonic()
            time.sleep(_PAUSE_SECONDS)


def _stream(deployment: Deployment, run_id: str, skip: int, show: Callable[[str], None]) -> int:
    """Show a log after its first `skip` lines; return how many lines it has by now."""
    command = flwr_command(deployment, "log", run_id, CONNECTION, "--stream")
    count = 0
    with subprocess.Popen(
        command, env=deployment.environment() | {"NO_COLOR": "1"}, cwd=deployment.root, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as streaming:  # fmt: skip
        try:
            for line in streaming.stdout or ():
                count += 1
                if count > skip:
                    show(line.rstrip("\n"))
        finally:
            streaming.terminate()
            try:
                streaming.wait(10)
            except subprocess.TimeoutExpired:
                streaming.kill()
    return max(count, skip)


def stop(deployment: Deployment, run: str) -> None:
    """Stop a run; its ledger stays and can be resumed.

    Raises:
        ConfigError: it is not running.
    """
    try:
        flwr_json(deployment, "stop", run_id_of(deployment, run), CONNECTION)
    except FlowerError as error:
        if error.code != RUN_ENDED:
            raise
        raise ConfigError(f"{run} has ended already, expected a run in progress: see zo-asr server status") from None
