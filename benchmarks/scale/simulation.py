"""Seconds a round and memory with 10, 100, 1 000 virtual devices: our app beside Flower's own floor.

Both exchange messages of the same sizes with all devices every round; the floor's app computes nothing. A federation
runs in a process of its own, as Ray's state stays with it. Memory is the proportional set size (PSS) of that process
and its descendants, sampled every four seconds while it runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.harness.rows import row, store
from benchmarks.scale.floor import Sizes, run_floor
from client.device.warm import warm_dataset, warm_engine
from server.run.log import read_rows
from simulations.models.tiny import write_tiny_whisper
from simulations.models.whisper_import import bundled_whisper
from simulations.runner import actors_for, run_federation
from zo_common.config.run import RunConfig

QUERIES, STEPS, RATE = 8, 1, 16_000
SAMPLE_SECONDS = 4.0  # a look at all processes takes tens of milliseconds of a core
KINDS = ("floor", "ours", "forwards")
CLIPS = 16  # distinct recordings; a table of any length names them in turn


def tiny_model(folder: Path) -> Path:
    """Return the random Whisper of the tests: two layers of width 32, and Whisper's tokenizer and features."""
    return Path(write_tiny_whisper(bundled_whisper(Path("models")), folder / "tiny"))


def write_speech(folder: Path, devices: int) -> Path:
    """Write a train split with one or two recordings of about a second for each of `devices` in turn."""
    rng = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    for clip in range(CLIPS):
        soundfile.write(folder / "train" / f"{clip}.wav", 0.1 * rng.standard_normal(RATE + 800 * clip), RATE)
    with (folder / "train" / "metadata.csv").open("w", newline="") as file:
        rows = [(f"{row % CLIPS}.wav", f"device counts to {row}") for row in range(devices + devices // 2)]
        csv.writer(file).writerows([("file_name", "transcription"), *rows])
    return folder


def config_of(model: Path, devices: int, rounds: int, scratch: str) -> RunConfig:
    """Return settings under which all devices answer every round."""
    return RunConfig(
        model=str(model.resolve()),
        data=str(write_speech(Path(scratch) / "speech", devices)),
        partition_by="round-robin",
        num_queries=QUERIES,
        local_steps=STEPS,
        batch_size=2,
        trained_tensors="encoder-early",
        learning_rate=1e-3,
        num_server_rounds=rounds,
        min_clients=devices,
        output=f"{scratch}/run",
    )


def run_forwards(model: Path, devices: int, rounds: int) -> list[float]:
    """Return seconds of a round's forward passes alone: some devices' on one thread, scaled to all."""
    with tempfile.TemporaryDirectory() as scratch:
        config = replace(config_of(model, devices, rounds, scratch), torch_threads=1)
        engine = warm_engine(config)
        seconds = []
        for device in range(min(devices, 10) * rounds):
            data = warm_dataset(config, engine, device % devices, devices)
            loss = engine.loss_fn(data.batch(range(len(data))))
            start = time.monotonic()
            with torch.inference_mode():
                for _ in range(QUERIES * STEPS):
                    loss()
            seconds.append((time.monotonic() - start) * devices / actors_for(devices))
        return seconds


def run_ours(model: Path, devices: int, rounds: int) -> list[float]:
    """Return seconds of each round of our app, plan to ledger."""
    with tempfile.TemporaryDirectory() as scratch:
        config = config_of(model, devices, rounds, scratch)
        run_federation(config, devices)
        rows = read_rows(Path(config.output) / "rounds.jsonl")
        assert all(row["answered"] == devices for row in rows), rows
        return [float(row["seconds"]) for row in rows]


def descendants(root: int) -> set[int]:
    """Return a process and all that it started, directly or not."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended
    found, size = {root}, 0
    while size != len(found):
        size = len(found)
        found |= {process for process, parent in parents.items() if parent in found}
    return found


def memory_of(processes: set[int]) -> int:
    """Return sum of proportional set sizes in bytes: pages that processes share are counted once."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def peak_memory(child: subprocess.Popen[Any]) -> int:
    """Return the largest memory in bytes that a process and its descendants were seen to have until it ended."""
    peak = 0
    while child.poll() is None:
        peak = max(peak, memory_of(descendants(child.pid)))
        with suppress(subprocess.TimeoutExpired):
            child.wait(SAMPLE_SECONDS)
    return peak


def measure(kind: str, devices: int, rounds: int, model: Path) -> dict[str, Any]:
    """Run one federation in a process of its own; return seconds of its rounds and its peak memory in MiB."""
    command = [sys.executable, "-m", "benchmarks.scale.simulation", "--one", kind, "--devices", str(devices)]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen([*command, "--rounds", str(rounds), "--model", str(model)], stdout=out)
        peak = peak_memory(child)
        if child.returncode:
            raise SystemExit(f"the {kind} with {devices} devices failed with status {child.returncode}")
        out.seek(0)
        seconds = json.loads(out.read().splitlines()[-1])
    warm = seconds[1:] or seconds
    return {
        "seconds_a_round": {"median": statistics.median(warm), "min": min(warm), "max": max(warm), "rounds": len(warm)},
        "peak_memory_mib": round(peak / 2**20),
        "seconds_with_start": time.monotonic() - started,
    }


def compare(devices: int, rounds: int, model: Path) -> dict[str, Any]:
    """Measure floor, ours, and our forward passes alone, in turn on the same number of devices."""
    floor, ours, forwards = (measure(kind, devices, rounds, model) for kind in KINDS)
    seconds = {
        name: side["seconds_a_round"]["median"] for name, side in zip(KINDS, (floor, ours, forwards), strict=True)
    }
    found = {
        "devices": devices,
        "floor": floor,
        "ours": ours,
        "forwards": forwards,
        "seconds_over_floor": seconds["ours"] / seconds["floor"],
        "seconds_over_floor_and_forwards": seconds["ours"] / (seconds["floor"] + seconds["forwards"]),
        "memory_over_floor": ours["peak_memory_mib"] / floor["peak_memory_mib"],
    }
    print(
        f"{devices:5d} devices: floor {seconds['floor']:.2f} s, {floor['peak_memory_mib']} MiB; ours "
        f"{seconds['ours']:.2f} s, {ours['peak_memory_mib']} MiB; forward passes alone {seconds['forwards']:.2f} s; "
        f"ours ÷ floor {found['seconds_over_floor']:.2f}, ÷ (floor + forward passes) "
        f"{found['seconds_over_floor_and_forwards']:.2f}",
        flush=True,
    )
    return found


def lines(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return lines of the table."""
    what = f"with {found['devices']:,} virtual devices ÷ Flower's floor"
    return [
        row(f"seconds a round {what}", {"median": found["seconds_over_floor"]}, against="an app that does nothing"),
        row(
            f"seconds a round {what} and the forward passes alone",
            {"median": found["seconds_over_floor_and_forwards"]},
            against="1×: our machinery costs nothing",
        ),
        row(f"memory {what}", {"median": found["memory_over_floor"]}, against="an app that does nothing"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=4, help="the first is not counted")
    parser.add_argument("--model", type=Path, help="a Whisper directory; default: a random one of two small layers")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        (devices,) = arguments.devices
        if arguments.one == "floor":
            seconds = run_floor(Sizes(devices, STEPS * QUERIES), arguments.rounds)
        else:
            run = run_ours if arguments.one == "ours" else run_forwards
            seconds = run(arguments.model, devices, arguments.rounds)
        print(json.dumps(seconds))
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or tiny_model(Path(scratch))
        found = [compare(devices, arguments.rounds, model) for devices in arguments.devices]
    name = "tiny random Whisper" if arguments.model is None else arguments.model.name
    rows = [line for each in found for line in lines(each)]
    path = store("simulation", {"model": name, "queries": QUERIES, "local_steps": STEPS, "curve": found, "rows": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
