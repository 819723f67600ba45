"""What a process keeps warm: one engine, and a data set for each choice of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_grid import Memory

from client.warm import warm_dataset, warm_engine
from zo_common.config import RunConfig
from zo_common.errors import ConfigError

Settings = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def own_memory() -> Iterator[Memory]:
    """Each test is a process that has just started."""
    memory = Memory()
    with memory.in_use():
        yield memory


def test_one_engine_serves_all_runs_on_a_model(settings: Settings, own_memory: Memory, other_whisper: Path) -> None:
    first = warm_engine(settings())

    assert warm_engine(settings(run_seed=5, learning_rate=1e-4, output="elsewhere")) is first
    assert warm_engine(settings(model=str(other_whisper))) is not first
    assert len(own_memory.engines) == 1  # one model in memory


def test_a_data_set_is_read_once_for_each_device(settings: Settings) -> None:
    config = settings()
    engine = warm_engine(config)

    parts = [warm_dataset(config, engine, partition, 3) for partition in range(3)]

    assert [len(part) for part in parts] == [3, 3, 3]
    assert len({text for part in parts for text in part.texts}) == 9
    assert warm_dataset(config, engine, 1, 3) is parts[1]
    assert len(warm_dataset(config, engine, None, 1)) == 9


@pytest.mark.parametrize("change", [{"run_seed": 1}, {"skip_bad": True}, {"train_split": "test"}])
def test_another_choice_of_data_is_another_data_set(settings: Settings, change: dict[str, Any]) -> None:
    engine = warm_engine(settings())

    one = warm_dataset(settings(partition_by="iid"), engine, 0, 2)
    other = warm_dataset(settings(partition_by="iid", **change), engine, 0, 2)

    assert other is not one
    if "skip_bad" not in change:  # the run's seed deals the utterances out
        assert other.texts != one.texts


@pytest.mark.parametrize("name", ["model", "data"])
def test_a_setting_that_is_missing_is_named(settings: Settings, name: str) -> None:
    engine = warm_engine(settings())

    with pytest.raises(ConfigError, match=f"{name} is not set"):
        config = settings(**{name: ""})
        warm_engine(config)
        warm_dataset(config, engine, None, 1)
