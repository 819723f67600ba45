"""Byte counts against sums made by hand from the formats."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.cost.traffic import fedavg, lora, ours, weights

RECORD = 4 + 8 + 4  # round, checksum, count
CONTRIBUTION = 8 + 8 + 2 + 2  # seed, client id, K, q


@pytest.mark.parametrize(("steps", "queries", "devices"), [(1, 8, 8), (10, 8, 8), (2, 3, 5)])
def test_payload_of_plan_and_reply(steps: int, queries: int, devices: int) -> None:
    found = ours(steps, queries, devices)
    assert found.payload_down == 59 + 4 + RECORD + devices * (CONTRIBUTION + 4 * steps * queries)
    assert found.payload_up == 51 + 4 * steps * queries
    assert ours(steps, queries, devices, curvature=True).payload_up == found.payload_up + 4 * 4
    assert 0 < found.serialised_down - found.payload_down < 64
    assert 0 < found.serialised_up - found.payload_up < 64


def test_fedavg_sends_every_float_once_in_each_direction() -> None:
    tensors = {"a": torch.zeros(100, 7), "b": torch.zeros(3)}
    found = fedavg(tensors)
    assert found.payload_down == found.payload_up == 4 * 703
    # around each tensor: name, type, shape and the header of its .npy form
    assert 0 < found.serialised_down - found.payload_down < 2 * 400


def test_tied_weights_are_sent_once() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(10, 4), "out": nn.Linear(4, 10, bias=False)})
    model["out"].weight = model["embed"].weight
    assert sum(w.numel() for w in weights(model).values()) == 40


def test_lora_has_two_matrices_for_each_query_and_value_projection() -> None:
    attention = {name: nn.Linear(6, 6) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    found = lora(nn.ModuleDict({"self_attn": nn.ModuleDict(attention), "fc1": nn.Linear(6, 9)}), rank=2)
    assert sorted(found) == [f"self_attn.{which}_proj.lora_{matrix}.weight" for which in "qv" for matrix in "AB"]
    assert {tuple(matrix.shape) for matrix in found.values()} == {(2, 6), (6, 2)}
