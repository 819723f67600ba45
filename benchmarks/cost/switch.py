"""Cost of switching one resident Whisper-tiny.en from ledger to ledger, against one forward pass.

Four ledgers of random rounds for each choice of tensors: the first replay of a ledger, a switch with its sum kept, one
without (negated rounds, then rounds), and the way back to the base. All are measured in turn with a forward pass of one
utterance of five seconds, on one thread, as processor time, so that other programs on the machine count little.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness.rows import RESULTS, quotient, spread, store
from benchmarks.harness.workload import random_batch, whisper, whole_loss
from simulations.reports.report import human_bytes
from zo_common.adapters.adapted import AdaptedModel
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.grid import Scale
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import DEFAULT
from zo_common.ledger.ledger import Ledger, LedgerHeader, describe_tensors
from zo_common.ledger.record import Contribution, Record
from zo_common.models.load import LoadedModel

NAME = "switch"
SIZES: dict[str, Scale] = {DEFAULT: "unit-wide", "encoder-early": "unit-wide", "all": "unit-wide"}
DIALECTS = 4
ROUNDS, QUERIES = 320, 8  # of `zo-asr train` by default
COEFFICIENT = 1e-4
ROOM = 2 << 30  # for the sums of all ledgers


def random_ledger(model: nn.Module, base: str, pattern: str, scale: Scale, seed: int) -> Ledger:
    """Return a ledger of a default run's length, its coefficients random; the model stays as it is."""
    state = LatticeState(copy.deepcopy(model), pattern, scale)
    header = LedgerHeader(
        base, state.checksum(), "tiny.en", pattern, scale, 0.0, "leave-one-out", seed, "now", describe_tensors(state)
    )
    rng = np.random.default_rng(seed)
    coefficients = (COEFFICIENT * rng.standard_normal((ROUNDS, 1, QUERIES))).astype(np.float32)
    seeds = rng.integers(1 << 62, size=ROUNDS).tolist()
    return Ledger(
        header,
        tuple(Record(r + 1, 0, (Contribution(seeds[r], 0, coefficients[r]),)) for r in range(ROUNDS)),
    )


def processor_seconds(action: Callable[[], Any]) -> float:
    """Return seconds of processor time of one call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def measure(model: nn.Module, base: str, pattern: str, scale: Scale, repeats: int) -> dict[str, Any]:
    """Return all numbers of one choice of tensors."""
    loaded, before = LoadedModel(model, None), fingerprint(model)
    ledgers = [random_ledger(model, base, pattern, scale, seed) for seed in range(DIALECTS)]
    replaying, summed = AdaptedModel(loaded, memory=0), AdaptedModel(loaded, memory=ROOM)
    loss = whole_loss(model, random_batch(model, 1))
    with torch.inference_mode():
        loss()
        first = [processor_seconds(partial(summed.switch, ledger)) for ledger in ledgers]
        bytes_a_ledger = summed.remembered / DIALECTS
        turn = itertools.cycle(ledgers)
        found: dict[str, list[float]] = {name: [] for name in ("forward", "switch", "base", "replayed")}
        for _ in range(repeats):
            found["forward"].append(processor_seconds(loss))
            found["switch"].append(processor_seconds(lambda: summed.switch(next(turn))))
        for _ in range(repeats):
            found["base"].append(processor_seconds(lambda: summed.switch(None)))
            summed.switch(next(turn))
        summed.switch(None)
        replaying.switch(next(turn))
        for _ in range(max(2, repeats // 10)):
            found["replayed"].append(processor_seconds(lambda: replaying.switch(next(turn))))
        replaying.switch(None)
    assert fingerprint(model) == before
    return {
        "pattern": pattern,
        "trained_weights": sum(int(np.prod(t.shape)) for t in ledgers[0].header.tensors),
        "directions": ROUNDS * QUERIES,
        "first_replay_seconds": spread(first),
        "switch_seconds": spread(found["switch"]),
        "base_seconds": spread(found["base"]),
        "replayed_switch_seconds": spread(found["replayed"]),
        "forward_seconds": spread(found["forward"]),
        "switch_over_forward": quotient(found["switch"], found["forward"]),
        "replayed_switch_over_forward": statistics.median(found["replayed"]) / statistics.median(found["forward"]),
        "first_over_forward": statistics.median(first) / statistics.median(found["forward"]),
        "switches_a_second": 1 / statistics.median(found["switch"]),
        "bytes_a_ledger": bytes_a_ledger,
    }


def table() -> str:
    """Return the committed numbers, for docs/adapters.md."""
    result = json.loads((RESULTS / f"{NAME}.json").read_text())
    lines = [
        "| trained weights | switch, ms | ÷ a forward pass | switches a second | back to the base, ms | "
        "first replay, ms | switch without a sum, ms | sum of a ledger |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in result["sizes"]:
        milliseconds = [
            f"{1000 * each[name]['median']:.3g}"
            for name in ("switch_seconds", "base_seconds", "first_replay_seconds", "replayed_switch_seconds")
        ]
        switch, base, first, replayed = milliseconds
        ratio, rate = f"{each['switch_over_forward']['ratio']:.3g}", f"{each['switches_a_second']:,.0f}"
        what, size = f"{each['trained_weights']:,} (`{each['pattern']}`)", human_bytes(each["bytes_a_ledger"])
        lines.append(f"| {what} | {switch} | {ratio} | {rate} | {base} | {first} | {replayed} | {size} |")
    forward = 1000 * statistics.median(each["forward_seconds"]["median"] for each in result["sizes"])
    lines += [
        "",
        f"Whisper-tiny.en, {DIALECTS} ledgers of {ROUNDS} rounds × {QUERIES} directions, switched in turn; processor "
        f"time of one thread ({result['hardware']['cpu']}), medians. A forward pass is one utterance of 5 s, encoder "
        f"and decoder, {forward:.0f} ms in the same run.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = whisper("tiny.en")
    base = fingerprint(model)
    sizes = []
    for pattern, scale in SIZES.items():
        sizes.append(measure(model, base, pattern, scale, arguments.repeats))
        print(json.dumps({k: v for k, v in sizes[-1].items() if not isinstance(v, dict)}), flush=True)
    print(f"wrote {store(NAME, {'threads': 1, 'sizes': sizes})}")


if __name__ == "__main__":
    main()
