"""What trackers cost is computed from pairs of runs in turn, and their calls are timed around the trackers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cost.tracking import AllTrackers, summary
from server.tracking.tracker import RunFacts, Tracker


def _run(processor: float, rounds: int = 0) -> dict[str, Any]:
    times = {"wall": 0.5, "processor": 0.25}
    clocks = {"start": [times, times], "round": [times] * rounds, "end": [times]} if rounds else {}
    return {"wall": 2 * processor, "processor": processor, "clocks": clocks}


def test_pairs_of_runs_are_compared() -> None:
    found = {"none": [_run(30.0), _run(60.0)], "all": [_run(31.0, 4), _run(63.0, 4)]}

    numbers = summary(found, demo_seconds=100.0)

    assert numbers["added_processor_seconds"]["values"] == [1.0, 3.0]
    assert numbers["calls_seconds"]["start"]["processor"] == 0.5
    ratio, share, one_round = numbers["rows"]
    assert ratio["median"] == pytest.approx((31 / 30 + 63 / 60) / 2)
    assert share["median"] == pytest.approx(0.02) and share["at_most"] == 0.02
    assert one_round["median"] == 250.0


class _Listing(Tracker):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_round(self, server_round: int, scalars: dict[str, float]) -> None:
        self.calls.append(f"round {server_round}")

    def on_end(self, summary: dict[str, Any]) -> None:
        self.calls.append("end")


def test_every_call_reaches_the_trackers_and_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = _Listing()
    monkeypatch.setattr(AllTrackers, "_import", lambda self: setattr(self, "_trackers", (listing,)))

    tracker = AllTrackers()
    tracker.on_run_start(RunFacts(tmp_path, {}, {}, 0, resumed=False))
    for number in (1, 2):
        tracker.on_round(number, {})
    tracker.on_end({"status": "finished"})

    assert listing.calls == ["round 1", "round 2", "end"]
    times = json.loads((tmp_path / "clocks.json").read_text())
    assert {name: len(each) for name, each in times.items()} == {"start": 2, "round": 2, "end": 1}
