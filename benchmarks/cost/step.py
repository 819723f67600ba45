"""One two-sided ZO step against its bare forward passes, and against MeZO's and ZO-ASR's way of making one.

All sides compute the same loss of the same batch (8 windows of 5 s) and are timed in turn in one process. "Forwards" is
2q calls of our step's loss function under `inference_mode`, frozen encoder stages computed once as in the step. The
plain ways are `benchmarks.harness.plain` on the same trained tensors, with whole forward passes. Ours is timed in their
precision; in the one that devices choose by default it is held against its own forwards.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.harness import workload
from benchmarks.harness.plain import plain_step
from benchmarks.harness.rows import Action, interleaved, quotient, row, spread, store
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import select
from zo_common.models.compute import resolve_precision

AT_MOST = {"encoder-ffn": 1.05, "all": 1.10}  # a step's time over its forwards'
AT_LEAST = 1.3  # the published way's time over ours


def make_sides(model: Any, tensors: str, precision: str, batch: int, queries: int) -> dict[str, Action]:
    """Return what is timed: forwards alone, our step in two precisions, the plain step in both ways."""
    config = EstimatorConfig("two-sided", queries, workload.EPSILON)
    inputs = workload.random_batch(model, batch)
    state = LatticeState(model, tensors)
    other = copy.deepcopy(model)  # the published way replaces the storage of weights, which a lattice does not allow
    weights = list(select(other, tensors).values())
    other_loss = workload.whole_loss(other, inputs, precision)

    @torch.inference_mode()
    def forwards() -> None:
        loss_fn = workload.device_loss(model, inputs, tensors, precision)
        for _ in range(config.forwards):
            loss_fn()

    def ours(precision: str = precision) -> None:
        loss_fn = workload.device_loss(model, inputs, tensors, precision)
        zo_step(state, loss_fn, 7, 0, config, workload.LEARNING_RATE)

    def plain(in_place: bool) -> None:
        plain_step(weights, other_loss, range(queries), workload.EPSILON, workload.LEARNING_RATE, in_place)

    return {
        "forwards": forwards,
        "ours": ours,
        "chosen": lambda: ours(resolve_precision("auto", inputs.features.device)),
        "plain": lambda: plain(False),
        "plain_in_place": lambda: plain(True),
    }


def over_forwards(
    sides: Mapping[str, Action], tensors: str, precision: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return a step's time over its forwards', on a GPU its milliseconds beside it."""
    near = interleaved({name: sides[name] for name in ("ours", "forwards")}, arguments.repeats, arguments.device)
    where = f"{tensors}, {precision}"
    rows = [
        row(f"ZO step ÷ its {2 * arguments.queries} forwards, {where}", quotient(near["ours"], near["forwards"]))
        | ({"at_most": AT_MOST[tensors]} if tensors in AT_MOST else {})
    ]
    if arguments.device == "cuda":
        milliseconds = spread([1000 * s for s in near["ours"]])
        rows.append(row(f"ZO step of {arguments.queries} directions, {where}", milliseconds, unit="ms"))
    return rows


def plain_over_ours(
    sides: Mapping[str, Action], tensors: str, precision: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the published way's time over ours, in one precision and against the one that devices choose."""
    chosen = resolve_precision("auto", torch.device(arguments.device))
    names = ["ours", "plain", "plain_in_place", *(["chosen"] if chosen != precision else [])]
    far = interleaved({name: sides[name] for name in names}, arguments.plain_repeats, arguments.device)
    where = f"{tensors}, {precision}"
    rows = [
        row(f"MeZO and ZO-ASR as published ÷ ours, {where}", quotient(far["plain"], far["ours"]), at_least=AT_LEAST),
        row(f"the same in place ÷ ours, {where}", quotient(far["plain_in_place"], far["ours"]), against="1×"),
    ]
    if "chosen" in far:
        label = f"MeZO and ZO-ASR as published in {precision} ÷ ours as devices run it ({chosen}), {tensors}"
        rows.append(row(label, quotient(far["plain"], far["chosen"]), against="1×, other precision"))
    return rows


def measure(model: Any, tensors: str, precision: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return rows of one choice of trained tensors in one precision; the plain way only where asked for."""
    sides = make_sides(model, tensors, precision, arguments.batch, arguments.queries)
    rows = over_forwards(sides, tensors, precision, arguments)
    if precision in arguments.precisions:
        rows += plain_over_ours(sides, tensors, precision, arguments)
    for found in rows:
        print(f"{found['row']}: {found['median']:.3f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    workload.add_arguments(parser, repeats=7)
    parser.add_argument("--plain-repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--tensors", nargs="+", default=["encoder-ffn", "all"])
    parser.add_argument("--precisions", nargs="+", help="default: float32, on a GPU bfloat16 beside it")
    arguments = parser.parse_args()
    arguments.precisions = arguments.precisions or ["float32", *(["bfloat16"] if arguments.device == "cuda" else [])]
    chosen = resolve_precision("auto", torch.device(arguments.device))
    rows = []
    for tensors in arguments.tensors:
        for precision in dict.fromkeys([*arguments.precisions, chosen]):
            model = workload.whisper(arguments.architecture, arguments.device)
            rows += measure(model, tensors, precision, arguments)
    numbers = {
        "architecture": arguments.architecture,
        "batch": arguments.batch,
        "queries": arguments.queries,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    print(f"wrote {store('step', numbers, arguments.device)}")


if __name__ == "__main__":
    main()
