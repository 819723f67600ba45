"""The runs to watch in a folder that an operator names: a deployment's, or one run's own."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from server.deploy.deployment import SETTINGS, Deployment, check_name
from server.run.log import SETTINGS_LOG
from server.watch.run_folder import RunFolder
from zo_common.errors import ConfigError
from zo_common.ledger.layout import LEDGER_NAME


def folders_of(place: Path) -> Callable[[], Sequence[RunFolder]]:
    """Return a function that lists the runs of a folder; a run that was listed before is the same object.

    Raises:
        ConfigError: it is neither a deployment folder nor a run's.
    """
    if not (place / SETTINGS).is_file():
        only = [run_folder(place)]
        return lambda: only
    runs = Deployment.open(place).runs
    known: dict[Path, RunFolder] = {}

    def found() -> Sequence[RunFolder]:
        return [known.setdefault(path, RunFolder(path)) for path in _started(runs)]

    return found


def run_folder(place: Path, run: str = "") -> RunFolder:
    """Return the folder of a run: a deployment's run of that name, by default the last one that wrote; or `place`.

    Raises:
        ConfigError: there is no such run.
    """
    if not (place / SETTINGS).is_file():
        if run:
            raise ConfigError(f"{place} is no deployment folder, so it has no run {run!r}: name the run's folder alone")
        if not any((place / name).exists() for name in (LEDGER_NAME, SETTINGS_LOG)):
            raise ConfigError(f"{place} is neither a deployment folder nor a run's: name the output of a run")
        return RunFolder(place)
    runs = Deployment.open(place).runs
    started = _started(runs)
    if run:
        if (runs / check_name(run, "run")) not in started:
            known = ", ".join(path.name for path in started) or "none"
            raise ConfigError(f"{run!r} has not been started in {place}: runs are {known}")
        return RunFolder(runs / run)
    if not started:
        raise ConfigError(f"no run has been started in {place}: use zo-asr server start")
    return RunFolder(max(started, key=lambda path: (path / SETTINGS_LOG).stat().st_mtime))


def resume_command(place: Path, found: RunFolder) -> str:
    """Return the command that continues a deployment's run; empty for a run elsewhere, whose command is not known."""
    if not (place / SETTINGS).is_file():
        return ""
    return shlex.join(["zo-asr", "server", "resume", str(place.absolute()), found.name])


def _started(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.glob(f"*/{SETTINGS_LOG}"))
