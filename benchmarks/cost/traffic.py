"""Bytes of a device in one round: ours, FedAvg of the whole model, FedAvg of LoRA matrices. All of it is serialised.

Payload is what a method has to say; serialised is Flower's protobuf of the message's content around it, for all alike
(`server.devices.roster.serialised_size`). Plan and reply are real ones of eight devices and eight directions, with the
measured learning rate of a run's defaults; the plan brings the ledger record of the round before. FedAvg's messages are
those of `flwr.serverapp.strategy.FedAvg`: arrays and a config down, arrays and metrics up; its payload is the tensors'
bytes. LoRA has r = 8 on `q_proj` and `v_proj` of all attention layers: PEFT's default for BART, whose layers Whisper's
are (it names none for Whisper).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import nn

from benchmarks.harness import workload
from benchmarks.harness.rows import amount, row, store
from server.devices.roster import CONTENT, serialised_size
from zo_common.directions.seeds import fold_in
from zo_common.estimator.curvature import Curvature
from zo_common.estimator.settings import EstimatorConfig
from zo_common.lattice.trained import unique_parameters
from zo_common.ledger.record import Contribution, Record
from zo_common.wire.plan import Plan, Reply, Status, encode_plan, encode_reply

DEVICES = 8
QUERIES = 8
STEPS = (1, 10)
RANK = 8
ADAPTED = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Bytes:
    """Payload and serialised bytes of one device in one round, both ways."""

    payload_down: int
    payload_up: int
    serialised_down: int
    serialised_up: int


def ours(local_steps: int, queries: int = QUERIES, devices: int = DEVICES, *, curvature: bool = False) -> Bytes:
    """Return a plan with one ledger record, and its reply; with the curvature where the learning rate is measured."""
    scalars = np.random.default_rng(0).normal(size=(local_steps, queries)).astype(np.float32)
    record = Record(1, fold_in(1), tuple(Contribution(fold_in(0, 1, d), d, scalars) for d in range(devices)))
    estimator = EstimatorConfig("two-sided", queries, workload.EPSILON)
    seed, checksum = fold_in(0, 2, 0), fold_in(2)
    asked = Plan(2, seed, 0, fold_in(3), checksum, local_steps, 8, 1e-3, estimator, (record,), curvature=curvature)
    found = Curvature(1.0, 1.0, 1.0, 1.0) if curvature else None
    plan = encode_plan(asked)
    reply = encode_reply(Reply(Status.OK, 2, 1, 0, seed, checksum, 100, 1.5, scalars, curvature=found))
    down, up = (
        RecordDict({CONTENT: ConfigRecord({"plan": plan})}),
        RecordDict({CONTENT: ConfigRecord({"reply": reply})}),
    )
    return Bytes(len(plan), len(reply), serialised_size(down), serialised_size(up))


def fedavg(tensors: Mapping[str, torch.Tensor]) -> Bytes:
    """Return these tensors down and up, as Flower's FedAvg sends them."""
    payload = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    arrays = ArrayRecord(torch_state_dict=dict(tensors))
    down = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 2})})
    up = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 100, "train_loss": 1.5})})
    return Bytes(payload, payload, serialised_size(down), serialised_size(up))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all weights of a model, tied ones once."""
    return {name: parameter.detach() for name, parameter in unique_parameters(model).items()}


def lora(model: nn.Module, rank: int = RANK) -> dict[str, torch.Tensor]:
    """Return matrices A (r, in) and B (out, r) of every adapted linear layer."""
    found = {}
    for name, module in model.named_modules():
        if name.endswith(ADAPTED) and isinstance(module, nn.Linear):
            found[f"{name}.lora_A.weight"] = torch.randn(rank, module.in_features)
            found[f"{name}.lora_B.weight"] = torch.randn(module.out_features, rank)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", choices=("tiny.en", *workload.ARCHITECTURES), default="tiny.en")
    arguments = parser.parse_args()
    model = workload.whisper(arguments.architecture)
    counted = {f"ours, K = {steps}": ours(steps, curvature=True) for steps in STEPS}
    counted |= {f"LoRA r = {RANK}": fedavg(lora(model)), "FedAvg": fedavg(weights(model))}
    sizes = {name: asdict(size) for name, size in counted.items()}
    rows = []
    for steps in STEPS:
        for field, value in sizes[f"ours, K = {steps}"].items():
            kind, way = field.split("_")
            others = (f"{name} {amount(size[field], 'B')}" for name, size in sizes.items() if "ours" not in name)
            label = f"{kind} {way} a device a round, {steps} step{'s' if steps > 1 else ''} of {QUERIES} directions"
            rows.append(row(label, {"median": value}, unit="B", against=", ".join(others)))
            print(f"{label}: {value} B; {rows[-1]['against']}")
    settings = {"architecture": arguments.architecture, "devices": DEVICES, "queries": QUERIES, "rank": RANK}
    print(f"wrote {store('traffic', {**settings, 'bytes': sizes, 'rows': rows})}")


if __name__ == "__main__":
    main()
