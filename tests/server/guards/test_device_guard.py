"""A run without held-out speech on its server is guarded on its devices', wherever it is killed."""

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
from guard_log import guard_rows
from killed import Killed, kill
from toy_engine import toy_engine
from toy_fleet import TOY, LossOf, held_out_losses, toy_grids

from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import fold_in
from zo_common.errors import ConfigError, RunStopped
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.record_codec import encode_record
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]
DEVICES = 4


@pytest.fixture
def guarded(settings: Settings) -> Settings:
    """Settings of a run of toy devices with a server that has no model."""
    return lambda **changes: settings(**{**TOY, "guard_every": 1, "lr_schedule": "constant", **changes})


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunConfig], FakeGrid]:
    """Grids of four toy devices."""
    return toy_grids(monkeypatch, DEVICES)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[LossOf], list[tuple[int, int, int]]]:
    """Gives devices their held-out losses; what was asked, as clients, rounds and checksums."""
    return lambda loss_of: held_out_losses(monkeypatch, loss_of)


def _by_round(**of_rounds: float) -> LossOf:
    """Losses after rounds, `r3=0.8`, a little different for each device; those of other rounds are 0.5."""
    return lambda client, server_round, _: of_rounds.get(f"r{server_round}", 0.5) + 0.001 * client * (server_round + 1)


def _looks(config: RunConfig) -> list[tuple[int, bool]]:
    return [(row["server_round"], row["good"]) for row in guard_rows(config) if "good" in row and "closing" not in row]


def _closing(config: RunConfig) -> dict[str, Any]:
    return dict(guard_rows(config)[-1]["closing"])


def _lines(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / "rounds.jsonl").read_text().splitlines()]


def _states(ledger: Ledger) -> list[int]:
    """Checksums of the toy weights before the first round and after each."""
    engine = toy_engine()
    found = [engine.state.checksum()]
    for record in ledger.records:
        engine.state.apply(record.updates())
        found.append(engine.state.checksum())
    return found


def test_worse_rounds_are_undone_by_a_record_and_the_step_is_halved(
    guarded: Settings, toys: Any, federate: Federate, ledger_of: Ledgers, losses: Any, observed: Any
) -> None:
    config = guarded(num_server_rounds=4, final_sync=True)
    grid = toys(config)
    # round 3 undoes round 2; 6 is the average of rounds 4 and 5, 7 takes it back
    asked = losses(_by_round(r0=1.0, r1=0.9, r2=0.95, r4=0.8, r5=0.7, r6=0.9))

    federation = federate(config, grid)

    ledger = ledger_of(config)
    states = _states(ledger)
    assert _looks(config) == [(0, True), (1, True), (2, False), (4, True), (5, True)]
    assert [len(r.contributions) for r in ledger.records[:5]] == [4, 4, 4, 4, 4]
    assert states[3] == states[1] and states[7] == states[5] and len(states) == 8
    assert len({states[n] for n in (0, 1, 2, 4, 5, 6)}) == 6
    assert all(states[server_round] == checksum for _, server_round, checksum in asked)
    assert {d.engine.state.checksum() for d in grid.devices.values()} == {states[5]}
    rates = [row["learning_rate"] for row in _lines(config)]
    assert rates == pytest.approx([0.01, 0.01, 0.0, 0.005, 0.005, 0.0, 0.0])
    assert [row["closing"] for row in _lines(config)] == ["", "", "good", "", "", "average", "last"]
    assert "round 2: guard: the held-out loss of 4 devices is 0.9545 (best 0.9030 after round 1), higher by" in (
        observed.text
    )
    assert "rounds 2 to 2 are undone by round 3, learning rates are multiplied by 0.5 from here on" in observed.text
    assert _closing(config) | {"why": ""} == {
        "chosen": "last", "record": True, "stopped": False, "rounds": 4, "why": "",
        "candidates": pytest.approx({"last": 0.709, "average": 0.9105}),
    }  # fmt: skip
    summary = federation.guard.summary()
    assert summary is not None
    assert (summary["taken_back"], summary["step_factor"]) == ([(2, 3)], 0.5)
    assert summary["start"] == pytest.approx(1.0015) and summary["end"] < 0.72
    assert summary["look_bytes"]["up"] == 6 * DEVICES * 90
    progress = federation.guard.progress()
    assert progress is not None
    assert [(p.after, p.server_round, p.step_factor) for p in progress] == [
        (0, 1, 1.0), (1, 2, 1.0), (3, 4, 0.5), (4, 5, 0.5),
    ]  # fmt: skip
    # of four devices, each a little different, against the weights that the rounds began with
    assert [p.change for p in progress] == pytest.approx([-0.0985, 0.0515, -0.0955, -0.0985])
    assert all(0 < p.error < 0.01 for p in progress)


def test_a_rise_within_its_noise_is_kept(
    guarded: Settings, toys: Any, federate: Federate, losses: Any, ledger_of: Ledgers
) -> None:
    """Differences of 1, −0.1, 1 and 0.1: the mean rose by 0.5 ± 0.29, and is higher than the best."""
    config = guarded(num_server_rounds=1)
    losses(lambda client, server_round, _: 1.0 + server_round * (1.0, -0.1, 1.0, 0.1)[client])

    federate(config, toys(config))

    assert _looks(config) == [(0, True), (1, True)]
    assert _closing(config)["chosen"] == "best"
    states = _states(ledger_of(config))
    assert len(states) == 3 and states[2] == states[0]


def test_a_device_that_lies_takes_nothing_back(
    guarded: Settings, toys: Any, federate: Federate, losses: Any, ledger_of: Ledgers
) -> None:
    config = guarded(num_server_rounds=3)
    losses(lambda client, server_round, _: 1e5 * server_round if client == 2 else 1.0 - 0.1 * server_round)

    federate(config, toys(config))

    assert all(good for _, good in _looks(config)) and _closing(config)["chosen"] == "last"


def test_losses_that_are_not_finite_are_undone_with_all_rounds_since(
    guarded: Settings, toys: Any, federate: Federate, losses: Any, ledger_of: Ledgers, observed: Any
) -> None:
    config = guarded(num_server_rounds=4, guard_every=2)
    losses(_by_round(r0=1.0, r2=math.nan, r5=0.8, r6=0.9))

    federate(config, toys(config))

    states = _states(ledger_of(config))
    assert _looks(config) == [(0, True), (2, False), (5, True)]
    assert states[3] == states[0] and "the held-out loss of 4 of 4 devices is not finite" in observed.text
    assert guard_rows(config)[1] | {"of": ""} == {"server_round": 2, "good": False, "of": "", "loss": None, "after": 0}


def test_bad_looks_in_a_row_end_the_run_with_its_best_state(
    guarded: Settings, toys: Any, federate: Federate, losses: Any, ledger_of: Ledgers, observed: Any
) -> None:
    config = guarded(num_server_rounds=9)
    losses(_by_round(r0=1.0, r1=0.9, r2=1.9, r4=1.9, r6=1.9))

    federate(config, toys(config))

    states = _states(ledger_of(config))
    assert len(states) == 8 and states[7] == states[1]
    assert [row["learning_rate"] for row in _lines(config)] == pytest.approx([0.01, 0.01, 0, 0.005, 0, 0.0025, 0])
    assert "guard: 3 checks in a row were bad, the run ends early" in observed.text
    assert _closing(config)["stopped"] is True and _closing(config)["chosen"] == "last"


def test_the_average_stays_where_it_is_better(
    guarded: Settings, toys: Any, federate: Federate, losses: Any, ledger_of: Ledgers
) -> None:
    config = guarded(num_server_rounds=3)
    grid = toys(config)
    losses(_by_round(r0=1.0, r1=0.9, r2=0.8, r3=0.7, r4=0.6))
    federate(config, grid)

    assert _closing(config)["chosen"] == "average" and ledger_of(config).last_round == 4
    before = (Path(config.output) / "ledger.zo").read_bytes()
    asked = losses(_by_round())
    federate(replace(config, resume=True), grid)
    assert (Path(config.output) / "ledger.zo").read_bytes() == before and not asked

    losses(_by_round(r5=0.55, r6=0.5, r7=0.9))
    federate(replace(config, resume=True, num_server_rounds=5), grid)
    states = _states(ledger_of(config))
    assert len(states) == 9 and states[8] == states[6]  # two rounds more, their average, and back
    assert [row["closing"] for row in _lines(config)] == ["", "", "", "average", "", "", "average", "last"]


def test_a_look_that_too_few_answer_is_none(
    guarded: Settings, toys: Any, federate: Federate, losses: Any, ledger_of: Ledgers, observed: Any
) -> None:
    """The last state was not looked at: the run ends with the best one that was."""
    config = guarded(num_server_rounds=3)
    by_round = _by_round(r0=1.0, r1=0.9, r2=5.0, r3=5.0)
    losses(lambda client, rnd, state: None if rnd > 1 and client else by_round(client, rnd, state))

    federate(config, toys(config))

    states = _states(ledger_of(config))
    assert _looks(config) == [(0, True), (1, True)]
    assert [row.get("missed") for row in guard_rows(config)[:4]] == [None, None, 1, 1]
    assert "round 2: guard: no check: 1 of the 4 devices of the best check answered" in observed.text
    assert _closing(config)["chosen"] == "best" and states[-1] == states[1]


@pytest.mark.parametrize("answering", [0, 1])
def test_without_two_devices_that_answer_there_is_no_guard(
    guarded: Settings, toys: Any, federate: Federate, losses: Any, ledger_of: Ledgers, observed: Any, answering: int
) -> None:
    config = guarded(num_server_rounds=2)
    asked = losses(lambda client, *_: 1.0 if client < answering else None)

    federation = federate(config, toys(config))

    assert len(asked) == DEVICES and federation.guard.summary() is None and ledger_of(config).last_round == 2
    words = [word for word in observed.words if "no guard" in word]
    assert len(words) == 1 and words[0].startswith(
        f"no guard: {answering} device(s) answered with a held-out loss, expected 2 (client "
    )


def test_a_stopped_run_goes_to_its_best_state_and_can_go_on(
    guarded: Settings, toys: Any, federate: Federate, losses: Any, ledger_of: Ledgers
) -> None:
    config = guarded(num_server_rounds=9, guard_every=4)
    grid = toys(config)
    losses(lambda client, rnd, _: 1.0 - 0.1 * (rnd in (4, 6)) + 0.4 * (rnd == 6) * (1.0, -0.1, 1.0, 0.1)[client])
    for number in range(DEVICES):
        grid[number].after = lambda rnd, payload: b"garbage" if payload[:2] == b"ZR" and rnd > 5 else payload

    with pytest.raises(RunStopped, match="3 rounds in a row"):
        federate(config, grid)

    assert [r.server_round for r in ledger_of(config).records if not r.contributions] == [6, 7, 8]
    states = _states(ledger_of(config))
    assert len(states) == 10 and states[9] == states[4] != states[8]
    assert (_closing(config)["chosen"], _closing(config)["stopped"], _closing(config)["rounds"]) == ("best", True, 8)
    for number in range(DEVICES):
        grid[number].after = lambda rnd, payload: payload

    losses(_by_round())
    federate(replace(config, resume=True), grid)
    assert [row["closing"] for row in _lines(config)] == [""] * 8 + ["best", ""]  # the ninth round of nine
    assert _looks(config)[-1] == (10, True) and _closing(config)["rounds"] == 9


def test_an_average_that_was_not_looked_at_is_judged_before_a_run_goes_on(
    guarded: Settings, toys: Any, federate: Federate, losses: Any, ledger_of: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = guarded(num_server_rounds=3)
    grid = toys(config)
    losses(_by_round(r0=1.0, r1=0.9, r2=0.8, r3=0.7, r4=0.9, r6=0.6, r7=0.5, r8=0.9))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill(patch, 4, after=True)
        federate(config, grid)

    federate(replace(config, resume=True, num_server_rounds=5), grid)

    states = _states(ledger_of(config))
    assert [row["closing"] for row in _lines(config)[4:]] == ["last", "", "", "average", "last"]
    assert len(states) == 10 and states[5] == states[3] and states[9] == states[7]
    assert [row["closing"]["rounds"] for row in guard_rows(config) if "closing" in row] == [3, 5]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("salt", range(4))
def test_a_run_killed_at_every_record_is_that_of_a_run_never_killed(
    guarded: Settings,
    toys: Any,
    federate: Federate,
    ledger_of: Ledgers,
    losses: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    salt: int,
    every: int,
) -> None:
    """Losses and silence are drawn by the weights' checksum, so that all that can happen happens for some salt."""

    def drawn(client: int, _: int, checksum: int) -> float | None:
        draw = np.random.default_rng(fold_in(salt, checksum))
        common, silent = draw.normal(1.0, 0.2) ** 2, draw.random() < 0.15 and checksum != toy_engine().base_checksum
        own = np.random.default_rng(fold_in(salt, checksum, client)).normal(0.0, 0.02)
        return None if silent and client else float(abs(common + own))

    losses(drawn)
    config = guarded(num_server_rounds=6, guard_every=every)
    whole = replace(config, output=str(tmp_path / "whole"))
    federate(whole, toys(whole))
    expected = ledger_of(whole)

    grid = toys(config)
    for server_round in range(1, expected.last_round + 1):
        for after in (False, True):
            with monkeypatch.context() as patch, pytest.raises(Killed):
                kill(patch, server_round, after=after)
                federate(replace(config, resume=True), grid)
    federate(replace(config, resume=True), grid)

    assert [encode_record(r) for r in ledger_of(config).records] == [encode_record(r) for r in expected.records]
    assert guard_rows(config) == guard_rows(whole)


def test_with_a_model_on_the_server_what_is_undone_is_checked(
    ctc_settings: Settings,
    grid_of: Grids,
    federate: Federate,
    ledger_of: Ledgers,
    monkeypatch: pytest.MonkeyPatch,
    observed: Any,
) -> None:
    """Real devices with an utterance each; their losses are given by the weights."""
    config = ctc_settings(num_server_rounds=3, evaluate_on="clients", guard_every=1, lr_schedule="constant")
    grid = grid_of(config)
    looked: list[int] = []
    given = [1.0, 0.9, 1.5, 0.8, 0.85]  # the base, rounds 1 to 3, the average of rounds 1 and 3

    def look(model: Any, data: Any, **_: Any) -> Any:
        looked.append(len(data))
        return np.array([given[(len(looked) - 1) // 3] + 0.001 * len(looked)])

    monkeypatch.setattr("client.device.engine.utterance_losses", look)

    federation = federate(config, grid)

    ledger = ledger_of(config)
    checksums = [ledger.header.base_checksum, *(record.checksum for record in ledger.records)]
    assert looked == [1] * 15 and "guard: checks 3 held-out utterances of 3 devices" in observed.text
    assert _looks(config) == [(0, True), (1, True), (2, False), (4, True)]
    assert checksums[3] == checksums[1] and checksums[6] == checksums[4] and len(checksums) == 7
    state = restore_state(load_model(config.model).model, ledger.header, threads=1)
    assert replay(state, ledger) == federation.checksum


def test_devices_look_at_their_own_split(
    ctc_settings: Settings, grid_of: Grids, federate: Federate, ledger_of: Ledgers
) -> None:
    """Nothing is replaced: the losses are those that an evaluation finds."""
    config = ctc_settings(num_server_rounds=1, server_model=False, guard_split="test", eval_split="")
    grid = grid_of(config)

    federate(config, grid)

    first = guard_rows(config)[0]
    assert sorted(first["devices"]) == ["0", "1", "2"] and all(count == 1 for _, count in first["devices"].values())
    assert first["loss"] == pytest.approx(sum(total for total, _ in first["devices"].values()) / 3)


@pytest.mark.parametrize(
    "line",
    [
        '{"server_round": 0}',
        '{"server_round": 0, "of": "x", "missed": "1"}',
        '{"server_round": 0, "of": "x", "trial": null}',
        '{"server_round": 0, "good": false, "of": "x", "loss": null}',
        '{"server_round": 0, "good": true, "of": "x", "loss": 1.0, "losses": [1.0]}',
        '{"server_round": 0, "good": true, "of": "x", "loss": 1.0, "devices": {}, "broken": []}',
        '{"server_round": 0, "good": true, "of": "x", "loss": 1.0, "devices": {"1": [1.0, 0]}, "broken": []}',
        '{"server_round": 0, "good": true, "of": "x", "loss": 1.0, "devices": {"1": [NaN, 1]}, "broken": []}',
    ],
)
def test_a_line_that_is_no_look_is_refused(
    guarded: Settings, toys: Any, federate: Federate, losses: Any, line: str
) -> None:
    config = guarded(num_server_rounds=1)
    losses(_by_round(r0=1.0))
    grid = toys(config)
    federate(config, grid)
    (Path(config.output) / "guard.jsonl").write_text(line + "\n")

    with pytest.raises(ConfigError, match="holds a line that is not a check of the guard: move the file away"):
        federate(replace(config, resume=True, num_server_rounds=2), grid)
