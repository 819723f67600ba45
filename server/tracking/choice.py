"""The trackers that `report-to` names."""

from __future__ import annotations

import os
from importlib import import_module

from server.tracking.tracker import Tracker
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError

_BUILT_IN = {
    "tensorboard": "server.tracking.tensorboard:TensorBoardTracker",
    "wandb": "server.tracking.wandb:WandbTracker",
    "mlflow": "server.tracking.mlflow:MlflowTracker",
}
_SILENT = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""Switches of the libraries' own telemetry, which goes to their makers also where a run is offline."""


def trackers_of(config: RunConfig) -> list[Tracker]:
    """Import and return the trackers that `report-to` names; a built-in one's library is imported here only.

    The libraries' own telemetry is off, unless a user's environment has it on.

    Raises:
        ConfigError: a library is missing, with the command that installs it, a name leads to no tracker, or a tracker
            cannot be made.
    """
    if config.trackers:
        for variable, value in _SILENT.items():  # before the libraries are imported, which read them
            os.environ.setdefault(variable, value)
    return [_tracker(name) for name in config.trackers]


def _tracker(name: str) -> Tracker:
    module, _, kind = _BUILT_IN.get(name, name).partition(":")
    try:
        found = getattr(import_module(module), kind)
    except Exception as error:  # a module of a user, or a library that does not suit the others, may raise anything
        if name in _BUILT_IN:
            remedy = f"pip install 'federated-zo-asr[{name}]', or set report-to=none"
        else:
            remedy = "name a module on the Python path and a class in it, as module:Class"
        raise ConfigError(f"report-to names {name}, which cannot be imported ({_says(error)}): {remedy}") from None
    if not (isinstance(found, type) and issubclass(found, Tracker)):
        raise ConfigError(f"report-to names {name}, which is no tracker: name a subclass of server.Tracker")
    try:
        return found()
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(
            f"report-to names {name}, which cannot be made ({_says(error)}): a tracker is made without arguments"
        ) from None


def _says(error: Exception) -> str:
    """Return the exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
