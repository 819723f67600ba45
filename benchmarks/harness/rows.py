"""Result rows: small JSON files with command, revision, versions and hardware beside every number.

Speed is stored as a ratio of two sides timed in turn, in one process, on the same inputs.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.command import command
from benchmarks.harness.revision import revision
from simulations.reports.machine import hardware, versions

RESULTS = Path(__file__).parent.parent / "results"
Action = Callable[[], Any]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, median, sample standard deviation, extremes and the values themselves."""
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def seconds(action: Action, device: str = "cpu") -> float:
    """Return seconds of one call; on a GPU those between two CUDA events around its work."""
    if device == "cpu":
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def timed(action: Action, repeats: int, device: str = "cpu") -> list[float]:
    """Return seconds of each of `repeats` calls after one that does not count."""
    return interleaved({"": action}, repeats, device)[""]


def interleaved(
    sides: Mapping[str, Action], repeats: int, device: str = "cpu", *, warm: bool = False
) -> dict[str, list[float]]:
    """Return seconds of `repeats` calls of every side, in turn (ABCABC…), after one of each that does not count.

    `warm`: everything was called before, and the first call counts.
    """
    for action in () if warm else sides.values():
        action()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, action in sides.items():
            found[name].append(seconds(action, device))
    return found


def quotient(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return ours ÷ theirs, median and range over pairs in turn, and the ratio of the medians as `ratio`."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "ratio": statistics.median(ours) / statistics.median(theirs),
        "median": statistics.median(pairs),
        "min": min(pairs),
        "max": max(pairs),
        "repeats": len(pairs),
    }


def ratio(ours: Action, theirs: Action, repeats: int = 9, device: str = "cpu") -> dict[str, Any]:
    """Return time of ours ÷ time of theirs, as `quotient`, measured in turn in one process."""
    found = interleaved({"ours": ours, "theirs": theirs}, repeats, device)
    return quotient(found["ours"], found["theirs"])


def amount(value: float, unit: str = "×") -> str:
    """Return a number as text: `1.022×`, `600 kB`, `5.68 G/s`, `99.3%`; three digits for another unit."""
    if unit in ("B", "/s"):
        for prefix in ("", "k", "M", "G", "T"):
            if abs(value) < 1000 or prefix == "T":
                return f"{value:.4g} {prefix}{unit}"
            value /= 1000
    if unit == "%":
        return f"{100 * value:.3g}%"
    if unit == "×":
        digits = 3 if value < 2 else 2 if value < 100 else 0  # near 1 it is the third that meets a target or misses it
        return f"{value:,.{digits}f}×"
    return f"{value:.3g} {unit}".rstrip()


def row(label: str, numbers: Mapping[str, Any], **about: Any) -> dict[str, Any]:
    """Return a line of the table (`benchmarks.pages.table`): what it is, what was measured, and what it must reach.

    Args:
        numbers: of `quotient` or `spread`.
        about: `unit`; `at_most` or `at_least`, the target; `against`, where there is something beside it but no target;
            `of`, what the table adds to the label.
    """
    return {"row": label, **{key: value for key, value in numbers.items() if key != "values"}, **about}


def store(name: str, numbers: dict[str, Any], device: str = "cpu") -> Path:
    """Write `benchmarks/results/<name>.json`, on a GPU `<name>_cuda.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{'_cuda' if device == 'cuda' else ''}.json"
    about = {"command": command(), "revision": revision(), "hardware": hardware(device), "versions": versions()}
    present = {key: value for key, value in about.items() if value is not None}
    path.write_text(json.dumps(present | numbers, indent=1) + "\n")
    return path
