"""The ledger on disk is the run: whatever interrupts it, the rounds that follow are those of an undisturbed run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid

from server.rounds.federation import LEDGER_NAME, Federation
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, LedgerAltered, LedgerError, WrongBaseModel
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.record_codec import encode_record

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]

ROUNDS = 5


class Stopped(Exception):
    """Stands for the end of the server's process."""


@pytest.fixture
def stopped(settings: Settings, grid_of: Grids) -> Callable[..., RunConfig]:
    """A run that ended while round `at` was being sent, and its settings to go on."""

    def run(at: int, **changes: Any) -> RunConfig:
        config = settings(num_server_rounds=ROUNDS, **changes)
        grid = grid_of(config)
        sent: list[int] = []

        def stop(server_round: int) -> None:
            sent.append(server_round)
            if sent.count(at) == 2:  # one device has trained already
                raise Stopped

        grid.on_push = stop
        with pytest.raises(Stopped):
            Federation(config, grid).run()
        return replace(config, resume=True)

    return run


@pytest.fixture
def undisturbed(settings: Settings, federate: Federate, ledger_of: Ledgers, tmp_path: Path) -> Callable[..., Ledger]:
    """The ledger of the same run without an interruption."""

    def run(**changes: Any) -> Ledger:
        config = settings(num_server_rounds=ROUNDS, **(changes | {"output": str(tmp_path / "undisturbed")}))
        federate(config)
        return ledger_of(config)

    return run


def _bytes(ledger: Ledger) -> list[bytes]:
    return [encode_record(record) for record in ledger.records]


def _path(config: RunConfig) -> Path:
    return Path(config.output) / LEDGER_NAME


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_resumed_run_is_byte_for_byte_the_undisturbed_one(
    stopped: Callable[..., RunConfig],
    undisturbed: Callable[..., Ledger],
    federate: Federate,
    ledger_of: Ledgers,
    observed: Any,
    at: int,
) -> None:
    config = stopped(at)
    assert ledger_of(config).last_round == at - 1

    federation = federate(config)

    expected = undisturbed()
    assert _bytes(ledger_of(config)) == _bytes(expected)
    assert federation.checksum == expected.records[-1].checksum
    assert f"after round {at - 1}" in observed.text
    rows = (Path(config.output) / "rounds.jsonl").read_text().splitlines()
    assert len(rows) == ROUNDS


@pytest.mark.parametrize(
    "changes",
    [
        {"server_model": False},
        {"directions": "shared"},
        {"clients_per_round": 2},
        {"estimator": "two-sided", "lr_schedule": "cosine", "drop_out": 0.3},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_so_it_is_with_other_settings(
    stopped: Callable[..., RunConfig],
    undisturbed: Callable[..., Ledger],
    federate: Federate,
    ledger_of: Ledgers,
    changes: dict[str, Any],
) -> None:
    config = stopped(3, **changes)

    federate(config)

    assert _bytes(ledger_of(config)) == _bytes(undisturbed(**changes))


def test_resuming_a_finished_run_adds_the_rounds_that_are_new(
    settings: Settings, federate: Federate, ledger_of: Ledgers, undisturbed: Callable[..., Ledger]
) -> None:
    config = settings(num_server_rounds=3, lr_schedule="constant")
    federate(config)

    federate(replace(config, resume=True))
    assert ledger_of(config).last_round == 3
    federate(replace(config, resume=True, num_server_rounds=ROUNDS))

    assert _bytes(ledger_of(config)) == _bytes(undisturbed(lr_schedule="constant"))


def test_an_existing_output_is_refused_unless_resumed(settings: Settings, federate: Federate) -> None:
    config = settings(num_server_rounds=1)
    federate(config)
    before = _path(config).read_bytes()

    with pytest.raises(ConfigError, match="exists already: set resume=true"):
        federate(config)

    assert _path(config).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"run_seed": 9}, "run-seed is 0 in the ledger, 9 was asked: set run-seed=0 to resume"),
        ({"trained_tensors": "encoder-conv"}, "trained-tensors is 'encoder-decoder-bias' in the ledger"),
        ({"scale": "rms"}, "scale is 'unit-wide' in the ledger"),
        ({"epsilon": 2e-3}, "epsilon is 0.001 in the ledger"),
        ({"estimator": "two-sided"}, "estimator is 'leave-one-out' in the ledger"),
    ],
)
def test_other_settings_are_refused(
    settings: Settings, federate: Federate, grid_of: Grids, changes: dict[str, Any], word: str
) -> None:
    config = settings(num_server_rounds=1, partition_by="iid")
    federate(config, grid_of(config, devices=1))
    before = _path(config).read_bytes()
    other = replace(config, resume=True, num_server_rounds=2, **changes)

    with pytest.raises(ConfigError, match=word):
        federate(other, grid_of(other, devices=1))

    assert _path(config).read_bytes() == before


@pytest.mark.parametrize("server_model", [True, False])
def test_another_base_model_is_refused(
    settings: Settings, federate: Federate, grid_of: Grids, other_whisper: Path, server_model: bool
) -> None:
    config = settings(num_server_rounds=1, partition_by="iid", server_model=server_model)
    federate(config, grid_of(config, devices=1))
    before = _path(config).read_bytes()
    other = replace(config, resume=True, num_server_rounds=2, model=str(other_whisper))

    with pytest.raises(WrongBaseModel, match="use the same base"):
        federate(other, grid_of(other, devices=1))

    assert _path(config).read_bytes() == before


def test_a_torn_end_is_cut_off_with_a_warning_and_run_again(
    stopped: Callable[..., RunConfig],
    undisturbed: Callable[..., Ledger],
    federate: Federate,
    ledger_of: Ledgers,
    observed: Any,
) -> None:
    config = stopped(4)
    whole = _path(config).read_bytes()
    _path(config).write_bytes(whole[:-7])

    federate(config)

    assert "warning" in observed.text
    assert "a crash cut the last record" in observed.text
    assert "after round 2" in observed.text
    assert _bytes(ledger_of(config)) == _bytes(undisturbed())


def test_an_altered_ledger_is_not_continued(stopped: Callable[..., RunConfig], federate: Federate) -> None:
    config = stopped(4)
    data = bytearray(_path(config).read_bytes())
    data[-60] ^= 1
    _path(config).write_bytes(data)

    with pytest.raises(LedgerAltered):
        federate(config)

    assert _path(config).read_bytes() == data


def test_devices_ahead_of_a_server_that_lost_rounds_go_back_with_it(
    settings: Settings,
    grid_of: Grids,
    federate: Federate,
    ledger_of: Ledgers,
    undisturbed: Callable[..., Ledger],
) -> None:
    config = settings(num_server_rounds=3, lr_schedule="constant")
    grid = grid_of(config)
    federate(config, grid)
    sizes = _sizes(ledger_of(config))
    with _path(config).open("r+b") as file:
        file.truncate(_path(config).stat().st_size - sum(sizes[-2:]))
    assert grid[0].engine.have_round == 2

    federate(replace(config, resume=True, num_server_rounds=ROUNDS), grid)

    assert _bytes(ledger_of(config)) == _bytes(undisturbed(lr_schedule="constant"))


def _sizes(ledger: Ledger) -> list[int]:
    return [4 + len(body) + 16 for body in _bytes(ledger)]


def test_a_full_disk_undoes_the_round_and_the_run_can_go_on(
    settings: Settings,
    grid_of: Grids,
    federate: Federate,
    ledger_of: Ledgers,
    undisturbed: Callable[..., Ledger],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings(num_server_rounds=ROUNDS)
    federation = Federation(config, grid_of(config))
    federation.run_round(1)
    good, checksum = _path(config).read_bytes(), federation.checksum

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LedgerError, match=r"round 2 could not be written.*No space left"):
            federation.run_round(2)

    assert _path(config).read_bytes() == good
    assert federation.global_model is not None
    assert federation.checksum == checksum == federation.global_model.state.checksum()
    federation.close()
    federate(replace(config, resume=True))
    assert _bytes(ledger_of(config)) == _bytes(undisturbed())
