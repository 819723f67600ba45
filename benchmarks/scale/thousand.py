"""The scenario of a thousand devices on real Whisper-tiny.en: does it fit a small machine, and does it learn?

Seconds a round, peak memory of all processes together (PSS), and WER before and after, of one run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import spread, store
from benchmarks.scale.simulation import peak_memory
from server.run.log import read_rows


def run(output: Path, extra: list[str]) -> int:
    """Run the scenario in a process of its own; its largest memory in bytes."""
    command = [sys.executable, "-m", "simulations.cli", "run", "thousand", "--output", str(output), *extra]
    child = subprocess.Popen(command)
    peak = peak_memory(child)
    if child.returncode:
        raise SystemExit(f"the scenario failed with status {child.returncode}")
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    extra = [part for pair in arguments.settings for part in ("--set", pair)]
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "thousand"
        peak = run(output, extra)
        result: dict[str, Any] = json.loads((output / "result.json").read_text())
        rounds = read_rows(output / "rounds.jsonl")
    numbers = {
        "devices": result["devices"],
        "asked_a_round": rounds[0]["asked"],
        "rounds": len(rounds),
        "seconds_a_round": spread([row["seconds"] for row in rounds[1:]]),
        "peak_memory_mib": round(peak / 2**20),
        "minutes": result["minutes"],
        "wer_before": result["before"]["wer"],
        "wer_after": result["after"]["wer"],
        "checksums_agree": result["checksums_agree"],
        "train_losses": [row["loss"] for row in rounds],
    }
    print(f"wrote {store('thousand', numbers)}")


if __name__ == "__main__":
    main()
