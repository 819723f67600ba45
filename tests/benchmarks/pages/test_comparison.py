"""The README's table is made of rows: what has none says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pages import comparison

SENT = {"ours, K = 1": 82, "FedAvg": 151_000_000, "LoRA r = 8": 590_000}
MEMORY = {"ZO step": 1.01, "Adam": 4.75}


def _learned(method: str, before: float, after: float) -> dict[str, Any]:
    about = {"task": "wm", "devices": 8, "learning_rate": 0.0, "ended": False, "curve": [[0, 1.0]]}
    return about | {"method": method, "budget": {"passes": 64}, "before": {"wer": before}, "after": {"wer": after}}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sent = {name: {"payload_up": size, "payload_down": 2 * size} for name, size in SENT.items()}
    (tmp_path / "traffic.json").write_text(json.dumps({"bytes": sent}))
    rows = [{"row": f"memory, {name} ÷ inference, all, batch 8", "median": ratio} for name, ratio in MEMORY.items()]
    (tmp_path / "memory.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(comparison, "RESULTS", tmp_path)
    monkeypatch.setattr(comparison, "load", list)
    return tmp_path


def test_what_is_not_measured_is_said(results: Path) -> None:
    lines = comparison.comparison_block().splitlines()

    assert lines[2] == "| base model | not measured yet | – | – | – |"
    assert lines[3] == "| this program | not measured yet | 82 B | 164 B | 1.01 × inference |"
    assert lines[5] == "| FedAvg, LoRA of rank 8 (Adam) | not measured yet | 590 kB | 1.18 MB | not measured yet |"


def test_rows_fill_the_table(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [_learned("auto", 0.5, 0.25), _learned("auto", 0.5, 0.35), _learned("fedavg-all", 0.5, 0.2)]
    monkeypatch.setattr(comparison, "load", lambda: rows)
    steps = {name: {"peak": peak, "seconds": 1.0} for name, peak in (("default", 2e8), ("all", 8e8), ("lora", 6e8))}
    (results / "learning_memory.json").write_text(json.dumps({"models": {comparison.MODEL: steps}}))

    lines = comparison.comparison_block().splitlines()

    assert lines[2].startswith("| base model | 50.0% |")
    assert lines[3].startswith("| this program | 30.0% ± 7.1% | 82 B |") and lines[3].endswith("| 200 MB |")
    assert lines[4].startswith("| FedAvg, all weights (Adam) | 20.0% |") and lines[4].endswith("| 800 MB |")
    assert lines[5].startswith("| FedAvg, LoRA of rank 8 (Adam) | not measured yet |")
