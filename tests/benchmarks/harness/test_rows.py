"""Known answers of the numbers in every row, and what stands beside them."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from benchmarks.harness import rows
from benchmarks.harness.rows import amount, interleaved, quotient, ratio, row, spread, store


def test_spread_of_known_values() -> None:
    found = spread([1.0, 2.0, 6.0])
    assert (found["mean"], found["median"], found["min"], found["max"]) == (3.0, 2.0, 1.0, 6.0)
    assert found["std"] == pytest.approx(7**0.5)
    assert spread([4.0])["std"] == 0.0


def test_quotient_of_medians_and_of_pairs() -> None:
    found = quotient([2.0, 4.0, 9.0], [1.0, 4.0, 2.0])
    assert found == {"ratio": 2.0, "median": 2.0, "min": 1.0, "max": 4.5, "repeats": 3}


def test_sides_are_called_in_turn_and_the_first_calls_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    cost = {"a": 3.0, "b": 2.0}

    def clock(action: rows.Action, _: str) -> float:
        return cost[action()]

    def side(name: str) -> rows.Action:
        return lambda: (called.append(name), name)[1]

    monkeypatch.setattr(rows, "seconds", clock)
    assert interleaved({"a": side("a"), "b": side("b")}, 2) == {"a": [3.0, 3.0], "b": [2.0, 2.0]}
    assert called == ["a", "b"] * 3
    interleaved({"a": side("a")}, 1, warm=True)
    assert called == ["a", "b"] * 3 + ["a"]
    assert ratio(side("a"), side("b"), 3)["ratio"] == 1.5


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.0216, "×", "1.022×"),
        (16.54, "×", "16.54×"),
        (1841963.6, "×", "1,841,964×"),
        (82, "B", "82 B"),
        (151_041_024, "B", "151 MB"),
        (5.68e9, "/s", "5.68 G/s"),
        (0.9617, "%", "96.2%"),
        (0.0, "%", "0%"),
        (9.78e-7, "", "9.78e-07"),
        (12.345, "ms", "12.3 ms"),
    ],
)
def test_amounts_as_text(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_a_stored_row_names_command_revision_and_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr(rows, "revision", lambda: "abc1234+changes")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("benchmarks.cost.step", None))
    monkeypatch.setattr("sys.argv", ["step.py", "--repeats", "3"])
    path = store("step", {"rows": [row("one", spread([1.0]), at_most=2)]})
    stored = json.loads(path.read_text())
    assert path.name == "step.json"
    assert stored["command"] == "python -m benchmarks.cost.step --repeats 3"
    assert stored["revision"] == "abc1234+changes"
    assert stored["rows"][0] == {
        "row": "one", "mean": 1.0, "median": 1.0, "std": 0.0, "min": 1.0, "max": 1.0, "at_most": 2
    }  # fmt: skip
    assert {"cpu", "cores", "memory_gib"} <= stored["hardware"].keys() and "torch" in stored["versions"]

    monkeypatch.setattr(rows, "revision", lambda: None)
    monkeypatch.setattr(rows, "hardware", lambda device: {"gpu": "some GPU"})
    path = store("step", {}, "cuda")
    assert path.name == "step_cuda.json" and "revision" not in json.loads(path.read_text())
