"""Cost of experiment trackers in a whole simulated run: `report-to` = none beside tensorboard, wandb, mlflow.

Each run is a process of its own with its own simulation engine, of as many rounds as the demo has, and the two kinds
take turns. Its model is small and random, so that the run is little else than machinery. Processor time is that of the
process and of all that it started, wandb's own service among them: other programs on the machine count little in it,
but much in wall time. The three trackers' calls are also timed one by one, in the server's process.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import RESULTS, quotient, row, spread, store
from server.run.log import read_rows
from server.tracking.tracker import RunFacts, Tracker

NAME = "tracking"
SIDES = ("none", "all")
ROUNDS = 32  # the demo's
MOST = 0.02  # of a run's time
_CLOCKS = "clocks.json"
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class AllTrackers(Tracker):
    """The three trackers of the program, every call of which is timed; the times are written to the run's folder."""

    name = "all"

    def __init__(self) -> None:
        self.clocks: dict[str, list[dict[str, float]]] = {}
        self._timed("start", self._import)

    def _import(self) -> None:
        from server.tracking.mlflow import MlflowTracker
        from server.tracking.tensorboard import TensorBoardTracker
        from server.tracking.wandb import WandbTracker

        self._trackers: tuple[Tracker, ...] = (TensorBoardTracker(), WandbTracker(), MlflowTracker())

    def _timed(self, name: str, call: Callable[[], Any]) -> None:
        wall, processor = time.perf_counter(), time.thread_time()
        call()
        times = {"wall": time.perf_counter() - wall, "processor": time.thread_time() - processor}
        self.clocks.setdefault(name, []).append(times)

    def on_run_start(self, run: RunFacts) -> None:
        """As `Tracker.on_run_start`."""
        self._output = run.output
        self._timed("start", lambda: [each.on_run_start(run) for each in self._trackers])

    def on_round(self, server_round: int, scalars: dict[str, float]) -> None:
        """As `Tracker.on_round`."""
        self._timed("round", lambda: [each.on_round(server_round, scalars) for each in self._trackers])

    def on_warning(self, server_round: int, message: str) -> None:
        """As `Tracker.on_warning`."""
        self._timed("warning", lambda: [each.on_warning(server_round, message) for each in self._trackers])

    def on_end(self, summary: dict[str, Any]) -> None:
        """As `Tracker.on_end`."""
        self._timed("end", lambda: [each.on_end(summary) for each in self._trackers])
        (self._output / _CLOCKS).write_text(json.dumps(self.clocks))


def one_run(side: str, model: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Run a federation in the simulation engine; return the times of its trackers' calls.

    Raises:
        FileNotFoundError: a tracker failed and was dropped, so that there are none.
    """
    from benchmarks.scale.simulation import config_of
    from simulations.runner import run_federation

    with tempfile.TemporaryDirectory() as scratch:
        report_to = "none" if side == "none" else "benchmarks.cost.tracking:AllTrackers"
        config = replace(config_of(model, devices, rounds, scratch), report_to=report_to, torch_threads=1)
        run_federation(config, devices, actors=1)
        output = Path(config.output)
        assert len(read_rows(output / "rounds.jsonl")) == rounds
        found: dict[str, Any] = json.loads((output / _CLOCKS).read_text()) if side == "all" else {}
        return found


def timed_run(side: str, model: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Return wall and processor seconds of a run in a process of its own, and the times of its trackers' calls.

    Processes that outlive their parent come to this one, which waits for them, so that their time counts too.

    Raises:
        CalledProcessError: the run failed.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    command = [sys.executable, "-m", "benchmarks.cost.tracking", "--one", side, "--model", str(model)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*command, "--devices", str(devices), "--rounds", str(rounds)],
        check=True, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wall = time.perf_counter() - start
    with suppress(ChildProcessError):
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "processor": processor, "clocks": json.loads(done.stdout.splitlines()[-1])}


def measure(model: Path, devices: int, rounds: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Return what `timed_run` found without and with trackers, in turn."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            found[side].append(run := timed_run(side, model, devices, rounds))
            print(f"{side}: {run['wall']:.1f} s, {run['processor']:.1f} s of processor time", flush=True)
    return found


def calls(runs: list[dict[str, Any]], name: str, kind: str) -> list[float]:
    """Return seconds of each call (of "round"), or of a run's calls together (of "start", "end")."""
    if name == "round":
        return [each[kind] for run in runs for each in run["clocks"]["round"]]
    return [sum(each[kind] for each in run["clocks"][name]) for run in runs]


def summary(found: dict[str, list[dict[str, Any]]], demo_seconds: float) -> dict[str, Any]:
    """Return the result's numbers and its lines of the table.

    Args:
        demo_seconds: of the demo's run, which has as many rounds.
    """
    times = {
        kind: {side: [run[kind] for run in runs] for side, runs in found.items()} for kind in ("processor", "wall")
    }
    # runs in turn are compared: the machine is another one an hour later
    added = [b - a for a, b in zip(times["processor"]["none"], times["processor"]["all"], strict=True)]
    clocks = {
        name: {kind: statistics.median(calls(found["all"], name, kind)) for kind in ("processor", "wall")}
        for name in ("start", "round", "end")
    }
    own = quotient(times["processor"]["all"], times["processor"]["none"])
    rows = [
        row("a small simulated run with three trackers ÷ with none", own, of="processor time", against="1×"),
        row("three trackers: share of the demo's time", spread([each / demo_seconds for each in added]), unit="%",
            at_most=MOST),
        row("three trackers: a round", {"median": 1000 * clocks["round"]["processor"]}, unit="ms"),
    ]  # fmt: skip
    return {
        "processor_seconds": {side: spread(values) for side, values in times["processor"].items()},
        "wall_seconds": {side: spread(values) for side, values in times["wall"].items()},
        "added_processor_seconds": spread(added),
        "calls_seconds": clocks,
        "demo_seconds": demo_seconds,
        "rows": rows,
    }


def text() -> str:
    """Return the sentence of the docs."""
    found = json.loads((RESULTS / f"{NAME}.json").read_text())
    added, clocks = found["added_processor_seconds"], found["calls_seconds"]
    plain, demo = found["processor_seconds"]["none"]["median"], found["demo_seconds"]
    spent, one_round = added["median"], 1000 * clocks["round"]["processor"]
    return (
        f"All three together add {spent:.1f} s of processor time to a run of {found['rounds']} rounds (median of "
        f"{len(added['values'])} pairs of simulated runs, {added['min']:.1f} … {added['max']:.1f} s). That is "
        f"{spent / plain:.1%} of a run as small as {plain:.0f} s, and {spent / demo:.1%} of the demo's {demo / 60:.1f} "
        f"minutes. In the server's process, imports and start take {clocks['start']['processor']:.1f} s and a round "
        f"{one_round:.1f} ms; the runs of a kind differ by seconds."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a Whisper directory; default: a random one of two small layers")
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one_run(arguments.one, arguments.model, arguments.devices, arguments.rounds)))
        return
    from benchmarks.scale.simulation import tiny_model

    with tempfile.TemporaryDirectory() as scratch:
        model = (arguments.model or tiny_model(Path(scratch))).resolve()
        found = measure(model, arguments.devices, arguments.rounds, arguments.repeats)
    demo_seconds = 60 * json.loads((RESULTS / "dialect.json").read_text())["minutes"]["mean"]
    settings = {"devices": arguments.devices, "rounds": arguments.rounds, "threads": 1}
    numbers = summary(found, demo_seconds)
    print(json.dumps({key: numbers[key] for key in ("added_processor_seconds", "calls_seconds")}))
    print(f"wrote {store(NAME, settings | numbers)}")


if __name__ == "__main__":
    main()
