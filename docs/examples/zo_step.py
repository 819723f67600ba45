"""Zeroth-order fine-tuning of any `nn.Module`: forward passes only, and weights move by whole grid units."""

from __future__ import annotations

import torch
from torch import nn

from zo_common import EstimatorConfig, LatticeState, zo_step

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1)).requires_grad_(False)
inputs = torch.randn(64, 8)
targets = model(1.3 * inputs)  # what the model said before its inputs became smaller


def losses() -> torch.Tensor:
    """Return the squared error of each example, shape (64,), under the present weights."""
    return (model(inputs) - targets).square().mean(dim=1)


state = LatticeState(model, "*.weight", "unit-wide")  # a pattern on the names of the tensors to train
config = EstimatorConfig("two-sided", num_queries=8, epsilon=1e-2)
before = float(losses().mean())
for step in range(50):
    result = zo_step(state, losses, seed=1, step=step, config=config, learning_rate=1e-2)

print("projected gradients of the last step:", *(f"{grad:.3f}" for grad in result.projected_grads))
print(f"loss {before:.5f} -> {float(losses().mean()):.5f}, checksum {state.checksum():016x}")
