"""The server's cost of a round, over clients, local steps, queries and parameters, and its limits of linearity.

The cost is that of validating replies, aggregating them, deriving direction seeds, applying all directions, the
checksum and the ledger. Each sweep changes one number; where cost is linear, seconds ÷ (directions × parameters) stays
the same. `python` is all but the kernel's passes over the weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from benchmarks.cost.kernel import WHISPER_TINY_ELEMENTS
from benchmarks.harness.rows import row, store
from server.messaging.validation import RoundInbox
from zo_common.aggregation.mean import aggregate
from zo_common.directions.seeds import client_seed
from zo_common.estimator.settings import EstimatorConfig
from zo_common.lattice.state import LatticeState
from zo_common.ledger.file import LedgerFile
from zo_common.ledger.ledger import LedgerHeader, describe_tensors
from zo_common.ledger.record import Record, all_updates
from zo_common.ledger.replay import apply_all
from zo_common.wire.plan import Plan, Reply, Status, encode_reply

T = TypeVar("T")
ROWS = 384 * 1536  # weights of a tensor, as in Whisper-tiny's feed-forward layers
RATE = 2e-3
SWEEPS = {
    "clients": (10, 30, 100, 300, 1000),
    "local_steps": (1, 2, 5, 10),
    "num_queries": (2, 4, 8, 16, 32),
    "parameters": (10_000, 100_000, 1_000_000, 4_000_000),
}


@dataclass(frozen=True)
class Size:
    """A round: how many clients, local steps and queries, and how many weights are trained."""

    clients: int = 30
    local_steps: int = 2
    num_queries: int = 8
    parameters: int = 1_000_000

    @property
    def directions(self) -> int:
        """Updates of the round."""
        return self.clients * self.local_steps * self.num_queries


FULL = Size(1000, 10, 8, WHISPER_TINY_ELEMENTS)


class Stopwatch:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, action: Callable[[], T]) -> T:
        """Return the action's result; its time is added to what the name has."""
        start = time.perf_counter()
        result = action()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result


def state_of(parameters: int, threads: int) -> LatticeState:
    """Return a lattice of weights as large as a trained model's, in tensors of at most `ROWS` weights."""
    generator = torch.Generator().manual_seed(0)
    sizes = [min(ROWS, parameters - start) for start in range(0, parameters, ROWS)]
    weights = [nn.Parameter(torch.randn(size, generator=generator) * 0.05) for size in sizes]
    return LatticeState(nn.ParameterList(weights), "all", threads=threads)


def replies_of(size: Size) -> tuple[dict[int, Plan], dict[int, bytes]]:
    """Return plans by node and the bytes that the nodes answer.

    Scalars are of the size that was measured: of smaller ones more quanta are zero, which the kernel skips.
    """
    from benchmarks.scale.scaling import projected_gradient

    typical = projected_gradient()
    estimator = EstimatorConfig("leave-one-out", size.num_queries, 1e-3)
    rng = np.random.default_rng(0)
    plans, replies = {}, {}
    for client in range(size.clients):
        seed = client_seed(0, 1, client)
        plans[client] = Plan(1, seed, client, 1, 2, size.local_steps, 16, RATE, estimator)
        scalars = (typical * rng.standard_normal((size.local_steps, size.num_queries))).astype(np.float32)
        replies[client] = encode_reply(Reply(Status.OK, 1, 0, client, seed, 2, 16, 1.0, scalars))
    return plans, replies


def header_of(state: LatticeState) -> LedgerHeader:
    """Return a header that fits the state."""
    return LedgerHeader("00" * 32, 0, "random", "all", "unit", 1e-3, "leave-one-out", 0, "now", describe_tensors(state))


def one_round(size: Size, threads: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Return seconds of one round's stages, and what the round left."""
    state, clock = state_of(size.parameters, threads), Stopwatch()
    plans, replies = replies_of(size)
    inbox = RoundInbox(plans, 1e6)

    def validate() -> None:
        for node, data in replies.items():
            inbox.put(node, data)

    add = state._kernel.add
    state._kernel.add = lambda seeds, units: clock.time("kernel", lambda: add(seeds, units))  # type: ignore[method-assign]
    state.shift([1], 0 * state.epsilon_units(1e-3))  # compiled before anything is timed
    clock.seconds.clear()
    clock.time("validate", validate)
    contributions = clock.time("aggregate", lambda: aggregate(inbox.scalars(), RATE))
    updates = clock.time("updates", lambda: all_updates([Record(1, 0, contributions)]))
    clock.time("apply", lambda: apply_all(state, updates))
    checksum = clock.time("checksum", state.checksum)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.zo"
        ledger = LedgerFile.create(path, header_of(state))
        clock.time("ledger_append", lambda: ledger.append(Record(1, checksum, contributions)))
        clock.time("ledger_open", lambda: LedgerFile.open(path))
        left = {"tensors": len(state.tensors), "ledger_bytes": path.stat().st_size}
    clock.seconds["apply"] -= clock.seconds["kernel"]
    return clock.seconds, left | {"zero_quanta_share": state.zero_quanta / max(state.quanta, 1)}


def measure(size: Size, threads: int, repeats: int) -> dict[str, Any]:
    """Return the round with the median time of `repeats`, and what it makes of a direction and a weight."""
    rounds = sorted((one_round(size, threads) for _ in range(repeats)), key=lambda found: sum(found[0].values()))
    stages, left = rounds[len(rounds) // 2]
    totals = [sum(seconds.values()) for seconds, _ in rounds]
    total = sum(stages.values())
    python = total - stages["kernel"]
    return {
        **asdict(size),
        **left,
        "directions": size.directions,
        "seconds": total,
        "seconds_range": [totals[0], totals[-1]],
        "kernel": stages["kernel"],
        "python": python,
        "stages": stages,
        "nanoseconds_a_direction_and_weight": 1e9 * total / size.directions / size.parameters,
        "python_microseconds_a_direction": 1e6 * python / size.directions,
    }


def linearity(name: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a line of the table: cost of a direction and a weight at the sweep's largest value ÷ at its smallest."""
    least, most = points[0], points[-1]
    label = f"server's cost of a direction and a weight, {most[name]:,} ÷ {least[name]:,} {name.replace('_', ' ')}"
    key = "nanoseconds_a_direction_and_weight"
    return row(label, {"median": most[key] / least[key]}, against="1×: linear")


def say(found: dict[str, Any]) -> None:
    """Print one line a measurement."""
    print(
        f"{found['clients']:5d} clients x {found['local_steps']:2d} steps x {found['num_queries']:2d} queries, "
        f"{found['parameters']:9d} weights: {found['seconds']:8.3f} s (kernel {found['kernel']:8.3f}, "
        f"python {found['python']:6.3f}), {found['nanoseconds_a_direction_and_weight']:.4f} ns a direction and weight",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="also 1 000 clients x 10 steps x 8 queries on Whisper-tiny")
    arguments = parser.parse_args()
    measure(Size(), arguments.threads, 1)  # the first pays for page faults and thread pools
    sweeps: dict[str, list[dict[str, Any]]] = {}
    for name, values in SWEEPS.items():
        sweeps[name] = []
        for value in values:
            found = measure(replace(Size(), **{name: value}), arguments.threads, arguments.repeats)
            sweeps[name].append(found)
            say(found)
    numbers: dict[str, Any] = {"threads": arguments.threads, "base": asdict(Size()), "sweeps": sweeps}
    if arguments.full:
        numbers["full"] = measure(FULL, arguments.threads, 1)
        say(numbers["full"])
    numbers["rows"] = [linearity(name, points) for name, points in sweeps.items()]
    print(f"wrote {store('replay_cost', numbers)}")


if __name__ == "__main__":
    main()
