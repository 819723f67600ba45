"""The bits that snapping changes in a base model's weights, to restore them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from zo_common.lattice.grid import snap, snap_in_place

_PIECE = 1 << 20  # elements compared at once
_DENSE = 0.5  # share of changed weights above which a whole tensor is smaller than these with their indices


class _Changed(NamedTuple):
    """Weights of one tensor that snapping changes; without places, all weights of the tensor."""

    weight: torch.Tensor
    exponent: int
    places: torch.Tensor | None
    values: torch.Tensor


class Remainder:
    """The weights of the base that are not on their grid.

    In a half-precision checkpoint only the smallest weights are off their grid, so this is small; in a float32 one it
    may be most of the trained tensors. Frozen tensors are never snapped.

    Args:
        model: at its base weights, float32.
        exponents: grid exponent of each trained tensor.
    """

    def __init__(self, model: nn.Module, exponents: Mapping[str, int]) -> None:
        found = (_changed(_flat(model.get_parameter(name)), exponent) for name, exponent in exponents.items())
        self._tensors = [changed for changed in found if len(changed.values)]

    @property
    def bytes(self) -> int:
        """Memory of the stored weights."""
        return sum(t.values.nbytes + (t.places.nbytes if t.places is not None else 0) for t in self._tensors)

    def put_back(self) -> None:
        """Restore the bits of the base in snapped weights."""
        for tensor in self._tensors:
            if tensor.places is None:
                tensor.weight.copy_(tensor.values)
            else:
                tensor.weight[tensor.places] = tensor.values

    def take_away(self) -> None:
        """Snap weights that have the bits of the base."""
        for tensor in self._tensors:
            if tensor.places is None:
                snap_in_place(tensor.weight, tensor.exponent)
            else:
                tensor.weight[tensor.places] = snap(tensor.values, tensor.exponent)


def _flat(parameter: nn.Parameter) -> torch.Tensor:
    """Return a view of the weights, (n,)."""
    if not parameter.data.is_contiguous():  # as the lattice does
        parameter.data = parameter.data.contiguous()
    return parameter.data.view(-1)


def _changed(weight: torch.Tensor, exponent: int) -> _Changed:
    places = torch.cat(
        [
            (snap(part, exponent).view(torch.int32) != part.view(torch.int32)).nonzero().view(-1) + start * _PIECE
            for start, part in enumerate(torch.split(weight, _PIECE))
        ]
    )
    if len(places) > _DENSE * len(weight):
        return _Changed(weight, exponent, None, weight.clone())
    return _Changed(weight, exponent, places.to(torch.int32), weight[places])
