"""The round loop on a fake grid: whoever answers, fails, lags or cheats, all that is recorded is what was valid."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, NeverAnswers

from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed, shared_seed
from zo_common.errors import RunStopped
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model
from zo_common.wire.plan import decode_reply, encode_reply

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]


def _replayed(ledger: Ledger, model: str) -> int:
    """The checksum that base and ledger give, in a model loaded anew."""
    loaded = load_model(model).model
    return replay(restore_state(loaded, ledger.header, threads=1), ledger)


def _clients(ledger: Ledger) -> list[list[int]]:
    return [[c.client_id for c in record.contributions] for record in ledger.records]


def _fail(error: Exception, *rounds: int) -> Callable[[int], None]:
    def before(server_round: int) -> None:
        if server_round in rounds:
            raise error

    return before


class TestRounds:
    def test_all_devices_in_all_rounds(
        self, settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
    ) -> None:
        config = settings()
        grid = grid_of(config)

        federation = federate(config, grid)

        ledger = ledger_of(config)
        assert _clients(ledger) == [[0, 1, 2]] * 3
        assert [(r.asked, r.answered) for r in observed.reports] == [(3, 3)] * 3
        assert [c.seed for c in ledger.records[1].contributions] == [client_seed(0, 2, c) for c in range(3)]
        assert len({r.checksum for r in ledger.records} | {ledger.header.base_checksum}) == 4
        assert federation.global_model is not None
        assert ledger.records[-1].checksum == federation.checksum == federation.global_model.state.checksum()
        assert _replayed(ledger, config.model) == federation.checksum
        # a device applies a round when it hears of it: it is one behind, exactly
        for partition in range(3):
            assert grid[partition].engine.state.checksum() == ledger.records[1].checksum

    def test_each_round_is_a_line_with_its_numbers(
        self, settings: Settings, federate: Federate, ledger_of: Ledgers
    ) -> None:
        config = settings(lr_schedule="linear")

        federate(config)

        rows = [json.loads(line) for line in (Path(config.output) / "rounds.jsonl").read_text().splitlines()]
        assert [row["server_round"] for row in rows] == [1, 2, 3]
        assert [row["learning_rate"] for row in rows] == [
            float(np.float32(config.learning_rate_at(r))) for r in (1, 2, 3)
        ]
        assert [row["checksum"] for row in rows] == [f"{r.checksum:016x}" for r in ledger_of(config).records]
        # 51 bytes and four scalars; the first plan carries no round, later ones carry the last
        assert [row["up"]["payload"] for row in rows] == [3 * (51 + 4 * 4)] * 3
        assert rows[0]["down"]["payload"] < rows[1]["down"]["payload"] == rows[2]["down"]["payload"]
        assert all(row["up"]["serialised"] > row["up"]["payload"] for row in rows)
        assert rows[-1]["ledger_bytes"] == (Path(config.output) / "ledger.zo").stat().st_size

    def test_shared_directions_are_one_contribution_a_round(
        self, settings: Settings, federate: Federate, ledger_of: Ledgers
    ) -> None:
        config = settings(directions="shared")

        federation = federate(config)

        ledger = ledger_of(config)
        assert [[(c.client_id, c.seed) for c in r.contributions] for r in ledger.records] == [
            [(0, shared_seed(0, r))] for r in (1, 2, 3)
        ]
        assert _replayed(ledger, config.model) == federation.checksum

    def test_a_sample_of_the_devices_is_asked(
        self, settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers, tmp_path: Path
    ) -> None:
        config = settings(clients_per_round=2, num_server_rounds=6)

        federate(config)
        federate(again := replace(config, output=str(tmp_path / "again")))
        federate(other := replace(config, output=str(tmp_path / "other"), run_seed=1))

        chosen = _clients(ledger_of(config))
        assert all(len(clients) == 2 for clients in chosen)
        assert {c for clients in chosen for c in clients} == {0, 1, 2}
        assert _clients(ledger_of(again)) == chosen
        assert ledger_of(again).records == ledger_of(config).records
        assert _clients(ledger_of(other)) != chosen

    def test_without_a_model_the_server_reaches_the_same_weights(
        self, settings: Settings, federate: Federate, ledger_of: Ledgers, tmp_path: Path
    ) -> None:
        with_model = settings()
        without = replace(with_model, server_model=False, output=str(tmp_path / "blind"))

        federation = federate(with_model)
        blind = federate(without)

        assert blind.global_model is None
        assert blind.checksum == 0
        seen, unseen = ledger_of(with_model), ledger_of(without)
        assert [r.contributions for r in unseen.records] == [r.contributions for r in seen.records]
        assert {r.checksum for r in unseen.records} == {0}
        assert unseen.header.tensors == seen.header.tensors
        assert _replayed(unseen, with_model.model) == federation.checksum


class TestFaults:
    def test_a_device_that_never_answers_costs_its_part_only(
        self, settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
    ) -> None:
        config = settings(round_timeout=4.0)
        grid = grid_of(config)
        grid[1].before = _fail(NeverAnswers(), 2)

        federation = federate(config, grid)

        assert _clients(ledger_of(config)) == [[0, 1, 2], [0, 2], [0, 1, 2]]
        assert dict(observed.reports[1].refused) == {"no-answer": 1}
        assert 4.0 <= observed.reports[1].seconds < 20
        assert _replayed(ledger_of(config), config.model) == federation.checksum

    def test_a_device_that_raises_costs_its_part_only(
        self, settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
    ) -> None:
        config = settings()
        grid = grid_of(config)
        grid[0].before = _fail(RuntimeError("the disk is gone"), 1, 3)

        federate(config, grid)

        assert _clients(ledger_of(config)) == [[1, 2], [0, 1, 2], [1, 2]]
        assert "the disk is gone" in observed.text
        assert dict(observed.reports[0].refused) == {"no-answer": 1}

    def test_a_device_that_went_offline_is_counted_once_and_asked_when_it_is_back(
        self, settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
    ) -> None:
        config = settings(num_server_rounds=4)
        grid = grid_of(config)
        grid.on_push = lambda server_round: setattr(grid[2], "online", False) if server_round == 2 else None
        grid[1].before = lambda server_round: setattr(grid[2], "online", True) if server_round == 3 else None

        federate(config, grid)

        assert _clients(ledger_of(config)) == [[0, 1, 2], [0, 1], [0, 1], [0, 1, 2]]
        assert [(r.asked, dict(r.refused)) for r in observed.reports[1:3]] == [(3, {"no-answer": 1}), (2, {})]

    def test_a_restarted_device_catches_up(
        self, settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
    ) -> None:
        config = settings(num_server_rounds=5, trained_tensors="encoder-early")  # a ledger, no snapshot
        grid = grid_of(config)
        restarts: list[int] = []

        def restart(server_round: int) -> None:
            if server_round == 5 and not restarts:
                restarts.append(server_round)
                grid[1].memory.back_to_base()

        grid[1].before = restart

        federate(config, grid)

        ledger = ledger_of(config)
        assert _clients(ledger) == [[0, 1, 2]] * 5
        assert grid[1].asked == [0, 1, 2, 3, 4, 5, 5]  # once more, with all rounds
        assert grid[1].engine.state.checksum() == ledger.records[3].checksum
        assert observed.reports[4].down.payload > observed.reports[3].down.payload
        assert not observed.reports[4].refused

    def test_late_joiners_catch_up(
        self, settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers
    ) -> None:
        config = settings(num_server_rounds=5, late_joiners=1, late_round=4)
        grid = grid_of(config)

        federation = federate(config, grid)

        assert _clients(ledger_of(config)) == [[0, 1]] * 3 + [[0, 1, 2]] * 2
        assert grid[2].engine.have_round == 4
        assert _replayed(ledger_of(config), config.model) == federation.checksum

    def test_drop_outs_are_the_same_each_time(
        self, settings: Settings, federate: Federate, ledger_of: Ledgers, observed: Any, tmp_path: Path
    ) -> None:
        config = settings(num_server_rounds=6, drop_out=0.4, run_seed=3)

        federate(config)
        federate(again := replace(config, output=str(tmp_path / "again")))

        present = _clients(ledger_of(config))
        assert 0 < sum(3 - len(clients) for clients in present) < 18
        assert "dropped out" in observed.text
        assert ledger_of(again).records == ledger_of(config).records

    def test_a_cheating_device_is_refused_and_the_others_count(
        self, settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Ledgers
    ) -> None:
        config = settings(max_scalar=100.0)
        grid = grid_of(config)

        def huge(server_round: int, payload: bytes) -> bytes:
            reply = decode_reply(payload)
            return encode_reply(replace(reply, projected_grads=np.full_like(reply.projected_grads, 1e9)))

        grid[0].after = huge
        grid[2].after = lambda server_round, payload: payload[:-3]

        federate(config, grid)

        assert _clients(ledger_of(config)) == [[1]] * 3
        assert dict(observed.reports[0].refused) == {"out-of-range": 1, "malformed": 1}

    def test_rounds_without_any_valid_reply_stop_the_run_with_the_reason(
        self, settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers
    ) -> None:
        config = settings(num_server_rounds=9)
        grid = grid_of(config)
        for partition in range(3):
            grid[partition].after = lambda server_round, payload: b"garbage"

        with pytest.raises(RunStopped, match=r"3 rounds in a row.*3 malformed"):
            federate(config, grid)

        ledger = ledger_of(config)
        assert _clients(ledger) == [[]] * 3
        assert {r.checksum for r in ledger.records} == {ledger.header.base_checksum}

    def test_a_good_round_in_between_is_a_new_start(
        self, settings: Settings, federate: Federate, grid_of: Grids, ledger_of: Ledgers
    ) -> None:
        config = settings(num_server_rounds=6)
        grid = grid_of(config)
        for partition in range(3):
            grid[partition].before = _fail(RuntimeError("away"), 1, 2, 4, 5)

        federate(config, grid)

        assert [len(clients) for clients in _clients(ledger_of(config))] == [0, 0, 3, 0, 0, 3]


def test_devices_tell_how_they_compute_their_loss_once(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any, ledger_of: Any
) -> None:
    config = settings(loss_check=True, epsilon="auto", estimator="two-sided", num_server_rounds=2)

    federate(config, grid_of(config))

    told = [word for word in observed.words if "loss check" in word]
    assert [word.split(": loss check: ")[0] for word in told] == ["round 1: client 0", "round 1: client 1"]
    assert "round 1: 1 more devices say something, see rounds.jsonl" in observed.words
    first, second = observed.reports
    assert sorted(first.told) == ["0", "1", "2"] and not second.told
    assert told[0] == f"round 1: client 0: {first.told['0']}"
    assert [report.answered for report in observed.reports] == [3, 3]
    assert ledger_of(config).header.epsilon == 0


def test_a_setting_that_does_not_fit_refuses_its_device_and_names_what_fits(
    settings: Settings, grid_of: Grids, observed: Any
) -> None:
    config = settings(loss_check=True, precision="bfloat16", epsilon=1e-6, max_bad_rounds=1)

    with pytest.raises(RunStopped):
        Federation(config, grid_of(config), observed.events).run()

    refused = [word for word in observed.words if "set precision=float32, which fits, or auto" in word]
    assert len(refused) == 3
