"""Simulations from Python, with the in-memory grid in the place of Flower's simulation engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import Observed

from simulations import Scenario, run_simulation
from simulations.simulation import Places
from simulations.speech.corpus import CorpusConfig
from zo_common import RunConfig, replay
from zo_common.errors import ConfigError
from zo_common.models.load import load_model

Settings = Callable[..., RunConfig]


@pytest.mark.usefixtures("in_memory")
def test_a_simulation_returns_its_result(ctc_settings: Settings, observed: Observed) -> None:
    config = ctc_settings(num_server_rounds=2, guard_split="none")

    result = run_simulation(Scenario("small", config.to_mapping(), devices=3), events=observed.events)

    assert (result.config, result.devices, result.output) == (config, 3, Path(config.output))
    assert result.before is not None and result.after is not None
    assert result.before["utterances"] == result.after["utterances"] == 3
    assert [report.server_round for report in observed.reports] == [1, 2]
    assert f"{replay(load_model(config.model).model, result.ledger):016x}" == result.checksum


@pytest.mark.usefixtures("in_memory")
def test_the_folder_of_the_result(settings: Settings, observed: Observed, tmp_path: Path) -> None:
    """As the caller names it, else one by time and name."""
    config = settings(num_server_rounds=1, num_queries=2, local_steps=1, server_model=False)
    run = {key: value for key, value in config.to_mapping().items() if key != "output"}
    places = Places(results=tmp_path / "results")

    named = run_simulation(Scenario("small", run, devices=3), tmp_path / "mine", events=observed.events)
    other = run_simulation(Scenario("small", run, devices=3), events=observed.events, places=places)

    assert named.output == tmp_path / "mine"
    assert other.output.parent == tmp_path / "results"
    assert other.output.name.endswith("-small")
    assert named.checksum == "" and named.before is None
    assert len(named.ledger.records) == len(other.ledger.records) == 1


@pytest.mark.parametrize(
    ("scenario", "problem"),
    [
        (Scenario("small", {}), "set devices in"),
        (Scenario("small", {"lerning-rate": 1}, corpus=CorpusConfig()), "did you mean 'learning-rate'"),
    ],
)
def test_a_wrong_scenario_makes_nothing(scenario: Scenario, problem: str, tmp_path: Path) -> None:
    places = Places(tmp_path / "models", tmp_path / "data", tmp_path / "results")

    with pytest.raises(ConfigError, match=problem):
        run_simulation(scenario, places=places)

    assert not list(tmp_path.iterdir())
