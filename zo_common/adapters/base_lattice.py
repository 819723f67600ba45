"""The trained tensors of some ledgers on one base, snapped while such a ledger is active."""

from __future__ import annotations

from torch import nn

from zo_common.adapters.remainder import Remainder
from zo_common.errors import LedgerError, ZOError
from zo_common.ledger.ledger import LedgerHeader
from zo_common.ledger.replay import state_on_base


class BaseLattice:
    """The lattice of a ledger's header, entered at construction.

    Args:
        model: model at its base weights.
        header: of a ledger made on this base; its trained tensors and grids are used.

    Raises:
        LedgerError, ChecksumMismatch, LatticeOverflow: the header does not fit the model, which is unchanged then.
    """

    def __init__(self, model: nn.Module, header: LedgerHeader, threads: int | None = None) -> None:
        self.tensors = header.tensors
        known = dict(model.named_parameters(remove_duplicate=False))
        unknown = [t.name for t in header.tensors if t.name not in known or tuple(known[t.name].shape) != t.shape]
        if unknown or not header.tensors:
            raise LedgerError(
                f"the ledger trains {unknown[0][:100]!r} in a shape that the model does not have: fetch the file again"
                if unknown
                else "the ledger trains no tensor: fetch the file again"
            )
        self.remainder = Remainder(model, {t.name: t.grid_exponent for t in header.tensors})
        try:
            self.state = state_on_base(model, header, threads=threads)
        except ZOError:
            self.remainder.put_back()
            raise
        self.base_checksum = self.state.checksum()

    def enter(self) -> None:
        """Move from the base's bits to the lattice."""
        self.remainder.take_away()
        self.state.forget_bound()

    def leave(self) -> None:
        """Move from the lattice, without an active ledger, to the base's bits.

        Raises:
            ChecksumMismatch: something else has moved the weights.
        """
        self.state.expect_checksum(self.base_checksum)
        self.remainder.put_back()
