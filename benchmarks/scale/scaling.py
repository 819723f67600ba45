"""Costs of ten thousand and a million devices: the tables of `docs/results/scaling.md`.

Bytes come from encoding real messages, floating-point operations from counting them on the architecture, seconds from
the stored rows of this repository; what is extrapolated says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.rows import RESULTS, amount
from benchmarks.harness.workload import SILENT_FRAMES, SPEECH_FRAMES, TAIL_TOKENS, random_whisper
from zo_common.estimator.settings import EstimatorConfig
from zo_common.lattice.grid import UNIT_BITS
from zo_common.lattice.trained import select
from zo_common.ledger.record import Contribution, Record
from zo_common.models.whisper.forward import decode, encode
from zo_common.wire.plan import Plan, Reply, Status, encode_plan, encode_reply

STEPS, QUERIES = 10, 8
RATE = 2e-3
BATCH, TOKENS = 8, 25
DEVICES = (10_000, 1_000_000)
LORA_RANK = 8
SIGN_TARGET_GPU = 5e11  # signs a second of a GPU kernel that was not measured: its target


def result(name: str) -> dict[str, Any]:
    """Return a stored result file."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


@dataclass(frozen=True)
class Architecture:
    """A Whisper's shape without weights: trained sizes and the work of a forward pass."""

    name: str

    @cache  # noqa: B019  (two instances live as long as the program)
    def model(self) -> Any:
        """Return the model on torch's meta device."""
        return random_whisper(self.name, "meta")

    def trained(self, tensors: str) -> int:
        """Return weights of a choice of tensors."""
        return sum(p.numel() for p in select(self.model(), tensors).values())

    def lora_bytes(self) -> int:
        """Return float32 LoRA matrices of q_proj and v_proj of all attention layers."""
        return sum(
            4 * LORA_RANK * sum(p.shape)
            for name, p in self.model().named_parameters()
            if name.endswith(("q_proj.weight", "v_proj.weight"))
        )

    @cache  # noqa: B019
    def flops(self) -> int:
        """Return operations of one forward pass of 8 utterances of 5 s (a multiply and an add are two)."""
        model = self.model()
        features = torch.empty(BATCH, model.config.num_mel_bins, SPEECH_FRAMES + SILENT_FRAMES, device="meta")
        tokens = torch.zeros(BATCH, TOKENS, dtype=torch.int64, device="meta")
        counter: Any = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            model.proj_out(decode(model, tokens, encode(model, features, TAIL_TOKENS)))
        return int(counter.get_total_flops())


LARGE = Architecture("large-v3")


def plan_bytes(contributions: int) -> int:
    """Return payload of a plan with so many contributions; exact, as the codec is linear in them."""
    sizes = []
    for count in (1, 2):
        parts = tuple(Contribution(c, c, np.zeros((STEPS, QUERIES), np.float32)) for c in range(count))
        estimator = EstimatorConfig("leave-one-out", QUERIES, 1e-3)
        sizes.append(len(encode_plan(Plan(2, 0, 0, 0, 0, STEPS, BATCH, RATE, estimator, (Record(1, 0, parts),)))))
    return sizes[0] + (contributions - 1) * (sizes[1] - sizes[0])


def reply_bytes() -> int:
    """Return payload of a reply."""
    return len(encode_reply(Reply(Status.OK, 1, 0, 0, 0, 0, projected_grads=np.zeros((STEPS, QUERIES), np.float32))))


def signs_a_second() -> float:
    """Return directions × weights a second that a whole round is replayed with, on two CPU cores."""
    data = result("replay_cost")
    row = data.get("full") or data["sweeps"]["parameters"][-1]
    return 1e9 / float(row["nanoseconds_a_direction_and_weight"])


def largest_sweep(name: str) -> dict[str, Any]:
    """Return the last row of a sweep of the round's cost."""
    row: dict[str, Any] = result("replay_cost")["sweeps"][name][-1]
    return row


def reply_seconds() -> float:
    """Return server seconds to validate and aggregate one reply, one process."""
    row = largest_sweep("clients")
    return float(row["stages"]["validate"] + row["stages"]["aggregate"]) / float(row["clients"])


def flower_seconds() -> float:
    """Return Flower's own seconds a device and round, in simulation, with the most devices measured."""
    row = max(result("simulation")["curve"], key=lambda entry: entry["devices"])
    return float(row["floor"]["seconds_a_round"]["median"]) / float(row["devices"])


def projected_gradient() -> float:
    """Return size of a projected gradient of the demo's tensors on Whisper-tiny.en, from the loss differences at ε."""
    rows = result("forward")["rounding_noise"]
    row = next(r for r in rows if r["precision"] == "float32" and r["epsilon"] == 1e-3)
    return float(row["difference"] / row["epsilon"])


def duration(seconds: float) -> str:
    """Return seconds in a suitable unit."""
    for size, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.3g} s"


def constants() -> str:
    """Return what was measured or counted."""
    clients = largest_sweep("clients")
    rows = [
        ("a round's replay", f"{amount(signs_a_second(), '/s')} directions × weights, 2 cores", "`replay_cost.json`"),
        ("server's Python", f"{clients['python_microseconds_a_direction']:.1f} µs a direction", "`replay_cost.json`"),
        ("… of it to validate and aggregate", f"{1e6 * reply_seconds():.0f} µs a reply", "`replay_cost.json`"),
        ("Flower's simulation engine", f"{1e3 * flower_seconds():.1f} ms a device and round", "`simulation.json`"),
        ("reply", f"{reply_bytes()} B (K = {STEPS}, q = {QUERIES})", "encoded"),
        ("plan with last round, shared directions", f"{plan_bytes(1)} B", "encoded"),
        ("… each further client's own directions", f"{plan_bytes(2) - plan_bytes(1)} B", "encoded"),
        (
            "weights trained: `encoder-early`, all",
            f"{LARGE.trained('encoder-early'):,}, {LARGE.trained('all'):,}",
            "counted",
        ),
        ("forward of 8 × 5 s", f"{LARGE.flops() / 1e12:.2f} TFLOP", "counted"),
        ("projected gradient, `encoder-early`", f"{projected_gradient():.0f} nats (Whisper-tiny.en)", "`forward.json`"),
    ]
    return _table(("constant", "value", "from"), rows)


def costs() -> str:
    """Return a round of each size, with directions of each client's own and with shared ones."""
    rows = []
    for devices in DEVICES:
        for shared in (False, True):
            contributions = 1 if shared else devices
            down, directions = plan_bytes(contributions), STEPS * QUERIES * contributions
            replay = [directions * LARGE.trained(t) for t in ("encoder-early", "all")]
            rows.append(
                (
                    f"{devices:,}",
                    "shared" if shared else "own",
                    amount(reply_bytes(), "B"),
                    amount(down, "B"),
                    amount(down * devices, "B"),
                    duration(reply_seconds() * devices),
                    *(duration(signs / signs_a_second()) for signs in replay),
                    duration(replay[1] / SIGN_TARGET_GPU),
                )
            )
    head = (
        "devices",
        "directions",
        "up, a device",
        "down, a device",
        "down, all",
        "validate + aggregate",
        "replay `encoder-early`, 2 cores",
        "replay all weights, 2 cores",
        "the same at the GPU kernel's target",
    )
    return _table(head, rows)


def clients() -> str:
    """Return seconds of a device for its forwards, against those for replaying the round."""
    forwards = STEPS * QUERIES
    work = forwards * LARGE.flops()
    rows = [(f"{speed:g} TFLOP/s sustained", duration(work / speed / 1e12)) for speed in (0.1, 1.0, 10.0, 100.0)]
    return _table(("device that computes", f"{forwards} forwards of 8 × 5 s (leave-one-out)"), rows)


def points() -> str:
    """Return the numbers of clients a round at which a limit is reached, with own directions, ascending."""
    early = LARGE.trained("encoder-early")
    each = plan_bytes(2) - plan_bytes(1)
    coefficient = RATE * projected_gradient() / QUERIES
    # quanta round to zero below half a grid unit: of tensors whose weights reach 4, and of those that stay below 1/8
    coarse, fine = (2.0 ** (magnitude + 1 - UNIT_BITS - 1) for magnitude in (2, -3))
    forwards = STEPS * QUERIES * LARGE.flops() / 1e12
    found = [
        (LARGE.lora_bytes() / each, f"a plan is larger than LoRA r = {LORA_RANK} ({amount(LARGE.lora_bytes(), 'B')})"),
        (4 * early / each, f"a plan is larger than the trained weights ({amount(4 * early, 'B')})"),
        (
            (1e10 / each) ** 0.5,
            "the plans of a round are 10 GB together, which the SuperLink holds until they are fetched",
        ),
        *(
            (
                forwards * signs_a_second() / (STEPS * QUERIES * LARGE.trained(tensors)),
                f"replaying a round of {name} takes a device's 2 cores longer than its own forwards at 1 TFLOP/s",
            )
            for tensors, name in (("encoder-early", "`encoder-early`"), ("all", "all weights"))
        ),
        (coefficient / coarse, "coefficients (at Whisper-tiny's g) are below half a grid unit where weights reach 4"),
        (coefficient / fine, "they are below half a unit in every tensor: nothing moves any more"),
        (
            600 / flower_seconds(),
            "Flower's messages alone take ten minutes a round, at the rate of the most devices measured",
        ),
    ]
    rows = [(f"{clients:,.0f}", what) for clients, what in sorted(found)]
    return _table(("clients a round", "what happens there"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def sweeps() -> str:
    """Return cost over each size of a round, and how far from linear its ends are."""
    data = result("replay_cost")
    rows = []
    for name, sweep in data["sweeps"].items():
        for row in sweep:
            cost = row["nanoseconds_a_direction_and_weight"]
            share = row["python"] / row["seconds"]
            rows.append(
                (name.replace("_", " "), f"{row[name]:,}", duration(row["seconds"]), f"{cost:.4f}", f"{share:.0%}")
            )
    full = data.get("full")
    if full:
        sizes = f"{full['clients']:,} clients × {full['local_steps']} × {full['num_queries']}"
        label = f"{sizes}, {full['parameters']:,} weights"
        cost = full["nanoseconds_a_direction_and_weight"]
        rows.append(
            (
                f"**{label}**",
                f"{full['directions']:,}",
                duration(full["seconds"]),
                f"{cost:.4f}",
                f"{full['python'] / full['seconds']:.0%}",
            )
        )
    return _table(("sweep", "value", "server seconds", "ns a direction and weight", "not the kernel"), rows)


def devices() -> str:
    """Return rounds with many virtual devices beside Flower's floor."""
    rows = []
    for row in result("simulation")["curve"]:
        sides = [row[side]["seconds_a_round"]["median"] for side in ("floor", "forwards", "ours")]
        memory = [row[side]["peak_memory_mib"] for side in ("floor", "ours")]
        rows.append(
            (
                f"{row['devices']:,}",
                *(f"{seconds:.2f} s" for seconds in sides),
                f"{row['seconds_over_floor']:.2f}",
                f"{row['seconds_over_floor_and_forwards']:.2f}",
                *(f"{mib:,} MiB" for mib in memory),
            )
        )
    head = ("virtual devices", "floor, a round", "forward passes alone", "ours, a round", "ours ÷ floor")
    return _table((*head, "ours ÷ (floor + forwards)", "floor, memory", "ours, memory"), rows)


def thousand() -> str:
    """Return one run of the scenario of a thousand devices on Whisper-tiny.en."""
    row = result("thousand")
    losses = row["train_losses"]
    return (
        f"{row['devices']:,} devices, {row['asked_a_round']} of them asked in each of {row['rounds']} rounds: "
        f"{row['seconds_a_round']['median']:.1f} s a round, {row['minutes']:.1f} minutes in all with synthesis and "
        f"decoding, {row['peak_memory_mib'] / 1024:.1f} GiB, training loss {losses[0]:.2f} → {losses[-1]:.2f}, WER "
        f"{row['wer_before']:.1%} → {row['wer_after']:.1%} (one seed)."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "constants": constants,
    "costs": costs,
    "clients": clients,
    "points": points,
    "sweeps": sweeps,
    "devices": devices,
    "thousand": thousand,
}

if __name__ == "__main__":
    for block in BLOCKS.values():
        print(block(), end="\n\n")
