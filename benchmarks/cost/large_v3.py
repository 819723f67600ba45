"""Whisper-large-v3's shape with random weights on one GPU: time and memory of a ZO step, time of replay.

Step: two-sided, q = 8, all weights, batch of 8 windows of 5 s, bfloat16 autocast over float32 weights, beside its bare
forwards. Replay: `LatticeState.apply` of 64 and of 1024 directions. CUDA events; memory is the most that torch handed
out. Times are absolute, as nothing else runs on that GPU. Without one it says so and stores nothing.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.harness import workload
from benchmarks.harness.rows import Action, interleaved, quotient, row, spread, store, timed
from zo_common.directions.seeds import fold_in
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update

COEFFICIENT = 3e-7


def peak(action: Action) -> int:
    """Return the most memory in use during a call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def step_rows(model: Any, state: LatticeState, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return memory and time of a step and of its forwards."""
    loss_fn = workload.device_loss(model, workload.random_batch(model, arguments.batch), "all", arguments.precision)
    config = EstimatorConfig("two-sided", arguments.queries, workload.EPSILON)

    @torch.inference_mode()
    def forwards() -> None:
        for _ in range(config.forwards):
            loss_fn()

    def step() -> None:
        zo_step(state, loss_fn, 7, 0, config, workload.LEARNING_RATE)

    step()
    stepping, inference = peak(step), peak(forwards)
    found = interleaved({"step": step, "forwards": forwards}, arguments.repeats, "cuda")
    what = f"{arguments.architecture}, {arguments.precision}, {arguments.queries} directions"
    return [
        row(f"ZO step, {what}", spread([1000 * s for s in found["step"]]), unit="ms"),
        row(
            f"ZO step ÷ its {config.forwards} forwards, {what}", quotient(found["step"], found["forwards"]), at_most=1.1
        ),
        row(f"memory, ZO step, {what}", {"median": stepping}, unit="B", against="weights and activations"),
        row(f"memory, ZO step ÷ inference, {what}", {"median": stepping / inference}, at_most=1.02),
    ]


def replay_row(state: LatticeState, count: int, repeats: int) -> dict[str, Any]:
    """Return time of one replay."""
    updates = [Update(fold_in(0, index), COEFFICIENT) for index in range(count)]
    milliseconds = [1000 * s for s in timed(lambda: state.apply(updates), repeats, "cuda")]
    return row(f"replay of {count} directions", spread(milliseconds), unit="ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", choices=tuple(workload.ARCHITECTURES), default="large-v3")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--directions", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here: Whisper-large-v3 was not measured.")
        return
    model = workload.random_whisper(arguments.architecture, "cuda")
    state = LatticeState(model, "all")
    rows = step_rows(model, state, arguments)
    rows += [replay_row(state, count, min(arguments.repeats, 3)) for count in arguments.directions]
    for found in rows:
        print(f"{found['row']}: {found['median']:.4g} {found.get('unit', '')}")
    settings = {key: getattr(arguments, key) for key in ("architecture", "precision", "batch", "queries")}
    print(f"wrote {store('large_v3', {**settings, 'weights': state.num_elements, 'rows': rows}, 'cuda')}")


if __name__ == "__main__":
    main()
