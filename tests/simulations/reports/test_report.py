"""The closing table and `result.json`: every number comes from what the run left on disk."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from server.rounds.federation import Federation
from simulations.reports.report import (
    chosen,
    group_tables,
    human_bytes,
    replayed_elsewhere,
    summary_table,
    traffic,
    write_result,
)
from zo_common.config.run import RunConfig

NUMBERS: dict[str, Any] = {
    "before": {"wer": 0.5, "raw_wer": 0.6, "cer": 0.0, "loss": 3.25},
    "after": {"wer": 0.4, "raw_wer": 0.6, "cer": 0.0, "loss": 3.0},
    "checksum": "00ff",
    "checksums_agree": True,
    "traffic": {"up": 1234, "down": 99, "serialised_up": 0, "serialised_down": 0, "fedavg_each_way": 2_500_000_000},
    "ledger_bytes": 4321,
    "minutes": 1.25,
}


def _printed(numbers: dict[str, Any]) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary_table(numbers, "a run"))
    return console.export_text()


def test_the_table_shows_the_numbers() -> None:
    said = _printed(NUMBERS)

    for word in ("50.0%", "40.0%", "-20.0%", "3.250", "3.000", "1.23 kB", "99 B", "2.5 GB", "4.32 kB", "agree", "00ff"):
        assert word in said


def test_the_headline_and_its_normaliser_come_first() -> None:
    named = {"headline": "cer", "normalizer": "Whisper's basic normaliser, marks kept", "raw_cer": 0.5}
    numbers = NUMBERS | {when: NUMBERS[when] | named | {"cer": 0.25} for when in ("before", "after")}

    said = _printed(numbers)

    labels = [line.split("│")[1].strip() for line in said.splitlines() if "%" in line]
    assert labels == ["CER", "CER, raw", "WER", "WER, raw"]
    caption = "error rates after Whisper's basic normaliser, marks kept; raw: of the texts as they are"
    assert caption in " ".join(said.split())


def test_the_interval_and_the_groups_are_shown_in_any_script() -> None:
    def row(value: str, low: float) -> dict[str, Any]:
        rates = {"utterances": 9, "units": 90, "before": 0.5, "after": 0.4, "change": -0.1, "interval": [low, 0.025]}
        return {"value": value, **rates}

    named = {"metric": "wer", "normalizer": "Whisper's English normaliser", "confidence": 0.95}
    groups = {"accent": [row("स्कॉटिश", -0.2), row("[bold]", -0.3), {**row("", 0.0), "interval": None}]}
    comparison = {**row("", -0.15), **named, "groups": groups}
    console = Console(width=120, record=True, file=io.StringIO())

    for table in group_tables(comparison):
        console.print(table)
    said = console.export_text()

    assert "−10.0" in _printed(NUMBERS | {"comparison": comparison})
    assert "−15.0 … +2.5" in _printed(NUMBERS | {"comparison": comparison})
    assert "WER by accent, Whisper's English normaliser" in said
    for word in ("स्कॉटिश", "[bold]", "not given", "−20.0 … +2.5", "−30.0 … +2.5", "50.0%", "40.0%"):
        assert word in said
    assert group_tables(None) == []


def test_checksums_that_differ_are_not_overlooked() -> None:
    assert "DIFFER" in _printed(NUMBERS | {"checksums_agree": False})

    failed = NUMBERS | {"checksums_agree": False, "replayed_checksum": "failed: no answer within 600 s"}
    assert "NOT REPLAYED" in _printed(failed) and "the replay failed: no answer within 600 s" in _printed(failed)


def test_a_run_without_evaluation_has_no_rates() -> None:
    assert "WER" not in _printed(NUMBERS | {"before": None, "after": None})


@pytest.mark.parametrize("when", ["before", "after"])
def test_where_only_the_loss_was_measured_that_is_shown(when: str) -> None:
    said = _printed(NUMBERS | {when: {"loss": 3.125, "loss_utterances": 3}})
    assert "WER" not in said and "3.125" in said


def test_a_verdict_is_in_the_title() -> None:
    verdict = "the result is worse than its start: WER 1.0% → 2.0%"
    assert "a run:" not in _printed(NUMBERS | {"verdict": ""})
    assert f"a run: {verdict}" in " ".join(_printed(NUMBERS | {"verdict": verdict}).split())


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234567, "1.23 MB"), (5e12, "5000 GB")]
)
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_traffic_is_the_mean_of_the_devices(tmp_path: Path) -> None:
    rows = [
        {"up": {"payload": 100, "serialised": 150}, "down": {"payload": 60, "serialised": 90}},
        {"up": {"payload": 50, "serialised": 75}, "down": {"payload": 140, "serialised": 170}},
    ]
    silent = {"payload": 0, "serialised": 0}
    rows.append({"up": silent, "down": silent, "closing": "best"})  # FedAvg would send nothing for that
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = traffic(tmp_path, devices=5, model_parameters=1000)

    assert (found.up, found.down, found.serialised_up, found.serialised_down) == (30, 40, 45, 52)
    assert found.fedavg_each_way == 2 * 4 * 1000

    (tmp_path / "introductions.jsonl").write_text('{}\n{"up": 1}\n')
    assert traffic(tmp_path, devices=5, model_parameters=1000) == found


def test_what_a_run_chose_is_read_from_its_rounds() -> None:
    rows: list[dict[str, Any]] = [
        {"learning_rate": 0.5, "told": {"7": "loss check: tail-tokens 32", "10": "loss check: tail-tokens 64"}},
        {"learning_rate": 0.25, "told": {"7": "something else"}},
        {"learning_rate": 0.0, "closing": "average"},
    ]

    assert chosen(rows) == {
        "learning_rates": [0.5, 0.25],
        "devices": {"10": "loss check: tail-tokens 64", "7": "loss check: tail-tokens 32"},
    }


def test_result_json_is_read_from_the_ledger(
    settings: Callable[..., RunConfig], federate: Callable[..., Federation]
) -> None:
    config = settings(num_server_rounds=1)
    federation = federate(config)
    output = Path(config.output)

    write_result(output, config, 3, {"minutes": 2}, "zo-asr-sim run x")

    result = json.loads((output / "result.json").read_text())
    assert federation.global_model is not None
    assert result["fingerprint"] == federation.global_model.fingerprint
    assert result["trained_weights"] == federation.global_model.state.num_elements
    assert (result["command"], result["devices"], result["minutes"]) == ("zo-asr-sim run x", 3, 2)
    assert RunConfig.from_mapping(result["config"]) == config
    assert result["chosen"] == {"learning_rates": [pytest.approx(config.learning_rate)], "devices": {}}
    assert result["hardware"]["cores"] >= 1
    assert result["versions"]["flwr"][0].isdigit()
    assert replayed_elsewhere(output, config.model, threads=1) == f"{federation.checksum:016x}"


def test_a_replay_that_fails_says_why(tmp_path: Path) -> None:
    assert replayed_elsewhere(tmp_path, "/nowhere", threads=1).startswith("failed: error: ledger")


def test_a_replay_that_takes_too_long_costs_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], timeout: float, **_: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)

    said = replayed_elsewhere(tmp_path, "model", threads=1)

    assert said.startswith("failed: no answer within 600 s; try again with zo-asr ledger verify ")
    assert said.endswith("ledger.zo --model model")
