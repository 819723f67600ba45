"""Runs with trained-tensors=auto: who measures, what is chosen, and that a restart changes nothing of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid, Memory
from listening import listen

from server.rounds import calibration
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.estimator.calibration import GroupMeasure
from zo_common.estimator.tensor_choice import TensorChoice
from zo_common.lattice.trained import DEFAULT
from zo_common.ledger.file import read_ledger
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model
from zo_common.wire.calibration import CalibrationAnswer, decode_answer, encode_answer
from zo_common.wire.plan import Status

Settings = Callable[..., RunConfig]
PATTERN = "encoder-first/bias@-1^2,encoder-first/norm"


def fresh_grid(config: RunConfig) -> FakeGrid:
    """Three devices that have never been asked anything."""
    return FakeGrid(config, [Memory() for _ in range(3)])


def choose(monkeypatch: pytest.MonkeyPatch, seen: list[Any] | None = None, pattern: str = PATTERN) -> None:
    """Whatever is measured, the same is chosen; `seen` gets the measures."""

    def chosen(measures: Any, shape: Any) -> TensorChoice:
        if seen is not None:
            seen.append((measures, shape))
        return TensorChoice(pattern, 0.1, "by the test")

    monkeypatch.setattr(calibration, "choose_tensors", chosen)


def federate(config: RunConfig, grid: FakeGrid) -> tuple[Federation, list[str]]:
    words = listen("server")
    federation = Federation(config, grid)
    federation.run()
    return federation, words


def header_of(config: RunConfig) -> Any:
    return read_ledger(Path(config.output) / "ledger.zo").header


class TestChoice:
    def test_all_train_what_the_calibration_chose_and_a_replay_agrees(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, ledger_of: Callable[[RunConfig], Ledger]
    ) -> None:
        seen: list[Any] = []
        choose(monkeypatch, seen)
        config = settings(trained_tensors="auto")
        grid = fresh_grid(config)

        federation, words = federate(config, grid)

        [(measures, shape)] = seen
        assert set(measures) == {"encoder-decoder-bias"}  # three devices have the passes for one group
        assert (shape.directions, shape.devices, shape.rounds) == (2 * 2 * 3, 3, 3)
        ledger = ledger_of(config)
        assert ledger.header.pattern == PATTERN
        assert all(t.name.endswith((".bias", ".weight")) and ".encoder." in t.name for t in ledger.header.tensors)
        assert {t.scale_exponent for t in ledger.header.tensors} == {-1, 0}
        assert federation.last_round == 3
        assert all(len(record.contributions) == 3 for record in ledger.records)
        loaded = load_model(config.model).model
        assert replay(restore_state(loaded, ledger.header, threads=1), ledger) == federation.checksum
        assert any("by the test" in word for word in words)

    def test_numbers_that_tell_nothing_leave_the_default(self, settings: Settings) -> None:
        config = settings(trained_tensors="auto", num_server_rounds=1)
        federate(config, fresh_grid(config))
        assert header_of(config).pattern.startswith(DEFAULT)
        kept = json.loads((Path(config.output) / "tensors.json").read_text())
        assert kept["pattern"] == header_of(config).pattern
        assert set(kept["groups"]) == {"encoder-decoder-bias"}

    def test_without_a_model_the_server_chooses_too(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        choose(monkeypatch)
        config = settings(trained_tensors="auto", server_model=False, num_server_rounds=2)
        federation, _ = federate(config, fresh_grid(config))
        assert header_of(config).pattern == PATTERN
        assert federation.last_round == 2

    def test_devices_that_restart_train_the_same_tensors(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        choose(monkeypatch)
        config = settings(trained_tensors="auto")
        grid = fresh_grid(config)

        def forget(server_round: int) -> None:
            if server_round == 2:
                grid[1].memory.engines.clear()

        grid[1].before = forget
        federation, _ = federate(config, grid)
        assert federation.last_round == 3
        assert grid[1].engine.config.trained_tensors == PATTERN


class TestRestart:
    def test_a_resumed_run_has_its_ledgers_choice(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        choose(monkeypatch)
        config = settings(trained_tensors="auto", num_server_rounds=1)
        grid = fresh_grid(config)
        federate(config, grid)
        (Path(config.output) / "tensors.json").unlink()
        choose(monkeypatch, pattern="encoder-first/norm")

        federation, words = federate(replace(config, resume=True, num_server_rounds=2), grid)

        assert federation.last_round == 2
        assert header_of(config).pattern == PATTERN
        assert not any("calibration" in word for word in words)

    def test_a_choice_without_a_ledger_stands(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        choose(monkeypatch)
        config = settings(trained_tensors="auto", num_server_rounds=1)
        grid = fresh_grid(config)
        federate(config, grid)
        (Path(config.output) / "ledger.zo").unlink()
        choose(monkeypatch, pattern="encoder-first/norm")

        federate(config, grid)

        assert header_of(config).pattern == PATTERN

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"run": 1}'])
    def test_a_torn_choice_is_made_again(self, settings: Settings, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        choose(monkeypatch)
        config = settings(trained_tensors="auto", num_server_rounds=1)
        Path(config.output).mkdir()
        (Path(config.output) / "tensors.json").write_text(text)
        federate(config, fresh_grid(config))
        assert header_of(config).pattern == PATTERN

    def test_a_used_ledger_is_refused_before_devices_are_asked(self, settings: Settings) -> None:
        config = settings(trained_tensors="auto")
        Path(config.output).mkdir()
        (Path(config.output) / "ledger.zo").write_bytes(b"x")
        grid = fresh_grid(config)
        with pytest.raises(ConfigError, match="exists already"):
            federate(config, grid)
        assert not grid[0].asked


class TestDevicesThatAreNotCounted:
    def test_one_that_lies_about_what_it_was_asked(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Any] = []
        choose(monkeypatch, seen)
        config = settings(trained_tensors="auto", num_server_rounds=1)
        grid = fresh_grid(config)

        def lie(server_round: int, payload: bytes) -> bytes:
            if payload[:2] != b"ZL":
                return payload
            told = decode_answer(payload)
            measure = GroupMeasure(10, 3, 1e9, 0.0, 1e-9, 0.0, 0.0)
            return encode_answer(CalibrationAnswer(Status.OK, told.seed, told.client_id, {"rest/norm": measure}))

        grid[1].after = lie
        _, words = federate(config, grid)
        assert any("device 1 is not counted: it answers for groups" in word for word in words)
        assert seen[0][0] == {}  # of three devices two are too few

    def test_malformed_bytes(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        choose(monkeypatch)
        config = settings(trained_tensors="auto", num_server_rounds=1)
        grid = fresh_grid(config)
        grid[0].after = lambda server_round, payload: b"ZL\x09" if payload[:2] == b"ZL" else payload
        _, words = federate(config, grid)
        assert any("device 0 is not counted: calibration's answer has version 9" in word for word in words)


class TestPrivacy:
    def test_devices_are_not_asked_under_privacy(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        config = settings(
            trained_tensors="auto",
            privacy="device",
            noise_multiplier=1.0,
            directions="shared",
            weighting="uniform",
            num_server_rounds=1,
        )
        grid = fresh_grid(config)
        words = listen("server")
        asked: list[str] = []
        grid_push = grid.push_messages

        def push(messages: Any) -> Any:
            messages = list(messages)
            asked.extend(m.metadata.message_type for m in messages)
            return grid_push(messages)

        monkeypatch.setattr(grid, "push_messages", push)
        Federation(config, grid).close()
        assert "query.calibrate" not in asked
        assert header_of(config).pattern == DEFAULT
        assert sum("devices are not asked" in word for word in words) == 1

    def test_the_servers_own_speech_is_measured(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Any] = []
        choose(monkeypatch, seen)
        monkeypatch.setattr(calibration, "LEAST_DEVICES", 1)
        config = settings(
            trained_tensors="auto",
            privacy="device",
            noise_multiplier=1.0,
            directions="shared",
            weighting="uniform",
            guard_split="test",
        )
        Federation(config, fresh_grid(config)).close()
        assert len(seen[0][0]) >= 3
        assert header_of(config).pattern == PATTERN
