"""A run's event files for TensorBoard, read back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid

from server.app import run_on
from server.messaging.byte_counts import ByteCounts
from server.rounds.events import Events
from server.run.log import RoundReport, read_rows
from server.tracking.scalars import round_scalars
from server.tracking.tracker import RunFacts
from zo_common.config.run import RunConfig

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
)


def _events(output: Path) -> Any:
    return accumulator.EventAccumulator(str(output / "tensorboard")).Reload()


def _values(found: Any, name: str) -> dict[int, float]:
    return {event.step: event.value for event in found.Scalars(name)}


def _text(found: Any, name: str, place: int = -1) -> str:
    return str(found.Tensors(f"{name}/text_summary")[place].tensor_proto.string_val[0].decode())


def test_all_rounds_of_a_run_and_its_resume_are_in_the_event_files(ctc_settings: Settings, grid_of: Grids) -> None:
    config = ctc_settings(report_to="tensorboard", round_timeout=200.0, num_server_rounds=2)
    run_on(grid_of(config), config, Events())
    run_on(grid_of(config), replace(config, num_server_rounds=4, resume=True), Events())

    output = Path(config.output)
    rows, found = read_rows(output / "rounds.jsonl"), _events(output)
    losses = _values(found, "train/loss")
    assert losses == pytest.approx({row["server_round"]: row["loss"] for row in rows if row["asked"]})
    assert set(losses) == {1, 2, 3, 4}
    for direction in ("up", "down"):
        sent = _values(found, f"bytes/{direction}")
        assert sent == {row["server_round"]: row[direction]["payload"] for row in rows if row["asked"]}
    local_steps, queries = 2, 2
    directions = {row["server_round"]: row["answered"] * local_steps * queries for row in rows if row["asked"]}
    assert _values(found, "step/directions") == directions


def test_settings_evaluations_and_the_result_are_in_the_event_files(ctc_settings: Settings, grid_of: Grids) -> None:
    config = ctc_settings(report_to="tensorboard", round_timeout=200.0, num_server_rounds=1)
    run_on(grid_of(config), config, Events())

    output = Path(config.output)
    found, result = _events(output), json.loads((output / "evaluation.json").read_text())
    for name in ("loss", "wer", "cer"):
        rates = list(_values(found, f"evaluation/{name}").values())
        assert rates == pytest.approx([result["before"][name], result["after"][name]])
    low, high = result["comparison"]["interval"]
    assert list(_values(found, "comparison/interval_low").values()) == pytest.approx([low])
    assert list(_values(found, "comparison/interval_high").values()) == pytest.approx([high])
    run, end = json.loads(_text(found, "run")), json.loads(_text(found, "end"))
    assert run["num-queries"] == 2
    assert (run["devices"], run["train-utterances"], run["held-out-utterances"]) == (3, 9, 3)
    assert end["status"] == "finished"
    assert end["checksum"] == result["checksum"]
    assert "the guard checks eval-split 'test'" in _text(found, "warnings", 0)


def test_a_measured_step_and_the_guards_check_are_in_the_event_files(ctc_settings: Settings, grid_of: Grids) -> None:
    config = ctc_settings(
        report_to="tensorboard",
        round_timeout=200.0,
        num_server_rounds=2,
        learning_rate="auto",
        guard_split="test",
        guard_every=1,
    )
    run_on(grid_of(config), config, Events())

    output = Path(config.output)
    steps = {row["server_round"]: row for row in read_rows(output / "steps.jsonl")}
    checks = {row["server_round"]: row["loss"] for row in read_rows(output / "guard.jsonl") if "closing" not in row}
    found = _events(output)
    shares = {round_: 1 - row["noise_share"] for round_, row in steps.items()}
    assert _values(found, "step/signal_share") == pytest.approx(shares)
    curvatures = {round_: row["per_direction"] for round_, row in steps.items()}
    assert _values(found, "step/curvature_per_direction") == pytest.approx(curvatures)
    guarded = _values(found, "guard/loss")
    assert guarded
    assert guarded == pytest.approx({round_: checks[round_] for round_ in guarded})


def test_every_number_of_a_round_is_in_the_event_file(tmp_path: Path) -> None:
    from server.tracking.tensorboard import TensorBoardTracker

    refused = Counter({"late": 1, "no-answer": 2})
    sent = {"up": ByteCounts(410, 500), "down": ByteCounts(1170, 1300)}
    report = RoundReport(7, 0.5, 8, 5, 2.5, 1.25, refused=refused, **sent, ledger_bytes=900, seconds=9.5)
    tracker = TensorBoardTracker()
    tracker.on_run_start(RunFacts(tmp_path, {}, {}, 6, resumed=True))
    tracker.on_round(7, round_scalars(report, RunConfig(num_queries=8)))
    tracker.on_end({"status": "failed", "server_round": 7})

    found = _events(tmp_path)
    assert {name: _values(found, name) for name in found.Tags()["scalars"]} == {
        name: {7: value}
        for name, value in {
            "train/loss": 2.5,
            "step/learning_rate": 0.5,
            "step/directions": 8 * 5,
            "step/zero_quanta_share": 0,
            "devices/asked": 8,
            "devices/answered": 5,
            "devices/refused": 3,
            "refused/late": 1,
            "refused/no-answer": 2,
            "bytes/up": 410,
            "bytes/down": 1170,
            "bytes/ledger": 900,
            "time/round_seconds": 9.5,
            "privacy/epsilon_spent": 1.25,
        }.items()
    }
