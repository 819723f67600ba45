"""Who takes part: too few, unusable, ambiguous or foreign devices are named before the first round."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid
from flwr.app import ConfigRecord, RecordDict

from client.app import make_client_app
from server.devices.roster import Roster
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, WrongBaseModel
from zo_common.ledger.ledger import Ledger

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]


def test_too_few_devices(settings: Settings, federate: Federate) -> None:
    with pytest.raises(ConfigError, match=r"3 devices are connected after 0\.1 s, min-clients is 4"):
        federate(settings(min_clients=4, round_timeout=0.1))


def test_bad_recordings_in_a_simulation_stop_the_run_before_a_ledger_exists(
    settings: Settings, federate: Federate, mini_corpus: Path, tmp_path: Path
) -> None:
    config = settings(data=str(_with_broken_audio(mini_corpus, tmp_path)))

    with pytest.raises(ConfigError, match=r"skip-bad=true(.|\n)*device 0(.|\n)*metadata\.csv:2: 'anna0\.wav'"):
        federate(config)

    assert not (Path(config.output) / "ledger.zo").exists()


def test_a_real_device_with_bad_recordings_is_left_out_and_the_others_go_on(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers, tmp_path: Path
) -> None:
    config = settings()
    grid = grid_of(config)
    broken = tmp_path / "own"
    broken.mkdir()
    (broken / "metadata.csv").write_text("file_name,transcription\ngone.wav,Hello.\n")
    grid[0].context.node_config.update({"own-data": True, "data": str(broken)})

    federate(config, grid)

    assert "device 0" in observed.text
    assert "1 problem in the data: this device's own log lists them" in observed.text
    assert "gone.wav" not in observed.text
    assert "Traceback" not in observed.text
    assert [[c.client_id for c in r.contributions] for r in ledger_of(config).records] == [[1, 2]] * 3


def test_skipped_recordings_are_told_and_counted(
    settings: Settings, federate: Federate, observed: Any, mini_corpus: Path, tmp_path: Path
) -> None:
    config = settings(data=str(_with_broken_audio(mini_corpus, tmp_path)), skip_bad=True)

    federate(config)

    assert "device 0 skipped 1 bad recording\n" in observed.text + "\n"
    told = json.loads((Path(config.output) / "introductions.jsonl").read_text())
    assert told["skipped"] == {"0": 1}
    assert told["up"]["serialised"] > told["up"]["payload"] > 0


def test_a_device_skips_what_is_its_own_and_each_row_counts_once(
    settings: Settings, federate: Federate, observed: Any, mini_corpus: Path, tmp_path: Path
) -> None:
    corpus = _with_broken_audio(mini_corpus, tmp_path)  # one of anna's
    with (corpus / "train" / "metadata.csv").open("a") as table:
        table.write("gone.wav,,ben\n")  # two faults of one row
        table.write("gone.wav,whose it is nobody knows,\n" * 2 + "a row,of,four,columns\n")

    federate(config := settings(data=str(corpus), skip_bad=True))

    told = json.loads((Path(config.output) / "introductions.jsonl").read_text())
    assert told["skipped"] == {"0": 2, "1": 2, "2": 1}
    assert "device 1 skipped 2 bad recordings" in observed.text


def test_a_speaker_without_a_usable_recording_is_left_out_where_bad_ones_are_skipped(
    settings: Settings, federate: Federate, observed: Any, mini_corpus: Path, tmp_path: Path, ledger_of: Ledgers
) -> None:
    corpus = _with_broken_audio(mini_corpus, tmp_path, "anna*.wav")
    for path in (corpus / "train").glob("ben*.wav"):
        path.unlink()  # his rows are none: the others' shares stay what they were
    config = settings(data=str(corpus), skip_bad=True)

    federate(config)

    assert "2 of 3 devices are left out" in observed.text
    assert "device 0: No utterance is left to train on (3 of 3 readable rows were chosen)" in observed.text
    assert [[c.client_id for c in r.contributions] for r in ledger_of(config).records] == [[2]] * 3


def test_a_row_without_a_speaker_is_a_problem_like_others(
    settings: Settings, federate: Federate, observed: Any, mini_corpus: Path, tmp_path: Path
) -> None:
    corpus = _with_broken_audio(mini_corpus, tmp_path, "none")
    table = corpus / "train" / "metadata.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1].rpartition("anna")[0]
    lines[5] = lines[5].replace("wav", "gone", 1)
    table.write_text("\n".join(lines) + "\n")

    with pytest.raises(ConfigError) as caught:
        federate(settings(data=str(corpus)))
    federate(settings(data=str(corpus), skip_bad=True))

    first, *others = str(caught.value).splitlines()
    assert first.endswith("(skip-bad=true trains on what is good):")
    assert [line.split(": ")[:3] for line in others] == [
        ["  devices 0, 1, 2", "train/metadata.csv:6", others[0].split(": ")[2]],
        ["  devices 0, 1, 2", "train/metadata.csv:2", others[1].split(": ")[2]],
    ]
    assert "got no speaker, by which recordings are shared out" in others[1]


def test_fewer_usable_devices_than_wanted_stop_the_run_with_the_reason(
    settings: Settings, federate: Federate, grid_of: Grids, tmp_path: Path
) -> None:
    config = settings(min_clients=3)
    grid = grid_of(config)
    grid[0].context.node_config.update({"own-data": True, "data": str(tmp_path / "nowhere")})

    with pytest.raises(
        ConfigError, match=r"2 of 3 devices can train.*min-clients is 3(.|\n)*device 0: 1 problem in the data"
    ):
        federate(config, grid)

    assert not (Path(config.output) / "ledger.zo").exists()


def test_data_that_nobody_can_use_stop_the_run_with_the_reason(
    settings: Settings, federate: Federate, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        federate(settings(data=str(tmp_path / "nowhere")))


def test_of_two_devices_with_one_client_id_one_is_left_out(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
) -> None:
    config = settings()
    grid = grid_of(config)
    grid[2].context.node_config["client-id"] = 1

    federate(config, grid)

    assert "device 1 (node 102) claims the client id of node 101: set distinct client-id values" in observed.text
    assert [[c.client_id for c in r.contributions] for r in ledger_of(config).records] == [[0, 1]] * 3


@pytest.mark.parametrize("server_model", [True, False])
def test_a_device_with_another_base_model_is_left_out_and_the_others_go_on(
    settings: Settings,
    federate: Federate,
    grid_of: Grids,
    other_whisper: Path,
    server_model: bool,
    observed: Any,
    ledger_of: Ledgers,
) -> None:
    config = settings(server_model=server_model)
    grid = grid_of(config)
    grid[2].context.node_config["model"] = str(other_whisper)

    federate(config, grid)

    assert "device 2 holds another base model" in observed.text
    assert [[c.client_id for c in r.contributions] for r in ledger_of(config).records] == [[0, 1]] * 3


def test_too_few_devices_with_the_right_base_model(
    settings: Settings, federate: Federate, grid_of: Grids, other_whisper: Path
) -> None:
    config = settings(min_clients=3)
    grid = grid_of(config)
    grid[2].context.node_config["model"] = str(other_whisper)

    with pytest.raises(WrongBaseModel, match=r"too few devices(.|\n)*device 2 holds another base model"):
        federate(config, grid)

    assert not (Path(config.output) / "ledger.zo").exists()


def test_a_device_that_comes_later_introduces_itself_and_takes_part(
    settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers
) -> None:
    config = settings(num_server_rounds=5)
    grid = grid_of(config)
    grid[2].online = False
    grid[0].before = lambda server_round: setattr(grid[2], "online", server_round >= 3)

    federate(config, grid)

    assert [[c.client_id for c in r.contributions] for r in ledger_of(config).records] == [[0, 1]] * 3 + [[0, 1, 2]] * 2
    assert grid[2].engine.have_round == 4


def test_a_mended_device_is_let_in_later(
    settings: Settings, federate: Federate, grid_of: Grids, other_whisper: Path, ledger_of: Ledgers
) -> None:
    config = settings(num_server_rounds=6)
    grid = grid_of(config)
    grid[2].context.node_config["model"] = str(other_whisper)

    def mend(server_round: int) -> None:
        if server_round == 2:
            grid[2].context.node_config.pop("model", None)

    grid[0].before = mend

    federate(config, grid)

    clients = [[c.client_id for c in r.contributions] for r in ledger_of(config).records]
    assert clients == [[0, 1]] * 2 + [[0, 1, 2]] * 4  # asked before the rounds 1, 3, 7, 15 …


def test_a_new_device_with_the_number_of_one_that_is_online_is_left_out(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
) -> None:
    config = settings()
    grid = grid_of(config)
    grid[2].online = False
    grid[2].context.node_config["client-id"] = 1
    grid[0].before = lambda server_round: setattr(grid[2], "online", server_round >= 1)

    federate(config, grid)

    assert "claims the client id of node 101" in observed.text
    assert [[c.client_id for c in r.contributions] for r in ledger_of(config).records] == [[0, 1]] * 3


def test_a_device_that_replaces_another_takes_its_number(
    settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers
) -> None:
    config = settings(num_server_rounds=4)
    grid = grid_of(config)
    grid[2].online = False
    grid[2].context.node_config["client-id"] = 1

    def swap(server_round: int) -> None:
        if server_round == 2:
            grid[1].online, grid[2].online = False, True

    grid[0].before = swap
    federation = federate(config, grid)

    clients = [[c.client_id for c in r.contributions] for r in ledger_of(config).records]
    assert clients[0] == clients[2] == clients[3] == [0, 1]
    assert {m.client_id: n for n, m in federation.members.items()} == {0: 100, 1: 102}


@pytest.mark.parametrize(
    "hello",
    [
        b"[]",
        b'"x"',
        b"[" * 200_000,
        b'{"client_id": 1e999, "num_examples": 1}',
        b'{"client_id": 2, "num_examples": 1000000000000000000}',
        b'{"client_id": true, "num_examples": 3}',
        b'{"client_id": 2, "num_examples": 3, "fingerprint": "ab", "base_checksum": 1e999, "tensors": []}',
        b'{"client_id": 2, "num_examples": 3, "fingerprint": "ab", "base_checksum": 1, "tensors": 5}',
    ],
)
@pytest.mark.parametrize("server_model", [True, False])
def test_a_device_that_lies_in_its_introduction_is_left_out(
    settings: Settings,
    federate: Federate,
    grid_of: Grids,
    ledger_of: Ledgers,
    observed: Any,
    hello: bytes,
    server_model: bool,
) -> None:
    config = settings(num_server_rounds=1, server_model=server_model)
    grid = grid_of(config)
    honest = grid._ask

    def lie(device: Any, message: Any, server_round: int) -> Any:
        answer = honest(device, message, server_round)
        if device is grid[2] and "hello" in answer.content.config_records["zo"]:
            answer.content = RecordDict({"zo": ConfigRecord({"hello": hello})})
        return answer

    grid._ask = lie

    federate(config, grid)

    assert [[c.client_id for c in r.contributions] for r in ledger_of(config).records] == [[0, 1]]
    assert observed.text


@pytest.mark.parametrize(("busy", "rounds"), [(True, [0, 1, 2, 3, 4, 6]), (False, [0, 1, 3, 7])])
def test_a_device_that_serves_another_run_is_asked_again_sooner(
    settings: Settings, grid_of: Grids, busy: bool, rounds: list[int]
) -> None:
    config = settings(min_clients=2)
    grid, now, asked = grid_of(config), 0, []
    honest = grid._ask

    def refuse(device: Any, message: Any, server_round: int) -> Any:
        answer = honest(device, message, server_round)
        if device is grid[2]:
            asked.append(now)
            hello = json.dumps({"client_id": 2, "error": "it cannot", "stop": False, "busy": busy}).encode()
            answer.content = RecordDict({"zo": ConfigRecord({"hello": hello})})
        return answer

    grid._ask = refuse
    roster = Roster(grid, config)
    roster.start()
    for now in range(1, 9):
        roster.refresh(now)

    assert asked == rounds
    assert sorted(m.client_id for m in roster.members.values()) == [0, 1]


def test_settings_may_come_with_the_run(settings: Settings, grid_of: Grids, federate: Federate) -> None:
    """As `flwr run` gives them: through `context.run_config`."""
    config = settings(num_server_rounds=1)
    grid = grid_of(config)
    grid.app = make_client_app()
    for device in grid.devices.values():
        device.context.run_config = config.to_mapping()

    assert federate(config, grid).checksum


def _with_broken_audio(corpus: Path, directory: Path, names: str = "anna0.wav") -> Path:
    broken = directory / "broken"
    shutil.copytree(corpus, broken)
    for path in (broken / "train").glob(names):
        path.write_bytes(b"not audio")
    return broken
