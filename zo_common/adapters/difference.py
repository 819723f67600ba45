"""The change of the weights by a ledger, in integer grid units: a replay of any length in two passes over memory."""

from __future__ import annotations

import torch

from zo_common.lattice.state import LatticeState

_TYPES = (torch.int8, torch.int16, torch.int32)
UNIT_BYTES = 4  # of a weight's units before their range is known


def units_of(state: LatticeState) -> list[torch.Tensor]:
    """Return all weights as integer grid units, int32, on their device; in the order and sizes of `state.pieces`."""
    return [(part * 2.0**-t.grid_exponent).to(torch.int32) for t, part in state.pieces()]


class Difference:
    """The grid units between two states of one lattice, each piece in the smallest integer type that fits.

    Args:
        state: the present state.
        before: its `units_of` at an earlier time.
    """

    def __init__(self, state: LatticeState, before: list[torch.Tensor]) -> None:
        self.pieces = [
            _narrow((part * 2.0**-t.grid_exponent).to(torch.int32) - old)
            for (t, part), old in zip(state.pieces(), before, strict=True)
        ]

    @property
    def bytes(self) -> int:
        """Memory of the pieces."""
        return sum(piece.nbytes for piece in self.pieces)


def _narrow(units: torch.Tensor) -> torch.Tensor:
    largest = int(units.abs().max()) if units.numel() else 0
    return units.to(next(kind for kind in _TYPES if largest <= torch.iinfo(kind).max))
