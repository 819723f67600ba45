"""Layers whose weight has another type than float32.

They compute in the weight's type, and return float32 so that norms, softmax and residual sums around them stay exact;
within autocast they return what autocast would. No weight is cast in a forward pass but biases, which are small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zo_common.models.frozen.originals import Read


class Held:
    """Base of the layers below, which are made by `hold`, not constructed.

    Attributes:
        weight: not trained, of any type.
        original: reads the float32 weight that `weight` was made from.
        exact: whether to compute with the original, read for each forward pass, instead of `weight`.
    """

    weight: torch.Tensor
    original: Read
    exact: bool

    def _now(self) -> torch.Tensor:
        return self.original().to(self.weight.device) if self.exact else self.weight


def _widened(value: torch.Tensor) -> torch.Tensor:
    return value if torch.is_autocast_enabled(value.device.type) else value.float()


def _like(bias: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor | None:
    return None if bias is None else bias.to(weight.dtype)


class HeldLinear(Held, nn.Linear):
    """As `nn.Linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear.forward`."""
        weight = self._now()
        return _widened(F.linear(input.to(weight.dtype), weight, _like(self.bias, weight)))


class _HeldConvolution(Held):
    bias: torch.Tensor | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, own = self._now(), self
        convolution: Any = own
        return _widened(convolution._conv_forward(input.to(weight.dtype), weight, _like(self.bias, weight)))


class HeldConv1d(_HeldConvolution, nn.Conv1d):
    """As `nn.Conv1d`."""


class HeldConv2d(_HeldConvolution, nn.Conv2d):
    """As `nn.Conv2d`."""


class HeldEmbedding(Held, nn.Embedding):
    """As `nn.Embedding`; always returns float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Embedding.forward`."""
        return F.embedding(input, self._now(), self.padding_idx).float()


HELD: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: HeldLinear,
    nn.Conv1d: HeldConv1d,
    nn.Conv2d: HeldConv2d,
    nn.Embedding: HeldEmbedding,
}
PLAIN = {held: plain for plain, held in HELD.items()}
