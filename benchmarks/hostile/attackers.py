"""Hostile devices: WER and held-out loss for each attack × aggregation × share of the devices, the plain mean beside.

    python -m benchmarks.hostile.attackers

on the small CTC model and the demo's dialect, unless another model or other recordings are named. A seed changes the
directions, the batches and who is hostile. With `--work` finished runs are kept, and the same command goes on where it
was stopped. A vote's learning rate is chosen so that its first step is as large as the mean's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from benchmarks.dialect.speech import SMALL, dialect_folder, whisper
from benchmarks.harness.result_cache import ResultCache
from benchmarks.harness.rows import spread, store
from benchmarks.hostile.rounds import Crowd, Setting, SpeechCrowd, run, slope
from simulations.attacks import ATTACKS
from zo_common.aggregation.robust import AGGREGATIONS, Aggregation
from zo_common.config.run import RunConfig
from zo_common.lattice.grid import Scale


def settings(arguments: argparse.Namespace, seed: int, vote_rate: float) -> Iterator[Setting]:
    """Return every cell for one seed: no attack once a rule, then every attack × share."""
    base = Setting(
        "none",
        "mean",
        0.0,
        seed,
        arguments.rounds,
        arguments.queries,
        arguments.batch_size,
        arguments.epsilon,
        arguments.learning_rate,
        vote_rate,
    )
    for aggregation in arguments.aggregations:
        yield replace(base, aggregation=aggregation)
        for attack in arguments.attacks:
            for share in arguments.shares:
                yield replace(base, attack=attack, aggregation=aggregation, share=share)


def cell(outcomes: list[tuple[Setting, dict[str, Any]]]) -> dict[str, Any]:
    """Measure one attack, rule and share over the seeds."""
    setting = outcomes[0][0]
    results = [outcome for _, outcome in outcomes]
    hostile = sum(len(each["hostile"]) for each in results)
    numbers: dict[str, Any] = {
        "attack": setting.attack,
        "aggregation": setting.aggregation,
        "share": setting.share,
        "left_lattice": sum(bool(each["left_lattice"]) for each in results),
        "hostile": hostile,
        "found": sum(each["found"] for each in results),
        "accused": sum(each["accused"] for each in results),
    }
    for name in ("loss", "wer", "cer"):
        if all(name in each["after"] for each in results):
            numbers[name] = spread([each["after"][name] for each in results])
    return numbers


def measure(arguments: argparse.Namespace, crowd: Crowd, about: str) -> dict[str, Any]:
    """Measure all cells; return them with the base model's numbers and the settings."""
    cache = ResultCache(arguments.work)
    crowd.restart()
    before = crowd.evaluate()
    rows: dict[tuple[str, str, float], list[tuple[Setting, dict[str, Any]]]] = {}
    for seed in arguments.seeds:
        probe = next(settings(arguments, seed, arguments.learning_rate))
        vote_rate = arguments.learning_rate * slope(crowd, probe)
        for setting in settings(arguments, seed, vote_rate):
            outcome = cache([about, asdict(setting)], lambda chosen=setting: asdict(run(crowd, chosen, before)))
            rows.setdefault((setting.aggregation, setting.attack, setting.share), []).append((setting, outcome))
            print(f"seed {seed}  {line(cell([(setting, outcome)]))}", flush=True)
    shown = (
        *("rounds", "queries", "batch_size", "epsilon", "learning_rate", "shares", "seeds"),
        *("trained_tensors", "scale", "eval_split", "eval_utterances", "attacks", "aggregations"),
    )
    return {
        "model": Path(arguments.model).name,
        "devices": crowd.devices,
        "settings": {name: getattr(arguments, name) for name in shown},
        "before": before,
        "cells": [cell(outcomes) for outcomes in rows.values()],
    }


def line(row: dict[str, Any]) -> str:
    """Return a cell as text: mean and standard deviation over the seeds."""
    label = f"{row['aggregation']:<14}{row['attack']:<12}{row['share']:>4.0%}"
    numbers = []
    if "wer" in row:
        numbers.append(f"WER {row['wer']['mean']:7.1%} ± {row['wer']['std']:5.1%}")
    if "loss" in row:
        numbers.append(f"loss {row['loss']['mean']:8.4g} ± {row['loss']['std']:.2g}")
    found = f"suspects {row['found']}/{row['hostile']} hostile, {row['accused']} honest"
    left = f"left the lattice {row['left_lattice']}×" if row["left_lattice"] else ""
    return "  ".join(filter(None, [label, *numbers, found, left]))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SMALL), help="'whisper' is the demo's")
    parser.add_argument("--data", help="folder of recordings; the demo's dialect, synthesised, if none is named")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--eval-split", default="test")
    parser.add_argument("--partition-by", default="iid")
    parser.add_argument("--eval-utterances", type=int, default=24, help="of the evaluated split; 0 takes all")
    parser.add_argument("--trained-tensors", default="norms+biases")
    parser.add_argument("--scale", choices=get_args(Scale), default="rms")
    parser.add_argument("--devices", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--epsilon", type=float, default=1e-2)
    parser.add_argument("--learning-rate", type=float, default=3.0)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS[1:], default=list(ATTACKS[1:]))
    parser.add_argument("--aggregations", nargs="+", choices=get_args(Aggregation), default=list(AGGREGATIONS))
    parser.add_argument("--work", type=Path, help="file that keeps finished runs")
    return parser.parse_args(words)


def main() -> None:
    """Measure, print and store."""
    arguments = parse()
    arguments.model = whisper() if arguments.model == "whisper" else arguments.model
    config = RunConfig(
        model=arguments.model,
        data=arguments.data or dialect_folder(arguments.model),
        train_split=arguments.train_split,
        eval_split=arguments.eval_split,
        partition_by=arguments.partition_by,
        eval_utterances=arguments.eval_utterances,
        trained_tensors=arguments.trained_tensors,
        scale=arguments.scale,
        epsilon=arguments.epsilon,
        num_queries=arguments.queries,
        directions="shared",
        loss_check=False,
    )
    about = json.dumps([config.to_mapping(), arguments.devices], sort_keys=True)
    numbers = measure(arguments, SpeechCrowd(config, arguments.devices), about)
    path = store("attackers", numbers)
    before = ", ".join(f"{name} {value:.4g}" for name, value in numbers["before"].items())
    print(f"\nbefore training: {before}; over {len(arguments.seeds)} seeds, mean ± standard deviation:")
    for row in numbers["cells"]:
        print(line(row))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
