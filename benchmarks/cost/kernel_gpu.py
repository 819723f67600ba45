"""CUDA kernel against torch over as many weights as Whisper-tiny and Whisper-large-v3 have; needs a CUDA device."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.harness.rows import quotient, row, spread, store
from simulations.reports.machine import hardware
from zo_common.lattice.kernels.base import LatticeTensor

# elements of all weights and of the largest tensor
SIZES = {"whisper-tiny": (37_760_640, 384 * 1536), "whisper-large-v3": (1_540_000_000, 1280 * 5120)}
GRID = -24
HEAD_START_CYCLES = 30_000_000  # some 15 ms in which the host queues work
Action = Callable[[], Any]


def device_seconds(sides: Mapping[str, Action], repeats: int) -> dict[str, list[float]]:
    """Return GPU seconds of every side, in turn, between CUDA events, after three calls that do not count.

    The GPU is kept busy before the first event, so that time in which it would wait for the host is not counted.
    """
    for action in sides.values():
        for _ in range(3):
            action()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, action in sides.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            torch.cuda._sleep(HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
            start.record()
            action()
            end.record()
            torch.cuda.synchronize()
            found[name].append(start.elapsed_time(end) / 1000)
    return found


def host_seconds(action: Callable[[], Any], calls: int = 50) -> float:
    """Return seconds a call where many follow each other, everything included."""
    action()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        action()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def _tensors(elements: int, largest: int) -> tuple[LatticeTensor, ...]:
    sizes = [min(largest, elements - start) for start in range(0, elements, largest)]
    weights = [torch.randint(-(2**20), 2**20, (size,), device="cuda") * 2.0**GRID for size in sizes]
    return tuple(LatticeTensor(f"t{i}", weight, i * 7919 + 1, GRID, 0) for i, weight in enumerate(weights))


def torch_sides(tensors: tuple[LatticeTensor, ...]) -> dict[str, Action]:
    """Return a copy of as many bytes, and a Gaussian perturbation as every peer makes it."""
    flat = [torch.zeros(sum(t.weight.numel() for t in tensors), device="cuda") for _ in range(2)]
    scratch = torch.empty(max(t.weight.numel() for t in tensors), device="cuda")

    def randn_add() -> None:
        torch.manual_seed(1)
        for t in tensors:
            part = scratch[: t.weight.numel()]
            torch.randn(part.numel(), out=part)
            t.weight.add_(part, alpha=0.0)

    return {"copy": lambda: flat[0].copy_(flat[1]), "randn_add": randn_add}


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    """Return the rows of one size of model."""
    # not at the top: without a CUDA device this script says so, with or without Triton
    from zo_common.lattice.kernels.cuda import TritonKernel

    elements, largest = SIZES[name]
    tensors = _tensors(elements, largest)
    kernel = TritonKernel(tensors)

    def passing(directions: int) -> Action:
        seeds, units = list(range(directions)), np.ones((len(tensors), directions), np.int64)
        return lambda: kernel.add(seeds, units)

    ours = {"one": passing(1), "64": passing(64), "256": passing(256), "sum": kernel.checksum_sums}
    seconds = device_seconds(torch_sides(tensors) | ours | {"peaks": kernel.peaks}, repeats)

    def rate(side: str, amount: int) -> dict[str, Any]:
        return spread([amount / s for s in seconds[side]])

    host = spread([8 * elements / host_seconds(passing(1)) for _ in range(5)])
    return [
        row(
            f"{name}: one pass, share of copy bandwidth",
            quotient(seconds["copy"], seconds["one"]),
            unit="%",
            at_least=0.7,
        ),
        row(f"{name}: one pass ÷ seed + randn + add", quotient(seconds["one"], seconds["randn_add"]), against="1×"),
        row(f"{name}: signs, 64 directions fused", rate("64", 64 * elements), unit="/s", at_least=5e11),
        row(f"{name}: signs, 256 directions fused", rate("256", 256 * elements), unit="/s", at_least=5e11),
        row(f"{name}: bytes read and written, copy", rate("copy", 8 * elements), unit="/s"),
        row(f"{name}: bytes read and written, one pass", rate("one", 8 * elements), unit="/s"),
        row(f"{name}: bytes read and written, one pass, host included", host, unit="/s"),
        row(f"{name}: bytes read, state checksum", rate("sum", 4 * elements), unit="/s"),
        row(f"{name}: bytes read, range check", rate("peaks", 4 * elements), unit="/s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("No CUDA device here: nothing was measured, nothing is stored.")
        return
    rows = []
    for name in arguments.models:
        rows += measure(name, arguments.repeats)
        torch.cuda.empty_cache()
    for line in rows:
        print(f"{line['row']}: {line['median']:.4g} ({line['min']:.4g} … {line['max']:.4g})")
    numbers = {"hardware": hardware("cuda"), "cuda": torch.version.cuda, "rows": rows}
    print(f"wrote {store('kernel_gpu', numbers)}")


if __name__ == "__main__":
    main()
