"""The demo over several seeds: WER before and after on unseen speakers and sentences, bytes, minutes; mean and spread.

A seed changes the sentences, the voices' rate and pitch, the directions and the batches. The settings are those of
`simulations/scenarios/demo.toml`; they were chosen on the dev split.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import RESULTS, spread, store


def run_seed(seed: int, directory: Path, extra: list[str]) -> dict[str, Any]:
    """Run one demo in its own process and return its result.json, with its output under `printed`."""
    output = directory / f"seed-{seed}"
    command = [sys.executable, "-m", "simulations.cli", "demo", "--seed", str(seed), "--output", str(output), *extra]
    printed = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            printed.append(line.rstrip() + "\n")
    if process.returncode:
        raise SystemExit(f"the demo with seed {seed} failed, see above")
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    end = max(index for index, line in enumerate(printed) if line.startswith("└"))  # where the results lie is no matter
    result["printed"] = "".join(printed[: end + 1])
    result["curve"] = json.loads((output / "evaluation.json").read_text())["curve"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    extra = [part for pair in arguments.settings for part in ("--set", pair)]
    with tempfile.TemporaryDirectory() as directory:
        results = [run_seed(seed, Path(directory), extra) for seed in arguments.seeds]
    before, after = ([r[when]["wer"] for r in results] for when in ("before", "after"))
    config = {k: v for k, v in results[0]["config"].items() if k not in ("model", "data", "output")}
    numbers = {
        "seeds": arguments.seeds,
        "config": config,
        "wer_before": spread(before),
        "wer_after": spread(after),
        "relative_change": spread([a / b - 1 for a, b in zip(after, before, strict=True)]),
        "raw_wer_before": spread([r["before"]["raw_wer"] for r in results]),
        "raw_wer_after": spread([r["after"]["raw_wer"] for r in results]),
        "cer_before": spread([r["before"]["cer"] for r in results]),
        "cer_after": spread([r["after"]["cer"] for r in results]),
        "minutes": spread([r["minutes"] for r in results]),
        "payload_up_per_device": spread([r["traffic"]["up"] for r in results]),
        "payload_down_per_device": spread([r["traffic"]["down"] for r in results]),
        "fedavg_each_way_per_device": results[0]["traffic"]["fedavg_each_way"],
        "ledger_bytes": spread([r["ledger_bytes"] for r in results]),
        "checksums_agree": all(r["checksums_agree"] for r in results),
        "curves": [r["curve"] for r in results],
    }
    path = store("dialect", numbers)
    (RESULTS / "demo.txt").write_text(results[0]["printed"])
    change = numbers["relative_change"]
    print(f"WER {numbers['wer_before']['mean']:.1%} → {numbers['wer_after']['mean']:.1%}, ", end="")
    print(f"relative change {change['mean']:+.1%} ± {change['std']:.1%} over {len(results)} seeds; wrote {path}")


if __name__ == "__main__":
    main()
