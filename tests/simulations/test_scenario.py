"""Scenario files: what they give a run, and mistakes named with the nearest valid name."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.cli import SCENARIOS, parse_settings
from simulations.scenario import read_scenario
from zo_common.errors import ConfigError


def _file(directory: Path, text: str) -> Path:
    path = directory / "mine.toml"
    path.write_text(text)
    return path


def test_tables_become_settings(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        '[simulation]\ndevices = 3\nactors = 2\n[corpus]\naccent = "scotland"\ntrain-speakers = ["m1", "f2"]\n'
        "[run]\nlearning-rate = 1\nnum-queries = 4\n",
    )

    scenario = read_scenario(path)

    assert (scenario.name, scenario.devices, scenario.actors) == ("mine", 3, 2)
    assert scenario.corpus is not None
    assert (scenario.corpus.accent, scenario.corpus.train_speakers) == ("scotland", ("m1", "f2"))
    assert scenario.config().learning_rate == 1.0
    assert scenario.config(num_queries=7, output="there").num_queries == 7
    assert scenario.config(**{"num-queries": 9}).num_queries == 9


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_scenarios_of_the_package_are_valid(path: Path) -> None:
    scenario = read_scenario(path)

    assert scenario.name == path.stem
    assert scenario.devices >= scenario.config().min_clients
    assert scenario.corpus is not None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[runn]\n", "'runn', did you mean 'run'"),
        ("[simulation]\ndevises = 3\n", "'devises', did you mean 'devices'"),
        ("[corpus]\nacent = 'scotland'\n", "'acent', did you mean 'accent'"),
        ("[run]\nlerning-rate = 1\n", "'lerning-rate': did you mean 'learning-rate'"),
        ("[run]\nnum-queries = 'four'\n", "num-queries is 'four' .str., expected int"),
        ("[run]\nestimator = 'central'\n", "estimator is 'central', expected one of"),
        ("[run]\nepsilon = 0\n", "epsilon is 0.0, expected a positive number"),
        ("[run\n", "mine.toml is not valid TOML"),
    ],
)
def test_mistakes_are_named_with_the_nearest_name(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        read_scenario(_file(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_scenario(tmp_path / "mine.toml")


def test_settings_of_the_command_line() -> None:
    pairs = ["num-queries=4", "learning-rate=1e-3", "resume=true", "model=/some/where", 'data="a b"', "output = x=y"]

    assert parse_settings(pairs) == {
        "num-queries": 4,
        "learning-rate": 1e-3,
        "resume": True,
        "model": "/some/where",
        "data": "a b",
        "output": " x=y",
    }
    assert parse_settings(None) == {}


def test_a_setting_without_a_value() -> None:
    with pytest.raises(ConfigError, match="'resume' has no value: write key=value"):
        parse_settings(["resume"])
