"""Peak memory of a ZO step over that of a bare inference forward; SGD, Adam and the published ZO way beside it.

Every number is a fresh process's. After all imports, and after every kind of step was warmed up on a small Whisper, the
process notes its resident memory; then come random weights, what the method needs beside them (lattice, optimizer), and
two steps. Peak = the largest resident memory during those steps (VmHWM, reset before them) minus what was noted:
weights, activations and everything else. Getting ready is a row of its own, and not part of the peak. On a GPU:
`torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import row, spread, store

AT_MOST = 1.02
NAMES = {"inference": "inference", "zo": "ZO step", "plain": "MeZO as published", "sgd": "SGD", "adam": "Adam"}
METHODS = tuple(NAMES)
# glibc: one heap, and freed blocks go back at once, or peaks would depend on what was freed before
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
_STATUS = Path("/proc/self/status")


def make_action(method: str, model: Any, batch: Any, tensors: str, precision: str, queries: int) -> Callable[[], Any]:
    """Return one step (or forward) of a method, ready to be called."""
    import torch

    from benchmarks.harness import workload
    from benchmarks.harness.plain import plain_step
    from zo_common.estimator.settings import EstimatorConfig
    from zo_common.estimator.step import zo_step
    from zo_common.lattice.state import LatticeState
    from zo_common.lattice.trained import select

    loss_fn = workload.whole_loss(model, batch, precision)
    if method == "inference":
        return torch.inference_mode()(loss_fn)
    if method == "zo":
        state, config = LatticeState(model, tensors), EstimatorConfig("two-sided", queries, workload.EPSILON)
        size, frames = len(batch.labels), batch.features.shape[2] - workload.SILENT_FRAMES

        def step() -> None:
            drawn = workload.random_batch(model, size, frames)  # as on a device, the step alone holds its batch
            loss = workload.device_loss(model, drawn, tensors, precision)
            del drawn
            zo_step(state, loss, 7, 0, config, workload.LEARNING_RATE)

        return step
    weights = list(select(model, tensors).values())
    if method == "plain":
        return lambda: plain_step(weights, loss_fn, range(queries), workload.EPSILON, workload.LEARNING_RATE)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[method](weights, lr=1e-6)

    def first_order() -> None:
        loss_fn().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return first_order


def child(arguments: argparse.Namespace) -> dict[str, float]:
    """Return bytes of one method in this process: `peak` of two steps, `setup_peak` of getting ready, `weights`."""
    from benchmarks.harness import workload

    device, meter = arguments.device, _Cuda() if arguments.device == "cuda" else Resident()
    settings = arguments.tensors, arguments.precision, arguments.queries
    small = workload.random_whisper("tiny", device, d_model=48, encoder_ffn_dim=64, decoder_ffn_dim=64)
    for method in METHODS:
        make_action(method, small, workload.random_batch(small, 2, 100), *settings)()
    del small
    baseline = meter.start()
    model = workload.random_whisper(arguments.architecture, device)
    weights = meter.start() - baseline
    action = make_action(arguments.child, model, workload.random_batch(model, arguments.batch), *settings)
    setup = meter.peak() - baseline
    meter.start()
    for _ in range(2):
        action()
    return {"peak": meter.peak() - baseline, "setup_peak": setup, "weights": weights}


class Resident:
    """Resident memory of this process."""

    def start(self) -> int:
        """Give freed memory back, forget the peak; bytes now in use."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return self._read("VmRSS")

    def peak(self) -> int:
        """Return the most since `start`."""
        return self._read("VmHWM")

    @staticmethod
    def _read(field: str) -> int:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
        return 1024 * int(line.split()[1])


class _Cuda:
    """Memory that torch has handed out on the GPU."""

    def start(self) -> int:
        """Forget the peak; bytes now in use."""
        import torch

        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Return the most since `start`."""
        import torch

        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


def fresh(arguments: argparse.Namespace, method: str, tensors: str, batch: int) -> dict[str, float]:
    """Run `child` in a process of its own and return its numbers."""
    options = {
        "child": method,
        "tensors": tensors,
        "batch": batch,
        **{key: getattr(arguments, key) for key in ("device", "architecture", "precision", "queries")},
    }
    command = [sys.executable, "-m", "benchmarks.cost.memory", *(f"--{key}={value}" for key, value in options.items())]
    done = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    from benchmarks.harness.workload import usable_device

    parser.add_argument("--device", type=usable_device, choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--architecture", default="tiny")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--repeats", type=int, default=3, help="processes for inference and ZO; one for the others")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--queries", type=int, default=2, help="what is alive at once does not depend on it")
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--tensors", default="all", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=8, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.child:
        print(json.dumps(child(arguments)))
        return
    first = arguments.batches[0]
    cases = {(method, "all", batch): arguments.repeats for batch in arguments.batches for method in METHODS[:2]}
    cases |= {("zo", "encoder-ffn", first): arguments.repeats}
    cases |= {(method, tensors, first): 1 for tensors in ("all", "encoder-ffn") for method in METHODS[2:]}
    with ThreadPoolExecutor(1 if arguments.device == "cuda" else os.cpu_count()) as pool:
        work = {case: [pool.submit(fresh, arguments, *case) for _ in range(n)] for case, n in cases.items()}
        found = {case: [future.result() for future in futures] for case, futures in work.items()}
    rows = []
    for (method, tensors, batch), measured in found.items():
        if method == "inference":
            continue
        base = statistics.median(m["peak"] for m in found["inference", "all", batch])
        label = f"memory, {NAMES[method]} ÷ inference, {tensors}, batch {batch}"
        target = {"at_most": AT_MOST} if method == "zo" else {"against": "ZO step"}
        rows.append(row(label, spread([m["peak"] / base for m in measured]), **target))
        print(f"{label}: {rows[-1]['median']:.4f}", flush=True)
        if method == "zo" and batch == first:
            ready = [m["setup_peak"] / base for m in measured]
            rows.append(
                row(f"memory, building the lattice ÷ inference, {tensors}", spread(ready), against="once a start")
            )
            print(f"{rows[-1]['row']}: {rows[-1]['median']:.4f}", flush=True)
    detail = {
        f"{method}, {tensors}, batch {batch}": {key: statistics.median(m[key] for m in measured) for key in measured[0]}
        for (method, tensors, batch), measured in found.items()
    }
    settings = {key: getattr(arguments, key) for key in ("architecture", "precision", "queries")}
    print(f"wrote {store('memory', {**settings, 'rows': rows, 'bytes': detail}, arguments.device)}")


if __name__ == "__main__":
    main()
