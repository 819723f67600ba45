"""Rounds on a fake grid: over-selection, late answers, minimum of replies, back-off, drift, chunked catch-up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_grid import FakeGrid
from flwr.app import Message

from server.rounds.federation import Federation
from server.run.log import read_rows
from server.run.model import GlobalModel
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, ModelNotFound, RunStopped
from zo_common.ledger.ledger import Ledger
from zo_common.wire.plan import Status, decode_plan, decode_reply, encode_reply

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]


def _clients(ledger: Ledger) -> list[list[int]]:
    return [[c.client_id for c in record.contributions] for record in ledger.records]


def _hold_back(grid: FakeGrid, node: int, rounds: int) -> None:
    """The node's answers arrive that many rounds late."""
    pull, newest = grid.pull_messages, [0]
    grid.on_push = lambda server_round: newest.__setitem__(0, max(newest[0], server_round))

    def slow(names: Any) -> Any:
        ready = []
        for name in names:
            answer = grid._answers.get(name)
            asked = answer is not None and int(answer.metadata.group_id or 0)
            if answer is None or answer.metadata.src_node_id != node or asked == 0 or newest[0] >= asked + rounds:
                ready.append(name)
        return pull(ready)

    grid.pull_messages = slow


def test_enough_answers_close_the_round_and_the_late_one_is_counted(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
) -> None:
    config = settings(num_server_rounds=4, clients_per_round=2, over_selection=0.5)
    grid = grid_of(config)
    _hold_back(grid, 102, rounds=1)

    federate(config, grid)

    assert _clients(ledger_of(config)) == [[0, 1]] * 4
    assert [r.asked for r in observed.reports] == [3] * 4
    assert [dict(r.refused) for r in observed.reports] == [{}, {"late": 1}, {"late": 1}, {"late": 1}]
    assert observed.reports[1].up.payload > observed.reports[0].up.payload
    devices = json.loads((Path(config.output) / "devices.json").read_text())["devices"]
    assert {d["standing"] for d in devices} == {"ok"}


def test_a_round_with_too_few_replies_stays_empty_and_a_few_in_a_row_stop_the_run(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
) -> None:
    config = settings(num_server_rounds=9, min_replies=3, max_bad_rounds=2)
    grid = grid_of(config)
    grid[2].after = lambda server_round, payload: b"garbage" if server_round > 1 else payload

    with pytest.raises(RunStopped, match=r"2 rounds in a row had fewer than 3 valid replies.*malformed.*resume"):
        federate(config, grid)

    ledger = ledger_of(config)
    assert _clients(ledger) == [[0, 1, 2], [], []]
    assert ledger.records[0].checksum == ledger.records[2].checksum
    assert dict(observed.reports[1].refused) == {"malformed": 1, "too-few": 1}


def test_a_device_that_keeps_failing_is_asked_seldom_and_comes_back(
    settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers
) -> None:
    config = settings(num_server_rounds=8)
    grid = grid_of(config)
    grid[2].after = lambda server_round, payload: b"garbage" if server_round < 5 else payload

    federate(config, grid)

    assert grid[2].asked == [0, 1, 2, 3, 5, 5, 6, 7, 8]  # round 5 twice: it has to catch up
    assert _clients(ledger_of(config)) == [[0, 1]] * 4 + [[0, 1, 2]] * 4


@pytest.mark.parametrize("server_model", [True, False])
def test_a_drifted_device_rebuilds_and_goes_on(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers, server_model: bool
) -> None:
    config = settings(num_server_rounds=5, server_model=server_model)
    grid = grid_of(config)
    hits: list[int] = []

    def flip(server_round: int) -> None:
        if server_round == 3 and not hits:
            hits.append(server_round)
            _flip_a_weight(grid[2].engine)

    grid[2].before = flip

    federation = federate(config, grid)

    clients = _clients(ledger_of(config))
    assert clients[-1] == [0, 1, 2]
    assert not federation.statuses.of(2).excluded
    checksums = set()
    for member in federation.members.values():
        engine = grid.devices[member.node_id].engine
        assert engine.sync(federation._plan(6, member, 0.1)) is Status.OK
        checksums.add(engine.state.checksum())
    assert len(checksums) == 1
    if server_model:
        assert checksums == {federation.checksum}
        assert clients == [[0, 1, 2]] * 5  # it found out itself, and fetched all rounds within the round
    else:
        assert clients[2] == [0, 1]
        assert "device 2 must rebuild" in observed.text


def test_a_device_that_is_off_again_is_excluded_with_a_word(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
) -> None:
    config = settings(num_server_rounds=6)
    grid = grid_of(config)

    def wrong(server_round: int, payload: bytes) -> bytes:
        reply = decode_reply(payload)
        return encode_reply(replace(reply, checksum=reply.checksum ^ 1)) if reply.status is Status.OK else payload

    grid[2].after = wrong

    federate(config, grid)

    assert _clients(ledger_of(config)) == [[0, 1]] * 6
    assert "device 2 must rebuild" in observed.text
    assert "device 2 is excluded" in observed.text
    assert observed.text.count("wrong-checksum") == 0
    assert [dict(r.refused) for r in observed.reports[:3]] == [{"wrong-checksum": 1}, {"wrong-checksum": 1}, {}]
    told = json.loads((Path(config.output) / "devices.json").read_text())
    assert [d["standing"] for d in told["devices"]] == ["ok", "ok", "excluded"]


def test_a_late_device_fetches_the_ledger_in_pieces(
    settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(
        num_server_rounds=24, message_bytes=1024, late_joiners=1, late_round=24, trained_tensors="encoder-early"
    )  # of few tensors a snapshot would be smaller
    grid = grid_of(config)
    sizes = _watch_plans(grid, 102, monkeypatch)

    federation = federate(config, grid)

    assert _clients(ledger_of(config))[-1] == [0, 1, 2]
    assert grid[2].engine.have_round == 23
    assert len(sizes) > 2
    assert max(sizes) <= 1024 + 100
    assert federation.checksum == ledger_of(config).records[-1].checksum


def test_a_late_device_fetches_a_snapshot_where_the_ledger_is_larger(
    settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers
) -> None:
    config = settings(
        num_server_rounds=12,
        num_queries=8,
        learning_rate=0.01,
        trained_tensors="*conv1.bias",
        late_joiners=1,
        late_round=12,
    )
    grid = grid_of(config)

    federation = federate(config, grid)

    assert _clients(ledger_of(config))[-1] == [0, 1, 2]
    engine = grid[2].engine
    assert engine.have_round == 11
    assert not engine.applied  # it never saw a record
    assert engine.sync(federation._plan(13, federation.members[102], 0.1)) is Status.OK
    assert engine.state.checksum() == federation.checksum


def test_duplicate_and_shuffled_answers_change_nothing(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers, tmp_path: Path
) -> None:
    config = settings(num_server_rounds=4)
    federate(config)
    grid = grid_of(again := replace(config, output=str(tmp_path / "again")))
    pull = grid.pull_messages

    def twice_backwards(names: Any) -> list[Message]:
        answers = list(pull(names))
        return [*reversed(answers), *answers] if answers and answers[0].metadata.group_id else answers

    grid.pull_messages = twice_backwards

    federate(again, grid)

    assert ledger_of(again).records == ledger_of(config).records
    assert [dict(r.refused) for r in observed.reports[4:]] == [{"duplicate": 3}] * 4


def _flip_a_weight(engine: Any) -> None:
    weight = engine.state.tensors[0].weight
    with torch.no_grad():
        weight.view(-1)[0] += 2.0 ** engine.state.tensors[0].grid_exponent


def _watch_plans(grid: FakeGrid, node: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all plans to a node that carry records."""
    sizes: list[int] = []
    push = grid.push_messages

    def watch(messages: Any) -> Any:
        messages = list(messages)
        for message in messages:
            payload = message.content.config_records["zo"].get("plan")
            if message.metadata.dst_node_id == node and isinstance(payload, bytes) and decode_plan(payload).records:
                sizes.append(len(payload))
        return push(messages)

    monkeypatch.setattr(grid, "push_messages", watch)
    return sizes


def test_a_log_that_cannot_be_written_costs_a_word_and_is_made_good(
    settings: Settings, grid_of: Grids, observed: Any, ledger_of: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(num_server_rounds=4)
    federation = Federation(config, grid_of(config), observed.events)
    opened = Path.open

    def full(path: Path, *arguments: Any, **more: Any) -> Any:
        file = opened(path, *arguments, **more)
        if path.name in ("rounds.jsonl", "devices.tmp") and len(federation.ledger.ledger.records) == 2:
            file.write('{"server_')  # as much as there was room for
            file.close()
            raise OSError(28, "No space left on device", str(path))
        return file

    monkeypatch.setattr(Path, "open", full)
    federation.run()

    assert "round 2:" in observed.text
    assert "is not written: No space left on device" in observed.text
    assert [row["server_round"] for row in read_rows(Path(config.output) / "rounds.jsonl")] == [1, 2, 3, 4]
    assert ledger_of(config).last_round == 4
    assert json.loads((Path(config.output) / "devices.json").read_text())["server_round"] == 4


def test_in_the_end_all_devices_hold_the_adapted_model(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any
) -> None:
    config = settings(num_server_rounds=4, final_sync=True, trained_tensors="encoder-early")
    grid = grid_of(config)
    grid[1].after = lambda server_round, payload: b"garbage" if server_round == 5 else payload
    grid[2].before = lambda server_round: grid[2].memory.back_to_base() if server_round == 5 else None

    federation = federate(config, grid)

    assert {grid[n].engine.state.checksum() for n in (0, 1, 2)} == {federation.checksum}
    assert [d.asked[-1] for d in grid.devices.values()] == [5, 5, 5]
    assert "2 of 3 devices hold the state after round 4" in observed.text
    assert "after round 4: client 1: reply" in observed.text
    devices = json.loads((Path(config.output) / "devices.json").read_text())["devices"]
    assert [d["have_round"] for d in devices] == [4, 3, 4]


def test_a_second_server_of_a_run_does_not_bother_the_devices(
    settings: Settings, grid_of: Grids, observed: Any
) -> None:
    config = settings()
    first = Federation(config, grid_of(config), observed.events)
    grid = grid_of(config)

    with pytest.raises(ConfigError, match="another server is running"):
        Federation(config, grid, observed.events)

    assert not any(device.asked for device in grid.devices.values())
    first.close()


def test_a_network_that_is_cut_for_all_costs_time_and_no_rounds(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
) -> None:
    config = settings(num_server_rounds=4)
    grid = grid_of(config)
    looks: list[int] = []

    def online() -> list[int]:
        cut = observed.reports and observed.reports[-1].server_round == 2 and len(looks) < 3
        looks.extend([1] if cut else [])
        return [] if cut else list(grid.devices)

    grid.get_node_ids = online

    federate(config, grid)

    assert "round 3: 0 devices are online, min-clients is 1: waiting for more" in observed.text
    assert len(looks) == 3
    assert _clients(ledger_of(config)) == [[0, 1, 2]] * 4


def test_a_device_that_takes_rounds_and_has_none_more_is_refused_within_the_round(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
) -> None:
    config = settings(num_server_rounds=24, message_bytes=1024, late_joiners=1, late_round=24)
    grid = grid_of(config)

    def stuck(server_round: int, payload: bytes) -> bytes:
        reply = decode_reply(payload)
        return encode_reply(replace(reply, have_round=0)) if reply.status in (Status.OK, Status.BEHIND) else payload

    grid[2].after = stuck

    federate(config, grid)

    assert dict(observed.reports[-1].refused) == {"behind": 1}
    assert _clients(ledger_of(config))[-1] == [0, 1]


def test_a_device_that_is_behind_catches_up_although_rounds_close_early(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
) -> None:
    config = settings(
        num_server_rounds=30, message_bytes=1024, clients_per_round=2, over_selection=0.5, late_joiners=1, late_round=20
    )
    grid = grid_of(config)

    federate(config, grid)

    # every round closes with the answers of the other two, but brings it a step nearer
    assert grid[2].engine.have_round >= 20


def test_a_base_model_that_was_changed_under_the_server_costs_the_snapshot_only(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = settings(
        num_server_rounds=12, num_queries=8, learning_rate=0.01, trained_tensors="*conv1.bias", late_joiners=1,
        late_round=12,
    )  # fmt: skip

    def gone(model: GlobalModel) -> bytes:
        raise ModelNotFound("the model is not there any more")

    monkeypatch.setattr(GlobalModel, "snapshot", gone)

    federate(config)

    assert "no snapshot can be made (the model is not there any more)" in observed.text
    assert _clients(ledger_of(config))[-1] == [0, 1, 2]
