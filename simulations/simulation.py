"""A simulation from scenario to result, without a command line."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.rounds.events import Events
from server.rounds.result import RunResult
from simulations.before_start import check_simulation, devices_of
from simulations.models.whisper_import import bundled_whisper
from simulations.runner import run_federation
from simulations.scenario import Scenario
from simulations.speech.corpus import Corpus, write_corpus
from zo_common.config.run import RunConfig


@dataclass(frozen=True)
class Places:
    """Folders for files that many simulations share."""

    models: Path = Path("models")
    data: Path = Path("data")
    results: Path = Path("results")


@dataclass(frozen=True)
class Prepared:
    """A scenario with speech and model on disk: settings, number of devices, and the corpus if it was synthesised."""

    config: RunConfig
    devices: int
    corpus: Corpus | None


@dataclass(frozen=True)
class SimulationResult(RunResult):
    """The result of a simulation; `devices` is the number of virtual devices."""

    devices: int


def run_simulation(
    scenario: Scenario, output: Path | None = None, *, events: Events | None = None, places: Places | None = None
) -> SimulationResult:
    """Run a scenario in Flower's simulation engine, in this process, and return its result.

    1. Speech: the scenario's corpus is synthesised, if it names one (an existing corpus is reused).
    2. Model: the bundled Whisper-tiny.en, unless the scenario names another.
    3. All rounds, with virtual devices in Ray processes.

    Args:
        output: folder of the run; default: `output` of the scenario's run settings, else `results/<time>-<name>`.
        events: hooks for progress; default: rounds go to the loggers, as all messages do (`zo_common.console.shown`).
        places: folders of models, speech and results; default: `models`, `data` and `results` in the working directory.

    Raises:
        ConfigError: a setting is wrong, or the simulation engine failed.
        ModelNotFound, UnsupportedModel, DataError …: model or speech cannot be used; raised before the engine starts.
        ZOError: the server raised it in the run.
        Interrupted: SIGINT or SIGTERM was received in the run.
    """
    places = places or Places()
    if output is not None or "output" not in scenario.run:
        output = output or places.results / f"{time.strftime('%Y%m%d-%H%M%S')}-{scenario.name}"
    prepared = prepare(scenario, places, {} if output is None else {"output": str(output)})
    config = prepared.config
    check_simulation(config, prepared.devices)
    run_federation(config, prepared.devices, events, scenario.actors)
    return SimulationResult.of(config, devices=prepared.devices)


def prepare(scenario: Scenario, places: Places, overrides: Mapping[str, Any] | None = None) -> Prepared:
    """Synthesise a scenario's speech and provide its model, unless they exist already.

    Args:
        overrides: run settings that override the scenario's.

    Raises:
        ConfigError: a setting is wrong, or neither scenario nor recordings give the number of devices; nothing is
            written then.
    """
    settings = dict(overrides or {})
    scenario.config(**settings)  # report a mistyped setting before speech is synthesised
    devices = scenario.devices
    if scenario.corpus is None and not devices:
        devices = devices_of(scenario.config(**settings))
    corpus = None
    if scenario.corpus is not None:
        corpus = write_corpus(places.data / f"{scenario.name}-{scenario.corpus.seed}", scenario.corpus)
        settings.setdefault("data", str(corpus.directory.resolve()))
    config = scenario.config(**settings)
    if not config.model:
        config = replace(config, model=str(bundled_whisper(places.models).resolve()))
    if corpus is not None:
        devices = devices or len(corpus.speakers["train"])
    return Prepared(config, devices, corpus)
