"""Planned cost of privacy for different trained tensors: how many times the steps, at equal noise.

    python -m benchmarks.privacy.planned

Slopes of each choice are measured on the development split of the demo's dialect, and `zo-asr privacy plan`'s formula
makes the cost of them. No run is made: `benchmarks.privacy.utility` compares a plan with words.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from typing import Any

from benchmarks.dialect.speech import dialect_folder, whisper
from benchmarks.harness.rows import store
from benchmarks.hostile.rounds import SpeechCrowd
from benchmarks.privacy import utility
from benchmarks.privacy.slopes import Slopes, measure_slopes
from zo_common.lattice.trained import DEFAULT
from zo_common.models.quiet import quiet_transformers

NAME = "privacy_planned"
# tensors → a perturbation that fits them
TENSORS = {DEFAULT: 2.0**-6, "norms+biases": 2.0**-10, "encoder-early": 2.0**-10}
TARGETS, DEVICES = (8.0, 2.0), (8, 64)


def costs(arguments: argparse.Namespace, slopes: Slopes) -> list[dict[str, float]]:
    """Return the planned cost at the device level of each ε and number of devices."""
    found = []
    for devices in DEVICES:
        for target in TARGETS:
            cell = utility.Cell("device", target, devices)
            cost = utility.cost_of(cell, utility.plain_config(arguments, devices), slopes, 1)
            assert cost is not None  # a level has a cost
            found.append({"devices": devices, "target": target, "slow_down": cost.slow_down})
    return found


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the slopes of every choice of tensors."""
    rows = []
    for tensors, perturbation in TENSORS.items():
        chosen = argparse.Namespace(**vars(arguments) | {"trained_tensors": tensors, "perturbation": perturbation})
        config = replace(utility.plain_config(chosen, DEVICES[0]), **utility.PROBE)
        slopes = measure_slopes(SpeechCrowd(config, arguments.probes), config)
        rows.append({"tensors": tensors, "slopes": asdict(slopes), "costs": costs(chosen, slopes)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def table(row: dict[str, Any]) -> str:
    """Return the page's table."""
    first = row["rows"][0]["costs"]
    head = [f"{each['devices']} devices, ε = {each['target']:g}" for each in first]
    lines = [f"| trained tensors | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for each in row["rows"]:
        times = " | ".join(f"× {cost['slow_down']:.2f}" for cost in each["costs"])
        lines.append(f"| `{each['tensors']}` | {times} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and store."""
    arguments = utility.parse()
    quiet_transformers()
    arguments.model, arguments.data = whisper(), dialect_folder(whisper())
    found = {"model": "whisper-tiny.en", "probes": arguments.probes, "rounds": arguments.rounds}
    found |= {"delta": arguments.delta, "rows": measure(arguments)}
    print(table(found))
    print(f"wrote {store(NAME, found)}")


if __name__ == "__main__":
    main()
