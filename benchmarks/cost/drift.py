"""Drift of weights by perturbing and restoring alone: 240 queries of w + εz, w − 2εz, w + εz, and no update.

Plain: in place with seeded `randn`, as MeZO (arXiv 2305.17333) restores its weights, in three number formats. Ours: the
same walk on the lattice, where it must change nothing. 240 queries are 30 steps of 8 directions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.harness import workload
from benchmarks.harness.plain import perturb
from benchmarks.harness.rows import row, store
from zo_common.directions.seeds import direction_seed
from zo_common.estimator.step import Walker
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import select

TENSORS = "*encoder.layers.0.fc1.*,*encoder.layers.0.fc2.*"
NAMES = {TENSORS: "feed-forward weights of the first encoder layer"}
FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def distance(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> dict[str, float]:
    """Return share of elements that differ, the largest difference, and its norm over that of `before`, in float64."""
    old = torch.cat([w.detach().double().flatten() for w in before])
    moved = torch.cat([w.detach().double().flatten() for w in after]) - old
    return {
        "share_changed": float((moved != 0).double().mean()),
        "largest_change": float(moved.abs().max()),
        "relative_l2": float(moved.norm() / old.norm()),
    }


def plain_drift(weights: Sequence[torch.Tensor], dtype: torch.dtype, queries: int, epsilon: float) -> dict[str, float]:
    """Return `distance` between weights in that format and what they are after the walk."""
    start = [weight.detach().to(dtype) for weight in weights]
    moved = [weight.clone() for weight in start]
    for query in range(queries):
        for factor in (epsilon, -2 * epsilon, epsilon):
            perturb(moved, query, factor, in_place=True)
    return distance(start, moved)


def lattice_drift(model: nn.Module, tensors: str, queries: int, epsilon: float) -> dict[str, Any]:
    """Return `distance` on the lattice, and whether the state checksum is that of before."""
    state = LatticeState(model, tensors)
    start, checksum = [t.weight.clone() for t in state.tensors], state.checksum()
    walker = Walker(state, epsilon)
    for query in range(queries):
        seed = direction_seed(0, 0, query)
        walker.move((seed, 1))
        walker.move((seed, -1))
    walker.move(None)
    found = distance(start, [t.weight for t in state.tensors])
    return {**found, "checksum_equal": state.checksum() == checksum}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=workload.usable_device, choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--architecture", choices=("tiny.en", *workload.ARCHITECTURES), default="tiny.en")
    parser.add_argument("--tensors", default=TENSORS)
    parser.add_argument("--queries", type=int, default=240)
    arguments = parser.parse_args()
    model = workload.whisper(arguments.architecture, arguments.device)
    weights = list(select(model, arguments.tensors).values())
    found: dict[str, dict[str, Any]] = {
        name: plain_drift(weights, dtype, arguments.queries, workload.EPSILON) for name, dtype in FORMATS.items()
    }
    found["ours"] = lattice_drift(model, arguments.tensors, arguments.queries, workload.EPSILON)
    count = sum(w.numel() for w in weights)
    of = f"{NAMES.get(arguments.tensors, arguments.tensors)}, {count / 1e6:.2f} M"
    rows = []
    for name, numbers in found.items():
        ours = name == "ours"
        target: dict[str, Any] = {"at_most": 0.0} if ours else {"against": "0"}
        what = "ours" if ours else f"plain, {name}"
        share = {"median": numbers["share_changed"]}
        rows.append(row(f"weights changed by {arguments.queries} queries, {what}", share, unit="%", of=of, **target))
        if not ours:
            far = {"median": numbers["relative_l2"]}
            rows.append(row(f"relative L2 of that change, {what}", far, unit="", of=of, against="0"))
        print(f"{what}: {numbers}", flush=True)
    settings = {"tensors": arguments.tensors, "weights": count, "queries": arguments.queries}
    numbers = {**settings, "epsilon": workload.EPSILON, "drift": found, "rows": rows}
    print(f"wrote {store('drift', numbers, arguments.device)}")


if __name__ == "__main__":
    main()
