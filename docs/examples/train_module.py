"""Training of any `nn.Module` in place, with a guard on held-out examples and a ledger. `train_module.py [output]`"""

import sys

import torch
from torch import nn

from train import train_module

torch.manual_seed(0)
module = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1)).requires_grad_(False)
inputs = torch.randn(96, 8)
examples = list(zip(inputs, module(1.3 * inputs), strict=True))  # what it said before its inputs became smaller


def losses(batch: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the squared error of each example, shape (B,), under the present weights."""
    x, y = (torch.stack(column) for column in zip(*batch, strict=True))
    return (module(x) - y).square().mean(dim=1)


output = sys.argv[1] if len(sys.argv) > 1 else "results/module"
settings = {"num_server_rounds": 50, "batch_size": 32, "epsilon": 1e-2, "output": output}
result = train_module(
    module,
    losses,
    examples[:64],
    held_out=examples[64:],
    learning_rate=5e-2,
    on_round=lambda report: print(f"round {report.server_round}: loss {report.loss:.5f}"),
    **settings,
)
print(f"loss {result.before['loss']:.5f} -> {result.after['loss']:.5f}, checksum {result.checksum}")
