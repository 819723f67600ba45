"""Cost of privacy: word error rate against ε on the demo's dialect, with few and with many devices.

    python -m benchmarks.privacy.utility

Held-out speakers and sentences, mean and spread over seeds. A seed changes directions and batches; noise is never
repeated. Nothing about privacy is typed: slopes are measured on the development split's speakers, the planner makes of
them the clip norm, the accountant the noise, and the server measures the step on the development split, whose losses
its guard compares. Devices of all counts hear as many utterances a round together. Tail, precision and perturbation are
what the loss check chooses on this speech: private devices check nothing. A stopped run goes on where it was: what is
done lies in `--work`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.dialect.speech import dialect_folder, natural_partition, whisper
from benchmarks.harness.result_cache import ResultCache
from benchmarks.harness.rows import spread, store
from benchmarks.hostile.rounds import Crowd, SpeechCrowd
from benchmarks.privacy.rounds import Outcome
from benchmarks.privacy.slopes import Slopes, devices_for, measure_slopes, price
from benchmarks.privacy.whole_runs import run
from zo_common.config.run import RunConfig
from zo_common.lattice.trained import DEFAULT
from zo_common.models.quiet import quiet_transformers
from zo_common.privacy.plan import PrivacyCost

MEASURES = ("wer", "cer", "loss")
LEVELS = ("device", "example")
PROBE_QUERIES = 16
# settings of a measurement of slopes, on speech that no device trains on
PROBE: dict[str, Any] = {
    "train_split": "dev",
    "partition_by": "round-robin",
    "batch_size": 1,
    "num_queries": PROBE_QUERIES,
    "run_seed": 1 << 32,
    "learning_rate": 1.0,  # no step is made
}
MakeCrowd = Callable[[RunConfig, int], Crowd]
Run = Callable[[RunConfig, int], Outcome]  # of settings and a number of devices


@dataclass(frozen=True)
class Cell:
    """One place of the table: which guarantee, ε (infinite: none) and how many devices."""

    level: str
    target: float
    devices: int


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Return all places; without a guarantee there is no level."""
    for devices in arguments.devices:
        for target in arguments.targets:
            levels = ("none",) if math.isinf(target) else arguments.levels
            yield from (Cell(level, target, devices) for level in levels)


def plain_config(arguments: argparse.Namespace, devices: int, seed: int = 0) -> RunConfig:
    """Return a run without privacy."""
    return RunConfig(
        model=arguments.model,
        data=arguments.data,
        eval_split=arguments.eval_split,
        eval_utterances=arguments.eval_utterances,
        partition_by=arguments.partition_by or natural_partition(devices),
        guard_split=arguments.guard_split,
        trained_tensors=arguments.trained_tensors,
        num_queries=arguments.queries,
        epsilon=arguments.perturbation,
        tail_tokens=arguments.tail_tokens,
        precision=arguments.precision,
        torch_threads=arguments.threads,
        learning_rate=arguments.learning_rate,
        batch_size=max(1, arguments.utterances // devices),
        num_server_rounds=arguments.rounds,
        run_seed=seed,
        directions="shared",
        weighting="uniform",
        noise_by="server",
        target_delta=arguments.delta,
        loss_check=False,
    )


def cost_of(cell: Cell, config: RunConfig, slopes: Slopes, examples: int) -> PrivacyCost | None:
    """Return the plan of a place; None without a guarantee."""
    if cell.level == "none":
        return None
    return price(cell.level, cell.target, config, cell.devices, examples, slopes)


def private_config(cell: Cell, config: RunConfig, cost: PrivacyCost | None) -> RunConfig:
    """Return the run with its guarantee: clip norm and a fixed learning rate as planned, noise by the accountant."""
    if cost is None:
        return config
    level: Any = cell.level
    rate = config.learning_rate if config.learning_rate == "auto" else config.learning_rate * cost.learning_rate_factor
    return replace(config, privacy=level, target_epsilon=cell.target, clip_norm=cost.clip_norm, learning_rate=rate)


def measure(arguments: argparse.Namespace, make_crowd: MakeCrowd, run_of: Run) -> dict[str, Any]:
    """Measure all places over all seeds, a seed after the other, so that a part of them is a table too."""
    cache = ResultCache(arguments.work)
    slopes = _slopes(arguments, cache, make_crowd)
    print(f"|g|² {slopes.gradient_square:.4g}, variance of an utterance's {slopes.gradient_variance:.4g}", flush=True)
    found: dict[Cell, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        for cell in cells(arguments):
            config = plain_config(arguments, cell.devices, seed)
            cost = cost_of(cell, config, slopes, _fewest(cell, config, make_crowd))
            chosen = private_config(cell, config, cost)
            outcome = cache(_asked(chosen, cell), lambda c=chosen, n=cell.devices: run_of(c, n).plain())
            found.setdefault(cell, []).append(outcome | {"planned": asdict(cost) if cost else None})
            print(f"seed {seed}  {line(row(cell, chosen, found[cell][-1:]))}", flush=True)
    return _numbers(arguments, slopes, found)


def _fewest(cell: Cell, config: RunConfig, make_crowd: MakeCrowd) -> int:
    """Return the utterances of the device with the fewest, which the example level depends on; else 1."""
    if cell.level != "example":
        return 1
    crowd = make_crowd(config, cell.devices)
    return min(crowd.examples(device) for device in range(cell.devices))


def _asked(config: RunConfig, cell: Cell) -> list[Any]:
    """Return the key of a run in the work file, for any folders of model and recordings."""
    named = config.to_mapping() | {"model": Path(config.model).name, "data": Path(config.data).name}
    return [named, cell.devices]


def _slopes(arguments: argparse.Namespace, cache: ResultCache, make_crowd: MakeCrowd) -> Slopes:
    """Measure on the development split, one utterance a device: no device's recordings are in it."""
    config = plain_config(arguments, arguments.devices[0])
    config = replace(config, **PROBE)
    found = cache(
        ["slopes", *_asked(config, Cell("none", math.inf, arguments.probes))],
        lambda: asdict(measure_slopes(make_crowd(config, arguments.probes), config)),
    )
    return Slopes(**found)


def row(cell: Cell, config: RunConfig, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of one place over the seeds."""
    planned = outcomes[0]["planned"] or {}
    numbers: dict[str, Any] = {
        "level": cell.level,
        "target": None if math.isinf(cell.target) else cell.target,
        "devices": cell.devices,
        "batch_size": config.batch_size,
        "noise_multiplier": outcomes[0]["noise_multiplier"],
        "epsilon_spent": max(each["epsilon"] for each in outcomes),
        "before": outcomes[0]["before"],
        **{name: planned[name] for name in ("clip_norm", "noise_std", "scalar_std", "slow_down") if planned},
    }
    for name in MEASURES:
        if all(name in each["after"] for each in outcomes):
            numbers[name] = spread([each["after"][name] for each in outcomes])
    return numbers


def _numbers(arguments: argparse.Namespace, slopes: Slopes, found: dict[Cell, list[dict[str, Any]]]) -> dict[str, Any]:
    config = plain_config(arguments, arguments.devices[0])
    shown = (
        "rounds",
        "queries",
        "utterances",
        "perturbation",
        "tail_tokens",
        "precision",
        "learning_rate",
        "delta",
        "eval_split",
        "eval_utterances",
        "guard_split",
        "trained_tensors",
    )
    targets = [target for target in arguments.targets if not math.isinf(target)]
    rows = []
    for cell, outcomes in found.items():
        rows.append(row(cell, plain_config(arguments, cell.devices), outcomes))
    return {
        "model": Path(arguments.model).name,
        "data": Path(arguments.data).name,
        "seeds": arguments.seeds,
        "settings": {name: getattr(arguments, name) for name in shown},
        "slopes": asdict(slopes),
        "cells": rows,
        "devices_for": [devices_for(target, replace(config, batch_size=1), slopes) for target in targets],
    }


def line(numbers: dict[str, Any]) -> str:
    """Return a place as text: mean and standard deviation over the seeds."""
    target = "∞" if numbers["target"] is None else f"{numbers['target']:g}"
    words = [f"{numbers['devices']:>4} devices, {numbers['level']:<7} ε {target:>3}"]
    words += [
        f"{name} {numbers[name]['mean']:.4f} ± {numbers[name]['std']:.4f}" for name in MEASURES if name in numbers
    ]
    if numbers["level"] != "none":
        words.append(f"noise {numbers['noise_multiplier']:.3f}, steps × {numbers['slow_down']:.3g}")
    return "  ".join(words)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="whisper", help="'whisper' is the demo's")
    parser.add_argument("--data", help="folder of recordings; the demo's dialect, synthesised, if none is named")
    parser.add_argument("--partition-by", help="of the training split; a speaker a device, or in turn, if not given")
    parser.add_argument("--eval-split", default="test")
    parser.add_argument("--eval-utterances", type=int, default=0, help="of the evaluated split; 0 takes all")
    parser.add_argument("--guard-split", default="dev", help="of the server's guard and of its measured step")
    parser.add_argument(
        "--probes", type=int, default=32, help="utterances of the dev split that slopes are measured on"
    )
    parser.add_argument("--trained-tensors", default=DEFAULT)
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--targets", type=float, nargs="+", default=[math.inf, 8.0, 2.0], help="ε; inf is no privacy")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=["device"])
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--utterances", type=int, default=64, help="a round, over all devices")
    parser.add_argument("--perturbation", type=float, default=2.0**-6)
    parser.add_argument("--tail-tokens", type=int, default=32)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--learning-rate", type=_rate, default="auto", help="a number is that of no privacy")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: all cores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", default="privacy_utility", help="of the file of rows")
    parser.add_argument("--work", type=Path, default=Path("results/privacy/utility.jsonl"))
    return parser.parse_args(words)


def _rate(text: str) -> float | str:
    return text if text == "auto" else float(text)


def main() -> None:
    """Measure, print and store."""
    arguments = parse()
    quiet_transformers()
    arguments.model = whisper() if arguments.model == "whisper" else arguments.model
    arguments.data = arguments.data or dialect_folder(arguments.model)
    features = arguments.work.parent / "features"
    numbers = measure(arguments, SpeechCrowd, lambda config, devices: run(config, devices, features))
    print(f"\nover {len(arguments.seeds)} seeds, mean ± standard deviation:")
    for numbers_of_cell in numbers["cells"]:
        print(line(numbers_of_cell))
    print(json.dumps(numbers["devices_for"]))
    if arguments.eval_split == "test":  # what is tried on the development split is not shown
        print(f"wrote {store(arguments.name, numbers)}")


if __name__ == "__main__":
    main()
