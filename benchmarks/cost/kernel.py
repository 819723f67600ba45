"""CPU kernel against torch over the weights of Whisper-tiny: one in-place pass, fused directions, checksum, start."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness.rows import ratio, spread, store, timed
from zo_common.lattice.state import LatticeState

WHISPER_TINY_ELEMENTS = 37_760_640  # parameters of Whisper-tiny.en, tied ones once
SMALL_TENSORS, SMALL_ELEMENTS = 500, 700

# a process of its own; torch and numba are imported before the clock starts
FIRST_PASS = """
import time
import numba
import torch
start = time.perf_counter()
from torch import nn
from zo_common.lattice.state import LatticeState
model = nn.Sequential(nn.Linear(80, 64), nn.LayerNorm(64), nn.Linear(64, 500))
state = LatticeState(model, "all", kernel="numba")
state.shift([3], state.epsilon_units(1e-3))
state.checksum()
print(time.perf_counter() - start)
"""


def large_tensors(threads: int, fused: int, repeats: int) -> dict[str, Any]:
    """Return times of passes over the weights of Whisper-tiny ÷ torch's own."""
    rows, left = 384 * 1536, WHISPER_TINY_ELEMENTS
    weights = [nn.Parameter(torch.randn(min(rows, left - start)) * 0.05) for start in range(0, left, rows)]
    state = LatticeState(nn.ParameterList(weights), "all", threads=threads)
    step = state.epsilon_units(1e-3)
    seeds = list(range(fused))
    other = [torch.randn(len(w)) for w in weights]

    def plain_add() -> None:
        for weight in weights:
            weight.data.add_(0.0)

    def copy() -> None:
        for weight, scratch in zip(weights, other, strict=True):
            scratch.copy_(weight.data)

    def randn_add() -> None:
        torch.manual_seed(1)
        for weight, scratch in zip(weights, other, strict=True):
            torch.randn(len(weight), out=scratch)
            weight.data.add_(scratch, alpha=0.0)

    def one_pass() -> None:
        state.shift([7], step)

    small = step // 1000
    seconds = timed(lambda: state.shift(seeds, small.repeat(len(seeds), axis=1)), 5)
    return {
        "elements": state.num_elements,
        "one_pass_over_torch_add": ratio(one_pass, plain_add, repeats),
        "one_pass_over_torch_copy": ratio(one_pass, copy, repeats),
        "one_pass_over_manual_seed_randn_add": ratio(one_pass, randn_add, repeats),
        "checksum_over_torch_add": ratio(state.checksum, plain_add, repeats),
        "fused_signs_per_second_per_core": spread([len(seeds) * state.num_elements / s / threads for s in seconds]),
    }


def small_tensors_over_one(threads: int, repeats: int) -> dict[str, Any]:
    """Return the time of a pass over many small tensors ÷ over one tensor of their total size."""
    many = [nn.Parameter(torch.randn(SMALL_ELEMENTS)) for _ in range(SMALL_TENSORS)]
    one = [nn.Parameter(torch.randn(SMALL_TENSORS * SMALL_ELEMENTS))]
    states = [LatticeState(nn.ParameterList(w), "all", threads=threads, kernel="numba") for w in (many, one)]
    units = [np.ones((len(w), 16), np.int64) for w in (many, one)]
    seeds = list(range(16))
    passes = [lambda s=s, u=u: s.shift(seeds, u) for s, u in zip(states, units, strict=True)]
    return {"tensors": SMALL_TENSORS, "elements_each": SMALL_ELEMENTS, **ratio(passes[0], passes[1], repeats)}


def second_process_start(repeats: int) -> dict[str, Any]:
    """Return seconds from the imports to the end of the first pass and checksum, with a warm disk cache.

    Absolute, as there is nothing to compare with; the table holds it against a limit.
    """
    command = [sys.executable, "-c", FIRST_PASS]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(1 + repeats)]
    return spread([float(run.stdout) for run in runs[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--fused", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    numbers = {
        "threads": arguments.threads,
        **large_tensors(arguments.threads, arguments.fused, arguments.repeats),
        "small_tensors_over_one": small_tensors_over_one(arguments.threads, 10 * arguments.repeats),
        "second_process_start_seconds": second_process_start(5),
    }
    path = store("kernel", numbers)
    one = numbers["one_pass_over_torch_add"]
    print(f"one pass ÷ torch add_: {one['median']:.2f} ({one['min']:.2f} … {one['max']:.2f}); wrote {path}")


if __name__ == "__main__":
    main()
