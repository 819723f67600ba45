"""Many virtual devices on one process: one model, one table, bounded memory; and the scenario of a thousand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crowd import write_many_rows
from fake_grid import FakeGrid, Memory

from client.device import warm
from server.rounds.federation import Federation
from simulations.cli import SCENARIOS
from simulations.runner import _feature_cache
from simulations.scenario import read_scenario
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model

DEVICES = 50


@pytest.fixture
def crowd(settings: Callable[..., RunConfig], mini_corpus: Path, tmp_path: Path) -> RunConfig:
    """Settings of fifty devices with one or two utterances each."""
    return settings(
        data=str(write_many_rows(mini_corpus, tmp_path / "many", rows=DEVICES + 10)),
        partition_by="round-robin",
        min_clients=DEVICES,
        local_steps=1,
        num_server_rounds=2,
        feature_cache=str(tmp_path / "features"),
    )


def test_fifty_devices_on_one_process(
    crowd: RunConfig, federate: Any, ledger_of: Any, observed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory()
    monkeypatch.setattr(warm, "MAX_FEATURE_BYTES", 300_000)  # of about 2 MB

    federation: Federation = federate(crowd, FakeGrid(crowd, [memory] * DEVICES))

    ledger = ledger_of(crowd)
    assert [[c.client_id for c in record.contributions] for record in ledger.records] == [[*range(DEVICES)]] * 2
    assert [report.answered for report in observed.reports] == [DEVICES] * 2
    assert sorted(m.num_examples for m in federation.members.values()) == [1] * (DEVICES - 10) + [2] * 10
    assert len(memory.engines) == 1
    assert sum(size for size, _ in memory.datasets.values()) <= 300_000
    state = restore_state(load_model(crowd.model).model, ledger.header, threads=1)
    assert replay(state, ledger) == federation.checksum == ledger.records[-1].checksum


def test_devices_that_say_the_same_share_one_description(crowd: RunConfig, federate: Any) -> None:
    federation: Federation = federate(crowd, FakeGrid(crowd, [Memory()] * DEVICES))

    assert len({id(member.description) for member in federation.members.values()}) == 1


def test_the_scenario_of_a_thousand() -> None:
    scenario = read_scenario(SCENARIOS / "thousand.toml")
    config = scenario.config()

    assert scenario.devices == config.min_clients == 1000
    assert 0 < config.clients_per_round < scenario.devices
    assert scenario.corpus is not None
    assert scenario.devices <= scenario.corpus.utterances_of("train") <= 2 * scenario.devices
    assert config.partition_by == "round-robin"
    assert config.eval_split == "test"
    assert config.evaluate_every == 0


def test_a_run_has_a_place_for_features_while_it_lasts(crowd: RunConfig, tmp_path: Path) -> None:
    without = replace(crowd, feature_cache="")

    with _feature_cache(without) as settings:
        place = Path(settings.feature_cache)
        assert place.is_absolute()
        assert place.parent == Path(crowd.output).resolve()
        (place / "one.npz").touch()
    assert not place.exists()
    with _feature_cache(crowd) as settings:
        assert settings is crowd
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        _feature_cache(replace(without, output=str(tmp_path / "file" / "run"))),
    ):
        pass
