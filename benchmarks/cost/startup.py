"""Time of `zo-asr train` from the shell to the end of a first step on Whisper-tiny.en, without any evaluation.

Each run is a process of its own on one thread; seconds are processor time, so that other programs on the machine count
little. The step is as small as can be: one utterance and two directions.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import spread, store
from simulations.models.whisper_import import bundled_whisper

NAME = "startup"
STEP = {"num_server_rounds": 1, "num_queries": 2, "batch_size": 1, "eval_split": "", "guard_split": "none"}
_IMPORTS = "import train.cli, train.run"
_CHECKED, _UNCHECKED = "with the loss check", "without the loss check"
KINDS = ("imports", _UNCHECKED, _CHECKED)


def processor_seconds(code: str, threads: int = 1) -> float:
    """Return seconds of processor time of a Python process and its children.

    Raises:
        CalledProcessError: the process failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_of(data: Path, model: Path, output: Path, *, loss_check: bool) -> str:
    """Return the code of a run of one step."""
    settings: dict[str, Any] = {**STEP, "model": str(model), "output": str(output), "loss_check": loss_check}
    if not loss_check:
        settings |= {"epsilon": 1e-3, "tail_tokens": 32}
    return f"import train.run; train.run.train({str(data)!r}, **{settings!r})"


def measure(data: Path, model: Path, repeats: int) -> dict[str, Any]:
    """Return seconds of imports alone, and of runs with and without the loss check, measured in turn."""
    found: dict[str, list[float]] = {"imports": [], _CHECKED: [], _UNCHECKED: []}
    for _ in range(repeats):
        found["imports"].append(processor_seconds(_IMPORTS))
        for name in (_CHECKED, _UNCHECKED):
            with tempfile.TemporaryDirectory() as folder:
                code = run_of(data, model, Path(folder) / "run", loss_check=name == _CHECKED)
                found[name].append(processor_seconds(code))
    return {name: spread(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path, help="folder with a train split, such as the demo's")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model = bundled_whisper(arguments.models).resolve()
    found = measure(arguments.recordings.resolve(), model, arguments.repeats)
    print(json.dumps({name: round(each["median"], 2) for name, each in found.items()}))
    print(f"wrote {store(NAME, {'threads': 1, 'processor_seconds': found})}")


if __name__ == "__main__":
    main()
