"""Errors of losses and of their differences with frozen weights in another precision, relative to float32.

    python -m benchmarks.learning.held_differences

On a few French telephone prompts with Whisper-base, along random directions of the default tensors, at one ε. Errors
are those that the loss check compares. How often the check would take a precision is counted over all choices of some
of the prompts and of the directions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.rows import store
from benchmarks.learning.crowd import Crowd
from benchmarks.learning.tasks import Places, task_of
from client.device.loss_choice import UtteranceTrials
from zo_common.config.run import RunConfig
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import DEFAULT
from zo_common.models.frozen.hold import hold
from zo_common.models.frozen.originals import Originals
from zo_common.models.loss_check import HELD_DIRECTIONS, MOST_UTTERANCES
from zo_common.models.loss_comparison import Probe, Tolerances, compare, compare_held, root_mean_square
from zo_common.models.loss_probes import Probes, Setting
from zo_common.speech.recordings import spread

NAME = "held_differences"
CASES = (("bfloat16", "bfloat16"), ("int8", "float32"), ("int8", "bfloat16"))
DIRECTIONS, EPSILON, TAIL, FEW = 10, 2.0**-7, 32, 2


def numbers(found: Probe, reference: Probe, few: int = FEW, directions: int = HELD_DIRECTIONS) -> dict[str, float]:
    """Return the errors of a probe, and the share of smaller checks that would take it.

    Args:
        few: utterances of a smaller check.
        directions: its directions.
    """
    compared = compare_held(found, reference)
    one, two = found.differences.ravel(), reference.differences.ravel()
    return {
        "loss": compared.loss,
        "cosine": float(one @ two) / float(np.linalg.norm(one) * np.linalg.norm(two)),
        "difference": float(compare(found, reference).difference or 0.0),
        "taken": _taken(found, reference, few, directions),
    }


def batch_noise(reference: Probe) -> float:
    """Return the standard error of the mean of the utterances' differences ÷ that mean, both over directions."""
    differences = reference.differences
    errors = differences.std(axis=1, ddof=1) / sqrt(differences.shape[1])
    return root_mean_square(errors) / root_mean_square(differences.mean(axis=1))


def _taken(found: Probe, reference: Probe, few: int, directions: int) -> float:
    limits, fits = Tolerances().of_held, []
    for utterances in combinations(range(len(found.losses)), few):
        for chosen in combinations(range(len(found.differences)), directions):
            sides = (_part(probe, utterances, chosen) for probe in (found, reference))
            fits.append(compare_held(*sides).fits(limits))
    return float(np.mean(fits))


def _part(probe: Probe, utterances: Sequence[int], directions: Sequence[int]) -> Probe:
    at = np.ix_(directions, utterances)
    return Probe(probe.losses[list(utterances)], probe.differences[at], probe.curvatures[at])


def measure(places: Places, task_name: str, threads: int) -> dict[str, Any]:
    """Measure all cases on some prompts of one task."""
    task = task_of(task_name, places)
    crowd = Crowd(task, 1, threads=threads)
    few = spread(crowd.shares[0], MOST_UTTERANCES)
    config = RunConfig(model=task.model, data=task.data, language=task.language)
    originals = Originals(task.model)

    def probe(setting: Setting) -> Probe:
        state = LatticeState(crowd.model, DEFAULT)
        names = list(state.exponents)
        trials = UtteranceTrials(crowd.speech, few, names, config, next(crowd.model.parameters()).device)
        return Probes(state, trials, 0).probe(setting, EPSILON, DIRECTIONS)

    reference = probe(Setting(TAIL, "float32"))
    rows = []
    for frozen, rest in CASES:
        hold(crowd.model, list(LatticeState(crowd.model, DEFAULT).exponents), frozen, originals)
        found = numbers(probe(Setting(TAIL, rest, held=True)), reference)
        rows.append({"frozen": frozen, "rest": rest, **found})
        print(json.dumps(rows[-1]), flush=True)
    about = {"task": task.name, "model": Path(task.model).name, "prompts": len(few), "directions": DIRECTIONS}
    return {**about, "epsilon": EPSILON, "tail_tokens": TAIL, "noise": batch_noise(reference), "rows": rows}


def table(row: dict[str, Any]) -> str:
    """Return the page's table and the sentence below it."""
    lines = [
        "| frozen weights, the rest in | mean error of the loss | cosine of the differences | error of the differences "
        "| taken by smaller checks |",
        "|---|---|---|---|---|",
    ]
    for each in row["rows"]:
        shares = f"{each['loss']:.1%} | {each['cosine']:.3f} | {each['difference']:.0%} | {each['taken']:.0%}"
        lines.append(f"| {each['frozen']}, {each['rest']} | {shares} |")
    noise = f"A batch of these {row['prompts']} prompts has a noise of {row['noise']:.0%} of its mean difference."
    return "\n".join([*lines, "", noise])


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="fr")
    parser.add_argument("--debian", type=Path, help="folder where Debian's packages of prompts are unpacked")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    found = measure(Places(debian=arguments.debian), arguments.task, arguments.threads)
    print(table(found))
    print(f"wrote {store(NAME, found)}")


if __name__ == "__main__":
    main()
