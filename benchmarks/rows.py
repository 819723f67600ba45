"""Result rows: small JSON files with the command, versions and hardware beside every number."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simulations.report import hardware, versions

RESULTS = Path(__file__).parent / "results"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, extremes and the values themselves."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def timed(action: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls after one that does not count."""
    action()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return seconds


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int = 9) -> dict[str, Any]:
    """Time of ours ÷ time of theirs, measured in turn in one process: median and range of the pairs."""
    ours()
    theirs()
    ratios = []
    for _ in range(repeats):
        pair = []
        for action in (ours, theirs):
            start = time.perf_counter()
            action()
            pair.append(time.perf_counter() - start)
        ratios.append(pair[0] / pair[1])
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "repeats": repeats}


def store(name: str, numbers: dict[str, Any]) -> Path:
    """Write `benchmarks/results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    command = " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    row = {"command": command, "hardware": hardware(), "versions": versions(), **numbers}
    path.write_text(json.dumps(row, indent=1) + "\n")
    return path
