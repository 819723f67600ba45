"""What makes a model worse on labelled speech is taken back, on the server and on the devices, to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid

from server.app import check_before_start
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, DataError, RunStopped
from zo_common.ledger.file import LedgerFile
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.record import Record
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model
from zo_common.speech.evaluation import Health
from zo_common.wire.plan import Status

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]

WELL = Health(loss=1.0, wer=0.3, uncertainty=0.5, diversity=0.9)
COLLAPSED = Health(loss=2.0, wer=1.0, uncertainty=0.1, diversity=0.1)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Health]]:
    """Replaces what the guard's looks find, one after the other; then `WELL`."""

    def script(*looks: Health) -> list[Health]:
        left = list(looks)
        monkeypatch.setattr("server.guards.collapse_guard.health", lambda *_, **__: left.pop(0) if left else WELL)
        return left

    return script


@pytest.fixture
def guarded(ctc_settings: Settings, untold_corpus: Path) -> Settings:
    """Settings of a guarded run without transcripts on the devices."""
    return lambda **changes: ctc_settings(
        **{
            "objective": "suta",
            "data": str(untold_corpus),
            "eval_split": "",
            "guard_split": "test",
            "guard_every": 1,
            **changes,
        }
    )


def _log(config: RunConfig) -> Path:
    return Path(config.output) / "guard.jsonl"


def _looks(config: RunConfig) -> Iterator[tuple[int, bool]]:
    for line in _log(config).read_text().splitlines():
        row = json.loads(line)
        yield row["server_round"], row["good"]


def _replayed(config: RunConfig, ledger: Ledger) -> int:
    return replay(restore_state(load_model(config.model).model, ledger.header, threads=1), ledger)


def _check_devices(federation: Federation, grid: FakeGrid) -> None:
    """They reach the server's weights with the next plan."""
    for node, member in federation.members.items():
        plan = federation._plan(federation.config.num_server_rounds + 1, member, 0.0)
        engine = grid.devices[node].engine
        assert engine.sync(plan) is Status.OK
        assert engine.state.checksum() == federation.checksum


def test_a_round_that_collapses_is_recorded_as_empty(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, found: Any, observed: Any
) -> None:
    config = guarded()
    grid = grid_of(config)
    found(WELL, WELL, COLLAPSED, WELL)

    federation = federate(config, grid)

    ledger = ledger_of(config)
    assert [len(r.contributions) for r in ledger.records] == [3, 0, 3]
    assert ledger.records[1].checksum == ledger.records[0].checksum != ledger.records[2].checksum
    assert _replayed(config, ledger) == federation.checksum == federation.global_model.state.checksum()
    assert [dict(r.refused) for r in observed.reports] == [{}, {"collapse": 3}, {}]
    assert "round 2: guard: collapse, loss 2.000 (best 1.000), WER 100.0% (best 30.0%)" in observed.text
    assert "entropy fell from 0.500 to 0.100: this round is undone" in observed.text
    assert list(_looks(config)) == [(0, True), (1, True), (2, False), (3, True)]
    _check_devices(federation, grid)


def test_rounds_since_the_last_good_look_are_undone_by_a_record(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, found: Any, observed: Any
) -> None:
    config = guarded(num_server_rounds=8, guard_every=3)
    grid = grid_of(config)
    found(WELL, WELL, COLLAPSED)  # before, after rounds 3 and 6, and after the last

    federation = federate(config, grid)

    ledger = ledger_of(config)
    assert [len(r.contributions) for r in ledger.records] == [3, 3, 3, 3, 3, 6, 3, 3]
    assert ledger.records[5].checksum == ledger.records[2].checksum
    undone = {(c.seed, tuple((-c.coefficients).ravel().tolist())) for c in ledger.records[5].contributions}
    made = [c for r in ledger.records[3:5] for c in r.contributions]
    assert undone == {(c.seed, tuple(c.coefficients.ravel().tolist())) for c in made}
    assert _replayed(config, ledger) == federation.checksum
    assert "rounds 4 to 6 are undone" in observed.text
    assert list(_looks(config)) == [(0, True), (3, True), (6, False), (8, True)]
    _check_devices(federation, grid)


def test_a_resumed_guard_remembers_its_good_looks(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, found: Any, observed: Any
) -> None:
    config = guarded(num_server_rounds=3, guard_every=2, lr_schedule="constant")
    found(WELL, WELL, WELL)
    grid = grid_of(config)
    federate(config, grid)

    left = found(COLLAPSED)  # after round 4, the first look of the second server
    federate(replace(config, num_server_rounds=5, resume=True), grid)

    ledger = ledger_of(config)
    assert left == []
    assert [len(r.contributions) for r in ledger.records] == [3, 3, 3, 0, 3]
    assert ledger.records[3].checksum == ledger.records[2].checksum
    assert list(_looks(config)) == [(0, True), (2, True), (3, True), (4, False), (5, True)]


def test_a_run_that_was_not_guarded_before_starts_from_what_it_has(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, found: Any, observed: Any
) -> None:
    config = guarded(num_server_rounds=2, guard_split="", lr_schedule="constant")
    grid = grid_of(config)
    federate(config, grid)

    found(WELL, COLLAPSED)
    federate(replace(config, num_server_rounds=3, resume=True, guard_split="test"), grid)

    ledger = ledger_of(config)
    assert [len(r.contributions) for r in ledger.records] == [3, 3, 0]
    assert "no checks of earlier rounds are known, round 2 counts as good" in observed.text


@pytest.mark.parametrize("second_look", [COLLAPSED, WELL], ids=["bad", "good"])
@pytest.mark.parametrize("first_look", [COLLAPSED, WELL], ids=["bad", "good"])
def test_a_look_whose_round_did_not_reach_the_ledger_is_not_remembered(
    guarded: Settings,
    grid_of: Grids,
    federate: Federate,
    ledger_of: Ledgers,
    found: Any,
    monkeypatch: pytest.MonkeyPatch,
    first_look: Health,
    second_look: Health,
) -> None:
    """The server is killed after it has written down what it saw, before it has recorded the round."""
    config = guarded(num_server_rounds=4, guard_every=2, lr_schedule="constant")
    grid = grid_of(config)
    found(WELL, WELL, first_look)
    append = LedgerFile.append

    def killed(ledger: LedgerFile, record: Record) -> None:
        if record.server_round == 4:
            raise KeyboardInterrupt
        append(ledger, record)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LedgerFile, "append", killed)
        federate(config, grid)
    assert [server_round for server_round, _ in _looks(config)] == [0, 2, 4]
    assert ledger_of(config).last_round == 3

    found(second_look)
    federation = federate(replace(config, resume=True), grid)

    ledger = ledger_of(config)
    good = second_look is WELL
    assert list(_looks(config)) == [(0, True), (2, True), (4, good)]
    assert (ledger.records[3].checksum == ledger.records[1].checksum) is not good
    assert _replayed(config, ledger) == federation.checksum == federation.global_model.state.checksum()
    _check_devices(federation, grid)


def test_looks_at_other_speech_are_not_compared(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, found: Any, observed: Any
) -> None:
    config = guarded(num_server_rounds=1, lr_schedule="constant")
    grid = grid_of(config)
    found(WELL, WELL)
    federate(config, grid)

    found(COLLAPSED, COLLAPSED)  # that is how hard the two utterances are
    federate(replace(config, num_server_rounds=2, resume=True, guard_utterances=2), grid)

    assert [len(r.contributions) for r in ledger_of(config).records] == [3, 3]
    assert "no checks of earlier rounds are known, round 1 counts as good" in observed.text
    _log(config).write_text('{"server_round": 1}\n')
    with pytest.raises(ConfigError, match="holds a line that is not a check of the guard: move the file away"):
        federate(replace(config, num_server_rounds=3, resume=True), grid)


@pytest.mark.parametrize("way", ["ledger", "snapshot"])
def test_a_device_that_comes_late_passes_rounds_that_were_undone(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, found: Any, way: str
) -> None:
    """An empty record, and one that takes two rounds back, among what it has missed."""
    less = {"trained_tensors": "*feature_projection.layer_norm*", "num_queries": 8} if way == "snapshot" else {}
    config = guarded(num_server_rounds=9, guard_every=2, late_joiners=1, late_round=9, message_bytes=1024, **less)
    grid = grid_of(config)
    found(WELL, COLLAPSED, WELL, COLLAPSED)

    federation = federate(config, grid)

    ledger = ledger_of(config)
    assert [len(r.contributions) for r in ledger.records] == [2, 2, 2, 2, 2, 2, 2, 2, 3]
    assert ledger.records[1].checksum == ledger.header.base_checksum
    assert ledger.records[5].checksum == ledger.records[3].checksum
    late = grid[2].engine
    assert late.have_round == 8
    assert (late.start_round == 8) is (way == "snapshot")
    _check_devices(federation, grid)


def test_an_unlabelled_run_that_collapses_ends_where_it_was_well(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, observed: Any
) -> None:
    """Far too high a learning rate makes a real model surer of itself, and worse."""
    config = guarded(
        num_server_rounds=2, num_queries=4, local_steps=3, batch_size=3, learning_rate=0.05, final_sync=True
    )
    grid = grid_of(config)

    federation = federate(config, grid)

    ledger = ledger_of(config)
    assert [dict(r.refused) for r in observed.reports] == [{"collapse": 3}] * 2
    assert observed.text.count("guard: collapse, loss") == 2
    assert "entropy fell from 1.35" in observed.text
    base = ledger.header.base_checksum
    assert [r.checksum for r in ledger.records] == [base, base] and not any(r.contributions for r in ledger.records)
    assert federation.checksum == _replayed(config, ledger) == base
    assert {(d.engine.have_round, d.engine.state.checksum()) for d in grid.devices.values()} == {(2, base)}


def test_many_refusals_in_a_row_stop_the_run(
    guarded: Settings, federate: Federate, ledger_of: Ledgers, found: Any
) -> None:
    config = guarded(num_server_rounds=9, max_bad_rounds=2)
    found(WELL, COLLAPSED, COLLAPSED)

    with pytest.raises(RunStopped, match="refused 2 times in a row"):
        federate(config)

    assert [r.checksum for r in ledger_of(config).records] == [ledger_of(config).header.base_checksum] * 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"loss": 1.051}, "loss 1.051"),
        ({"loss": float("nan")}, "loss nan"),
        ({"wer": 0.351}, "WER 35.1%"),
        ({"diversity": 0.84}, "diversity 0.84"),
        ({"loss": 1.2, "uncertainty": 0.6}, "guard: worse, loss 1.200"),
        ({"loss": 1.049, "wer": 0.349, "diversity": 0.851}, ""),
        ({"loss": 0.5, "wer": 0.1, "diversity": 1.0, "uncertainty": 0.01}, ""),
    ],
)
def test_what_is_worse(
    guarded: Settings, federate: Federate, found: Any, observed: Any, change: dict[str, float], word: str
) -> None:
    found(WELL, replace(WELL, **change))

    federate(guarded(num_server_rounds=1))

    assert (word in observed.text) and (bool(word) == ("guard:" in observed.text))


def test_many_small_steps_down_are_seen(guarded: Settings, federate: Federate, found: Any, observed: Any) -> None:
    """Each look is within tolerance of the one before."""
    found(*(replace(WELL, wer=0.30 + 0.04 * step) for step in range(4)))

    federate(guarded())

    assert [bool(r.refused) for r in observed.reports] == [False, True, True]


def test_the_guard_looks_at_a_real_model(guarded: Settings, federate: Federate) -> None:
    config = guarded(num_server_rounds=1, guard_utterances=2)

    federate(config)

    row = json.loads(_log(config).read_text().splitlines()[0])
    assert row["health"]["loss"] > 0 and row["health"]["uncertainty"] > 0
    assert 0 <= row["health"]["diversity"] <= 1


def test_a_guard_that_cannot_work_is_one_sentence(guarded: Settings, federate: Federate, observed: Any) -> None:
    with pytest.raises(ConfigError, match="server-model is off"):
        federate(guarded(server_model=False))
    with pytest.raises(DataError, match="split 'dev' was named"):
        check_before_start(guarded(guard_split="dev"))


def test_a_guard_on_the_reported_split_is_told(
    guarded: Settings, federate: Federate, found: Any, observed: Any
) -> None:
    found()

    federate(guarded(num_server_rounds=1, eval_split="test"))

    assert "guard-split and eval-split are both 'test'" in observed.text
