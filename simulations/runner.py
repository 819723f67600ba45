"""Run a federation in Flower's simulation engine, in this process, with virtual devices in Ray actors."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import replace

from client.app import make_client_app
from server.app import make_server_app
from server.federation import Events
from zo_common.config import RunConfig
from zo_common.errors import ConfigError, ZOError


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
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def available_cpus() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def run_simulation(config: RunConfig, num_devices: int, events: Events | None = None, actors: int = 0) -> None:
    """Run all rounds with `num_devices` virtual devices.

    Args:
        actors: how many processes serve them, each with its own warm model; 0 takes one a core (at most one a device).

    Raises:
        ZOError: what the server raised; ConfigError where the simulation engine itself failed.
    """
    if num_devices < 1:
        raise ConfigError(f"a simulation of {num_devices} devices was asked for, expected at least 1")
    quiet_environment()
    from flwr.simulation import run_simulation as flower_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    cpus = available_cpus()
    actors = min(actors or cpus, cpus, num_devices)
    settings = replace(config, torch_threads=config.torch_threads or max(1, cpus // actors))
    backend = {
        "init_args": {"num_cpus": cpus, "log_to_driver": False, "include_dashboard": False, "logging_level": "error"},
        "client_resources": {"num_cpus": cpus // actors, "num_gpus": 0.0},
        "actor": {"tensorflow": 0},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            flower_simulation(
                make_server_app(settings, events),
                make_client_app(settings),
                num_supernodes=num_devices,
                backend_config=backend,  # type: ignore[arg-type]
            )
        except ZOError:
            raise
        except RuntimeError as error:
            raise ConfigError(f"the simulation engine stopped ({error}): see the log lines above") from error
