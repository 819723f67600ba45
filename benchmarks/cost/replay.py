"""Replay of S directions over all weights of Whisper-tiny: one fused pass against seed, `randn` and add for each.

Ours is `LatticeState.apply`, the one call behind sync, resume and export. The other side is how MeZO, ZO-ASR and their
federated successors rebuild a model from seeds and scalars, in place: the fastest plain reading of it.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.harness import workload
from benchmarks.harness.plain import perturb
from benchmarks.harness.rows import interleaved, quotient, row, store
from zo_common.directions.seeds import fold_in
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import select
from zo_common.lattice.update import Update

AT_LEAST = {1: 8.0, 64: 20.0}
COEFFICIENT = 3e-6  # of the size that training gives; far above one unit of the grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    workload.add_arguments(parser, repeats=2)
    parser.add_argument("--tensors", default="all")
    parser.add_argument("--directions", type=int, nargs="+", default=list(AT_LEAST))
    arguments = parser.parse_args()
    model = workload.whisper(arguments.architecture, arguments.device)
    state = LatticeState(model, arguments.tensors)
    other = [parameter.data.clone() for parameter in select(model, arguments.tensors).values()]
    rows: list[dict[str, Any]] = []
    for count in arguments.directions:
        seeds = [fold_in(0, index) for index in range(count)]
        updates = [Update(seed, COEFFICIENT) for seed in seeds]

        def plain(seeds: list[int] = seeds) -> None:
            for seed in seeds:
                perturb(other, seed, COEFFICIENT, in_place=True)

        sides = {"plain": plain, "ours": lambda updates=updates: state.apply(updates)}
        many = max(arguments.repeats, 10 // count)
        found = interleaved(sides, many, arguments.device, warm=bool(rows))
        faster = quotient(found["plain"], found["ours"])
        label = f"seed + randn + add ÷ our replay, {count} direction{'s' if count > 1 else ''}"
        target = {"at_least": AT_LEAST[count]} if count in AT_LEAST else {}
        rows.append(row(label, faster, **target))
        print(f"{label}: {faster['median']:.1f} ({faster['min']:.1f} … {faster['max']:.1f})", flush=True)
    numbers = {
        "architecture": arguments.architecture,
        "weights": state.num_elements,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    print(f"wrote {store('replay', numbers, arguments.device)}")


if __name__ == "__main__":
    main()
