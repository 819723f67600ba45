"""The tables of privacy and hostile devices say what their rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.rows import spread
from benchmarks.pages import privacy as privacy_report
from benchmarks.pages.readme import ROOT


def _utility_cell(level: str, target: float | None, devices: int, wer: list[float]) -> dict[str, Any]:
    private = {} if target is None else {"noise_std": 3.0, "scalar_std": 2.0, "slow_down": 3.25, "clip_norm": 1.0}
    measured = {name: spread(wer) for name in ("wer", "cer", "loss")}
    about = {
        "level": level,
        "target": target,
        "devices": devices,
        "noise_multiplier": 1.5,
        "before": {"wer": 0.5, "cer": 0.25, "loss": 1.25},
    }
    return about | private | measured


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(privacy_report, "RESULTS", tmp_path)
    return tmp_path


def test_nothing_measured_is_said(results: Path) -> None:
    assert "Not measured yet" in privacy_report.UTILITY["utility"]()
    assert "Not measured yet" in privacy_report.HOSTILE["resistance"]()


def test_errors_stand_under_their_devices_and_beside_their_epsilon(results: Path) -> None:
    cells = [
        _utility_cell("none", None, 8, [0.3, 0.4]),
        _utility_cell("device", 2.0, 8, [0.6, 0.6]),
        _utility_cell("none", None, 64, [0.2, 0.2]),
        _utility_cell("device", 2.0, 64, [0.25, 0.35]),
    ]
    settings: dict[str, Any] = {"trained_tensors": "x", "rounds": 6, "queries": 8, "utterances": 64, "delta": 1e-3}
    settings["learning_rate"] = "auto"
    numbers = {
        "model": "m",
        "seeds": [0, 1],
        "settings": settings,
        "slopes": {"gradient_square": 1.0, "gradient_variance": 2.0},
        "cells": cells,
        "devices_for": [{"target": 2.0, "devices": 1024, "delta": 1e-4, "slow_down": 1.9}],
    }
    (results / "privacy_utility.json").write_text(json.dumps(numbers))

    text = privacy_report.utility()

    assert "| WER, % | 8 devices | 64 devices |\n|---|---|---|\n| before training | 50.0 | 50.0 |" in text
    assert "| ε = ∞ | 35.0 ± 7.1 | 20.0 ± 0.0 |\n| ε = 2, device-level | 60.0 ± 0.0 | 30.0 ± 7.1 |" in text
    assert "| loss | 8 devices | 64 devices |\n|---|---|---|\n| before training | 1.250 | 1.250 |" in text
    assert "| ε = ∞ | 0.350 ± 0.071 | 0.200 ± 0.000 |" in text
    assert "| ε = 2, device-level | 64 | 1.50 | 1.50 | × 3.25 |" in text
    assert "1,024 at ε = 2 (δ = 0.0001)" in text
    assert "over 2 seeds" in text

    costs = [{"devices": d, "target": t, "slow_down": d * t / 8} for d in (8, 64) for t in (8.0, 2.0)]
    (results / "privacy_planned.json").write_text(json.dumps({"rows": [{"tensors": "x", "costs": costs}]}))
    assert privacy_report.planned_costs().splitlines() == [
        "| trained tensors | 8 devices, ε = 8 | 8 devices, ε = 2 | 64 devices, ε = 8 | 64 devices, ε = 2 |",
        "|---|---|---|---|---|",
        "| `x` | × 8.00 | × 2.00 | × 64.00 | × 16.00 |",
    ]


def test_rules_are_columns_and_attacks_are_rows(results: Path) -> None:
    cells = [
        {"attack": a, "share": s, "aggregation": r, "wer": spread([w]), "loss": spread([w]), "left_lattice": left}
        | {"hostile": round(20 * s), "found": round(10 * s), "accused": 2 if s == 0.25 else 0}
        for a, s, r, w, left in (
            ("none", 0.0, "mean", 0.2, 0),
            ("large", 0.1, "mean", 0.9, 1),
            ("large", 0.25, "mean", 1.0, 0),
            ("none", 0.0, "median", 0.3, 0),
            ("large", 0.1, "median", 0.31, 0),
            ("large", 0.25, "median", 0.32, 0),
        )
    ]
    settings = {"rounds": 5, "queries": 8, "seeds": [0]}
    numbers = {"model": "m", "devices": 20, "settings": settings, "before": {"wer": 0.5, "loss": 2.0}, "cells": cells}
    (results / "attackers.json").write_text(json.dumps(numbers))

    text = privacy_report.resistance()

    assert (
        "| WER, %: attack | hostile | `mean` | `median` |\n|---|---|---|---|\n| none | 0 of 20 | 20.0 | 30.0 |\n"
        in text
    )
    assert "| large | 2 of 20 | 90.0* | 31.0 |\n| large | 5 of 20 | 100.0 | 32.0 |" in text
    assert (
        "| loss: attack | hostile | `mean` | `median` |\n|---|---|---|---|\n| none | 0 of 20 | 0.200 | 0.300 |\n"
        in text
    )
    assert "| large | 2 of 20 | 50% | 0.0% |\n| large | 5 of 20 | 40% | 13.3% |" in text  # 4 of 10, 4 of 30
    assert "the WER is 50.0 %, the loss 2.000" in text and "one seed" in text and "A star" in text


def test_pages_have_the_places() -> None:
    for name in privacy_report.HOSTILE:
        assert f"<!-- {name} -->" in (ROOT / "docs" / "results" / "hostile.md").read_text()
