"""Runs of a federation in Flower's simulation engine, in this process, with virtual devices in Ray actors."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from client.app import make_client_app
from server.app import log_round, make_server_app
from server.devices.enrolment import Enrolment
from server.rounds.federation import LEDGER_NAME, Events
from simulations.environment import quiet_environment
from simulations.stopping import GivenUp, Stop, ray_out_of_signals
from zo_common.config.run import RunConfig
from zo_common.console import at_level
from zo_common.errors import ConfigError, ZOError
from zo_common.ledger.file import read_ledger
from zo_common.models.quiet import transformers_quiet

_FEATURES = "features-"


def available_cpus() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def _feature_cache(config: RunConfig) -> Iterator[RunConfig]:
    """Yield the settings with a temporary folder on disk for features that do not fit in memory."""
    if config.feature_cache:
        yield config
        return
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=_FEATURES, dir=output.resolve(), ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigError(f"output {output} cannot be written ({error.strerror}): name another") from None
    with folder:
        yield replace(config, feature_cache=folder.name)


def _remove_features(output: Path) -> None:
    for folder in output.glob(f"{_FEATURES}*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Show errors alone of transformers, Flower and Ray within a block; their levels are restored afterwards."""
    with transformers_quiet(), at_level("flwr", logging.ERROR), at_level("ray", logging.ERROR):
        yield


def simulate(server: ServerApp, client: ClientApp, num_devices: int, actors: int, stop: Stop | None = None) -> None:
    """Run two Flower apps in the simulation engine, in this process, with `actors` Ray processes.

    Raises:
        ZOError: what the server raised; ConfigError where the simulation engine itself failed.
        Interrupted: SIGINT or SIGTERM came.
    """
    with warnings.catch_warnings(), stop or Stop() as asked:  # before what takes seconds to import
        warnings.simplefilter("ignore")
        quiet_environment()
        from flwr.simulation import run_simulation as flower_simulation

        cpus = available_cpus()
        ray = {"num_cpus": cpus, "log_to_driver": False, "include_dashboard": False, "logging_level": "error"}
        backend = {
            "init_args": ray,
            "client_resources": {"num_cpus": cpus // actors, "num_gpus": 0.0},
            "actor": {"tensorflow": 0},
        }
        # Ray's workers can import what this process can
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        try:
            asked.check()
            with _quiet_libraries(), redirect_stdout(asked.quieted(sys.stdout)), ray_out_of_signals(**ray):
                asked.listen()
                flower_simulation(asked.server(server), client, num_supernodes=num_devices, backend_config=backend)  # type: ignore[arg-type]
        except GivenUp:
            pass
        except ZOError:
            if not asked.number:
                raise
        except RuntimeError as error:
            if not asked.number:
                raise ConfigError(f"the simulation engine stopped ({error}): see the log lines above") from error
        asked.raise_if_asked()


def actors_for(num_devices: int, actors: int = 0) -> int:
    """Return the number of processes: the requested one, else one per core, at most one per device."""
    cpus = available_cpus()
    return min(actors or cpus, cpus, num_devices)


def run_federation(
    config: RunConfig,
    num_devices: int,
    events: Events | None = None,
    actors: int = 0,
    grace: float = 0.0,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Run all rounds with `num_devices` virtual devices.

    Args:
        actors: number of processes, each with its own loaded model; 0: one per core (at most one per device).
        grace: see `Stop`.
        on_start: called when a signal can stop the run in order, before the simulation engine starts.

    Raises:
        ZOError: what the server raised; ConfigError where the simulation engine itself failed.
        Interrupted: SIGINT or SIGTERM was received; the message says how to resume.
    """
    if num_devices < 1:
        raise ConfigError(f"a simulation of {num_devices} devices was asked for, expected at least 1")
    actors = actors_for(num_devices, actors)
    config = replace(config, torch_threads=config.torch_threads or max(1, available_cpus() // actors))
    stop = Stop(lambda: how_to_resume(config), grace, lambda: _remove_features(Path(config.output)))
    hooks = stop.watched(events or Events(on_round=log_round))
    with stop, _feature_cache(config) as settings:
        on_start()
        simulate(
            make_server_app(settings, hooks, Enrolment(own_devices=True)),
            make_client_app(settings),
            num_devices,
            actors,
            stop,
        )


def how_to_resume(config: RunConfig) -> str:
    """Return a message on how much of an interrupted run is recorded, and how to resume it."""
    path = Path(config.output) / LEDGER_NAME
    if not path.exists():
        return "interrupted before round 1, nothing is recorded: start it again"
    done = read_ledger(path).last_round
    return (
        f"interrupted after round {done} of {config.num_server_rounds}, {path} holds all of it: "
        f"the same command with --output {config.output} --set resume=true goes on"
    )
