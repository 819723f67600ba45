"""A supervised run ends at its best: what raises the held-out loss is undone to the bit, wherever it is killed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid
from guard_log import LOSSES, guard_rows
from hypothesis import given
from hypothesis import strategies as st
from killed import Killed, kill

from server.guards.held_out_guard import HeldOutGuard, rise
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import fold_in
from zo_common.errors import ConfigError
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.record_codec import encode_record
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model
from zo_common.wire.plan import Status, decode_reply, encode_reply

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]


def _looks(config: RunConfig) -> list[tuple[int, bool]]:
    return [(row["server_round"], row["good"]) for row in guard_rows(config) if "closing" not in row]


def _closing(config: RunConfig) -> dict[str, Any]:
    return dict(guard_rows(config)[-1]["closing"])


def _replayed(config: RunConfig, ledger: Ledger) -> int:
    return replay(restore_state(load_model(config.model).model, ledger.header, threads=1), ledger)


def _check(federation: Federation, grid: FakeGrid, ledger: Ledger) -> None:
    """Server, replay and devices hold the same weights."""
    assert federation.global_model is not None
    assert federation.checksum == federation.global_model.state.checksum() == _replayed(federation.config, ledger)
    for node, member in federation.members.items():
        engine = grid.devices[node].engine
        federation._catch_up.begin_round(ledger.records)
        plan = replace(federation._plan(ledger.last_round + 1, member, 0.0), records=ledger.records)
        assert engine.sync(plan) is Status.OK
        assert engine.state.checksum() == federation.checksum


def test_a_rise_is_paired() -> None:
    found, best = np.array([11.0, 102.0, 1003.0]), np.array([10.0, 100.0, 1000.0])
    assert rise(found, best) == pytest.approx((2.0, 1 / math.sqrt(3)))
    assert rise(found[:1], best[:1]) == (1.0, math.inf)
    assert rise(best, best) == (0.0, 0.0)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-9, 9)), min_size=2, max_size=9))
def test_utterances_that_are_harder_are_no_noise(pairs: list[tuple[float, float]]) -> None:
    change, level = np.array(pairs).T
    assert rise(level + change, level) == pytest.approx(rise(change, np.zeros(len(change))), abs=1e-9)


def test_a_worse_round_is_undone_and_the_step_is_halved(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, found: Any, observed: Any
) -> None:
    config = guarded(num_server_rounds=4, lr_schedule="constant")
    grid = grid_of(config)
    left = found(1.0, 0.9, 0.95, 0.8, 0.7, 0.75)  # base, rounds 1 to 4, average of rounds 3 and 4

    federation = federate(config, grid)

    ledger = ledger_of(config)
    assert left == [] and _looks(config) == [(0, True), (1, True), (2, False), (3, True), (4, True)]
    assert [len(r.contributions) for r in ledger.records] == [3, 0, 3, 3]
    assert ledger.records[1].checksum == ledger.records[0].checksum
    assert [r.learning_rate for r in observed.reports] == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4])
    assert [dict(r.refused) for r in observed.reports] == [{}, {"worse": 3}, {}, {}]
    assert "round 2: guard: the held-out loss is 0.9500 (best 0.9000 after round 1)" in observed.text
    assert "this round is undone, learning rates are multiplied by 0.5 from here on" in observed.text
    assert _closing(config)["chosen"] == "last" and _closing(config)["record"] is False
    _check(federation, grid, ledger)
    summary = federation.guard.summary()
    assert summary is not None
    assert (summary["start"], summary["end"], summary["step_factor"]) == pytest.approx((1.0, 0.7, 0.5))
    assert summary["taken_back"] == [(2, 2)]


def test_a_rise_within_its_noise_is_kept(
    guarded: Settings, federate: Federate, ledger_of: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first utterance is better by 0.3, the others worse by 0.2: the mean rose by 0.033 ± 0.167."""
    looks = [np.ones(3), np.array([0.7, 1.2, 1.2])]
    monkeypatch.setattr(LOSSES, lambda *_: looks.pop(0))
    config = guarded(num_server_rounds=1)

    federate(config)

    assert _looks(config) == [(0, True), (1, True)]
    assert _closing(config)["chosen"] == "best"  # which is the base model
    assert ledger_of(config).records[1].checksum == ledger_of(config).header.base_checksum


def test_rounds_since_the_last_look_are_undone_by_a_record(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, found: Any
) -> None:
    config = guarded(num_server_rounds=8, guard_every=3)
    grid = grid_of(config)
    found(1.0, 0.9, math.nan, 0.8, 0.85)  # base, rounds 3, 6 and 8; the average of rounds 7 and 8

    federation = federate(config, grid)

    ledger = ledger_of(config)
    assert [len(r.contributions) for r in ledger.records] == [3, 3, 3, 3, 3, 6, 3, 3]
    assert ledger.records[5].checksum == ledger.records[2].checksum
    assert guard_rows(config)[2] == {
        "server_round": 6,
        "good": False,
        "of": "loss of 3 of test",
        "loss": None,
        "after": 3,
    }
    _check(federation, grid, ledger)


def test_bad_looks_in_a_row_end_the_run_with_its_best_state(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, found: Any, observed: Any
) -> None:
    config = guarded(num_server_rounds=9, lr_schedule="constant")
    grid = grid_of(config)
    left = found(1.0, 0.9, 0.9, 1.9, 1.9, 1.9, 1.8)  # of equal ones, the later is the best; the last: of an average

    federation = federate(config, grid)

    ledger = ledger_of(config)
    assert left == [] and ledger.last_round == 5 and ledger.records[4].checksum == ledger.records[1].checksum
    assert [r.learning_rate for r in observed.reports] == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4, 2.5e-4])
    assert "guard: 3 checks in a row were bad, the run ends early" in observed.text
    assert _closing(config) | {"why": ""} == {
        "chosen": "last", "record": False, "stopped": True, "rounds": 9, "why": "",
        "candidates": pytest.approx({"last": 0.9, "average": 1.8}),
    }  # fmt: skip
    _check(federation, grid, ledger)


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rise by less than 0.1 is beyond the noise."""
    name = "server.guards.held_out_guard.rise"
    monkeypatch.setattr(name, lambda found, best: (float((found - best).mean()), 0.05))


@pytest.fixture
def ended(
    guarded: Settings, grid_of: Grids, federate: Federate, found: Any, noisy: None
) -> Callable[[float], tuple[RunConfig, FakeGrid, Federation]]:
    """A run of six rounds of which the second was best; the loss of the average of the last two is given."""

    def run(average: float) -> tuple[RunConfig, FakeGrid, Federation]:
        config = guarded(num_server_rounds=6, lr_schedule="constant", final_sync=True)
        grid = grid_of(config)
        found(1.0, 0.9, 0.8, 0.8005, 0.801, 0.8005, 0.801, average)
        return config, grid, federate(config, grid)

    return run


def test_the_best_state_is_a_record_of_the_ledger(ended: Any, ledger_of: Ledgers) -> None:
    config, grid, federation = ended(0.9)

    ledger = ledger_of(config)
    assert [len(r.contributions) for r in ledger.records] == [3] * 6 + [12]
    assert ledger.records[6].checksum == ledger.records[1].checksum
    assert _closing(config)["chosen"] == "best"
    assert _closing(config)["why"] == (
        "the state after round 2, the best one evaluated: held-out loss 0.8000 (last 0.8010, average 0.9000)"
    )
    row = json.loads((Path(config.output) / "rounds.jsonl").read_text().splitlines()[-1])
    assert (row["server_round"], row["closing"], row["asked"]) == (7, "best", 0)
    assert {(d.engine.have_round, d.engine.state.checksum()) for d in grid.devices.values()} == {
        (7, federation.checksum)
    }
    _check(federation, grid, ledger)


def test_the_average_is_the_mean_of_the_states_to_a_unit_a_direction(
    ended: Any, ledger_of: Ledgers, federate: Federate
) -> None:
    config, grid, federation = ended(0.7)

    ledger = ledger_of(config)
    assert _closing(config)["chosen"] == "average" and ledger.last_round == 7
    directions = sum(c.coefficients.size for c in ledger.records[6].contributions)
    assert directions == 3 * 2 * 2  # of round 6 alone
    states = []
    for rounds in (5, 6, 7):
        state = restore_state(load_model(config.model).model, ledger.header, threads=1)
        replay(state, Ledger(ledger.header, ledger.records[:rounds]))
        states.append([(t.weight.double().numpy().copy(), 2.0**t.grid_exponent) for t in state.tensors])
    moved = 0.0
    for (fifth, unit), (sixth, _), (mean, _) in zip(*states, strict=True):
        assert np.abs(mean - (fifth + sixth) / 2).max() <= unit * directions
        moved = max(moved, np.abs(sixth - fifth).max() / (unit * directions))
    assert moved > 100  # the states differ by far more than that
    _check(federation, grid, ledger)


def test_a_finished_run_is_not_ended_twice_and_can_go_on(
    ended: Any, ledger_of: Ledgers, federate: Federate, found: Any
) -> None:
    config, grid, _ = ended(0.7)
    before = (Path(config.output) / "ledger.zo").read_bytes()

    found()  # no look at all
    federate(replace(config, resume=True), grid)
    assert (Path(config.output) / "ledger.zo").read_bytes() == before

    found(0.69, 0.71, 0.72)  # two rounds more, and their average
    federation = federate(replace(config, resume=True, num_server_rounds=8), grid)

    ledger = ledger_of(config)
    assert ledger.last_round == 10  # 8 rounds and two ends
    assert [len(r.contributions) for r in ledger.records[6:]] == [3, 3, 3, 3]
    assert ledger.records[9].checksum == ledger.records[7].checksum
    assert [row["closing"]["chosen"] for row in guard_rows(config) if "closing" in row] == ["average", "best"]
    rates = [
        json.loads(line)["learning_rate"] for line in (Path(config.output) / "rounds.jsonl").read_text().splitlines()
    ]
    assert rates == pytest.approx([1e-3] * 6 + [0.0, 1e-3, 1e-3, 0.0])
    _check(federation, grid, ledger)


@pytest.mark.usefixtures("noisy")
def test_the_schedule_of_a_run_that_goes_on_counts_rounds_with_devices(
    guarded: Settings, federate: Federate, ledger_of: Ledgers, found: Any
) -> None:
    """A linear schedule would be at zero in the ledger's third round of two."""
    config = guarded(num_server_rounds=1)
    found(1.0, 1.01, 0.9)
    federate(config)
    assert ledger_of(config).records[1].checksum == ledger_of(config).header.base_checksum

    federate(replace(config, num_server_rounds=2, resume=True))

    rows = [json.loads(line) for line in (Path(config.output) / "rounds.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 0.0, 5e-4])


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("salt", range(4))
def test_a_run_killed_at_every_record_is_that_of_a_run_never_killed(
    guarded: Settings,
    grid_of: Grids,
    federate: Federate,
    ledger_of: Ledgers,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    salt: int,
    every: int,
) -> None:
    """Losses are drawn by the weights' checksum, so that all that can happen happens for some salt."""

    def look(guard: HeldOutGuard) -> Any:
        return np.random.default_rng(fold_in(salt, guard._global_model.state.checksum())).normal(1.0, 0.2, 3) ** 2

    monkeypatch.setattr(HeldOutGuard, "_measure", look)
    config = guarded(num_server_rounds=6, guard_every=every, lr_schedule="constant")
    whole = replace(config, output=str(tmp_path / "whole"))
    federate(whole)
    expected = ledger_of(whole)

    grid = grid_of(config)
    kills = 0
    for server_round in range(1, expected.last_round + 1):
        for after in (False, True):
            with monkeypatch.context() as patch, pytest.raises(Killed):
                kill(patch, server_round, after=after)
                federate(replace(config, resume=True), grid)
            kills += 1
    federation = federate(replace(config, resume=True), grid)

    assert kills == 2 * expected.last_round
    assert [encode_record(r) for r in ledger_of(config).records] == [encode_record(r) for r in expected.records]
    assert guard_rows(config) == guard_rows(whole)
    _check(federation, grid, expected)


def test_far_too_large_a_step_is_taken_back(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, observed: Any
) -> None:
    """At 3.75e-3 no round is worse yet, from 4.5e-3 on the first ones lead out of the lattice; where between the two a
    round is taken back depends on the last bits of a processor's matrix products."""
    for number, rate in enumerate((4.1e-3, 4.25e-3, 4.0e-3, 4.2e-3)):
        large = {
            "learning_rate": rate,
            "lr_schedule": "constant",
            "clip_utterances": 0.0,
            "num_queries": 4,
            "scale": "unit",
        }
        config = guarded(num_server_rounds=9, local_steps=1, **large)
        grid = grid_of(config := replace(config, output=f"{config.output}-{number}"))
        federation = federate(config, grid)
        summary = federation.guard.summary()
        if summary is not None and summary["taken_back"]:
            break
    assert summary is not None
    assert summary["taken_back"] and summary["step_factor"] == 0.5 ** len(summary["taken_back"])
    assert summary["end"] < summary["start"]
    _check(federation, grid, ledger_of(config))


def test_a_device_that_lies_costs_its_round(
    guarded: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers, observed: Any
) -> None:
    config = guarded(num_server_rounds=3, lr_schedule="constant", learning_rate=1e-4)
    grid = grid_of(config)

    def lie(server_round: int, payload: bytes) -> bytes:
        if server_round != 2:
            return payload
        reply = decode_reply(payload)
        return encode_reply(replace(reply, projected_grads=-10 * reply.projected_grads))

    grid[0].after = lie

    federation = federate(config, grid)

    ledger = ledger_of(config)
    assert _looks(config)[2] == (2, False)
    assert [len(r.contributions) for r in ledger.records[:3]] == [3, 0, 3]
    summary = federation.guard.summary()
    assert summary is not None and summary["end"] < summary["start"]
    _check(federation, grid, ledger)


def test_a_first_loss_that_is_not_finite_is_named(guarded: Settings, federate: Federate, found: Any) -> None:
    found(math.inf)
    with pytest.raises(ConfigError, match=r"loss of test/metadata.csv:2, .* is not finite before the first round"):
        federate(guarded())


@pytest.mark.parametrize(
    "line",
    [
        '{"server_round": 0}',
        '{"server_round": "0", "good": true, "of": "x", "loss": 1.0, "losses": [1.0]}',
        '{"server_round": 0, "good": true, "of": "loss of 3 of test", "loss": 1.0, "losses": [1.0]}',
        '{"server_round": 0, "good": true, "of": "x", "loss": 1.0, "losses": [NaN]}',
        '{"server_round": 0, "good": true, "of": "x", "loss": 1.0, "losses": [1.0], "closing": {"record": 1}}',
        '{"server_round": 0, "good": false, "of": "x", "loss": null, "after": 7}',
    ],
)
def test_a_line_that_is_no_look_is_refused(guarded: Settings, federate: Federate, found: Any, line: str) -> None:
    config = guarded(num_server_rounds=1)
    found(1.0, 0.9)
    federate(config)
    (Path(config.output) / "guard.jsonl").write_text(line + "\n")

    with pytest.raises(ConfigError, match="holds a line that is not a check of the guard: move the file away"):
        federate(replace(config, resume=True, num_server_rounds=2))
