"""A scenario from settings to result files, with the in-memory grid in the place of Flower's simulation engine."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from simulations.demo import run_scenario
from simulations.environment import quiet_environment
from simulations.runner import available_cpus, run_federation
from simulations.scenario import Scenario, read_scenario
from simulations.simulation import Places
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.ledger.file import read_ledger

Settings = Callable[..., RunConfig]


@pytest.mark.usefixtures("in_memory")
def test_a_scenario_leaves_its_files_and_prints_its_numbers(settings: Settings, tmp_path: Path) -> None:
    config = settings(num_server_rounds=2)
    scenario = Scenario("small", config.to_mapping(), devices=3)
    console = Console(file=(said := io.StringIO()), width=120)

    numbers = run_scenario(scenario, Places(), console, "the command")

    output = Path(config.output)
    result = json.loads((output / "result.json").read_text())
    ledger = read_ledger(output / "ledger.zo", tolerate_torn=False)
    checksum = f"{ledger.records[-1].checksum:016x}"
    assert result["command"] == "the command"
    assert result["checksum"] == result["replayed_checksum"] == numbers["checksum"] == checksum
    assert result["checksums_agree"] is True
    assert result["ledger_bytes"] == (output / "ledger.zo").stat().st_size
    told = json.loads((output / "introductions.jsonl").read_text())
    assert result["traffic"]["up"] == 2 * 67 + round(told["up"]["payload"] / 3)
    for word in ("small: 3 devices, 2 rounds", "round 1/2", "round 2/2", "agree", checksum, str(output)):
        assert word in said.getvalue()
    assert not (output / "curve.png").exists()  # nothing was evaluated


@pytest.mark.usefixtures("in_memory")
def test_a_scenario_without_transcripts_on_a_ctc_model(
    ctc_settings: Settings, untold_corpus: Path, tmp_path: Path
) -> None:
    """The file is all that a user writes; the loss is told by what it is counted in."""
    config = ctc_settings(objective="suta", data=str(untold_corpus), guard_split="test", learning_rate=1e-4)
    kept = ("model", "data", "output", "objective", "trained-tensors", "guard-split", "eval-split", "learning-rate")
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.to_mapping().items() if key in kept]
    path = tmp_path / "untold.toml"
    path.write_text("\n".join(["[simulation]", "devices = 3", "[run]", "num-server-rounds = 2", *lines]))
    console = Console(file=(said := io.StringIO()), width=120)

    numbers = run_scenario(read_scenario(path), Places(), console, "the command")

    assert numbers["checksums_agree"] is True
    assert numbers["before"]["utterances"] == 3
    assert (Path(config.output) / "curve.png").exists()
    for word in ("trained: norms+features, objective: suta", "loss (nats a character)", "round 2/2"):
        assert word in said.getvalue()


def test_settings_are_checked_before_speech_is_made(tmp_path: Path) -> None:
    from simulations.speech.corpus import CorpusConfig

    places = Places(tmp_path / "models", tmp_path / "data", tmp_path / "results")
    scenario = Scenario("small", {}, corpus=CorpusConfig())

    with pytest.raises(ConfigError, match="did you mean 'learning-rate'"):
        run_scenario(scenario, places, Console(file=io.StringIO()), "", {"lerning-rate": 1})

    assert not list(tmp_path.iterdir())


def test_neither_devices_nor_a_corpus(settings: Settings) -> None:
    shared_out = Scenario("small", settings(partition_by="iid").to_mapping())
    with pytest.raises(ConfigError, match="set devices in"):
        run_scenario(shared_out, Places(), Console(file=io.StringIO()), "")


def test_the_progress_line_of_a_round_nobody_answered(settings: Settings) -> None:
    from server.run.log import RoundReport
    from server.watch.progress import RunProgress

    console = Console(file=(said := io.StringIO()), width=120)
    with RunProgress(console, 3) as progress:
        events = progress.events()
        events.on_round(RoundReport(1, 1e-3, asked=2, answered=0))
        logging.getLogger("server.rounds.federation").warning("refused [0] a device")
        events.on_stage("decoding", 1, 2)

    assert "round 1/3: no valid reply" in said.getvalue()
    assert "refused [0] a device" in said.getvalue()


@pytest.mark.parametrize("devices", [0, -1])
def test_a_simulation_without_devices(settings: Settings, devices: int) -> None:
    with pytest.raises(ConfigError, match="expected at least 1"):
        run_federation(settings(), devices)


def test_the_environment_is_quiet_but_the_users_choices_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.delenv("FLWR_DISABLE_UPDATE_CHECK", raising=False)

    quiet_environment()

    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "1"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert available_cpus() >= 1
