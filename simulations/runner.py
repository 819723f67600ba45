"""Run a federation in Flower's simulation engine, in this process, with virtual devices in Ray actors."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from client.app import make_client_app
from server.app import make_server_app
from server.rounds.federation import Events
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, ZOError
from zo_common.models.quiet import quiet_transformers


def quiet_environment() -> None:
    """No telemetry, no update checks, no hub progress bars: a simulation talks to nobody."""
    for name, value in {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_worker_niceness": "0",  # devices compete with nothing but each other
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)
    quiet_transformers()


def available_cpus() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def _feature_cache(config: RunConfig) -> Iterator[RunConfig]:
    """The settings with a place on disk, for the time of the run, where features wait while not in memory."""
    if config.feature_cache:
        yield config
        return
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="features-", dir=output.resolve(), ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigError(f"output {output} cannot be written ({error.strerror}): name another") from None
    with folder:
        yield replace(config, feature_cache=folder.name)


def simulate(server: ServerApp, client: ClientApp, num_devices: int, actors: int) -> None:
    """Run two Flower apps in the simulation engine, in this process, with `actors` Ray processes.

    Raises:
        ZOError: what the server raised; ConfigError where the simulation engine itself failed.
    """
    quiet_environment()
    from flwr.simulation import run_simulation as flower_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    cpus = available_cpus()
    backend = {
        "init_args": {"num_cpus": cpus, "log_to_driver": False, "include_dashboard": False, "logging_level": "error"},
        "client_resources": {"num_cpus": cpus // actors, "num_gpus": 0.0},
        "actor": {"tensorflow": 0},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            flower_simulation(server, client, num_supernodes=num_devices, backend_config=backend)  # type: ignore[arg-type]
        except ZOError:
            raise
        except RuntimeError as error:
            raise ConfigError(f"the simulation engine stopped ({error}): see the log lines above") from error


def actors_for(num_devices: int, actors: int = 0) -> int:
    """How many processes serve the devices: as asked, else one a core, at most one a device."""
    cpus = available_cpus()
    return min(actors or cpus, cpus, num_devices)


def run_federation(config: RunConfig, num_devices: int, events: Events | None = None, actors: int = 0) -> None:
    """Run all rounds with `num_devices` virtual devices.

    Args:
        actors: how many processes serve them, each with its own warm model; 0 takes one a core (at most one a device).

    Raises:
        ZOError: what the server raised; ConfigError where the simulation engine itself failed.
    """
    if num_devices < 1:
        raise ConfigError(f"a simulation of {num_devices} devices was asked for, expected at least 1")
    actors = actors_for(num_devices, actors)
    config = replace(config, torch_threads=config.torch_threads or max(1, available_cpus() // actors))
    with _feature_cache(config) as settings:
        simulate(make_server_app(settings, events), make_client_app(settings), num_devices, actors)
