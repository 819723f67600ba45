"""One ledger that a resident model applies and undoes."""

from __future__ import annotations

from collections.abc import Callable

from zo_common.adapters.difference import UNIT_BYTES, Difference, units_of
from zo_common.errors import ChecksumMismatch
from zo_common.lattice.state import LatticeState
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.record import all_updates
from zo_common.ledger.replay import apply_all

Progress = Callable[[int, int], None]


class Dialect:
    """A ledger, the checksum that it leads to, and, if memory allows, its change of the weights.

    Attributes:
        checksum: of the adapted weights, a u64; if the ledger records none, 0 before the first replay.
        difference: sum of the first replay; None before it, or if it would take too much memory.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        header = ledger.header
        self.checksum = ledger.records[-1].checksum if ledger.records else header.base_checksum
        self.difference: Difference | None = None

    def apply(self, state: LatticeState, memory: int, on_progress: Progress | None = None) -> None:
        """Move from the base to the ledger's weights.

        Args:
            memory: maximum bytes of the stored difference.
            on_progress: called with (directions done, total) during a replay.

        Raises:
            LatticeOverflow, ChecksumMismatch: the ledger leads outside the lattice or not to its checksum; the weights
                are the base's.
        """
        if self.difference is not None:
            state.add(self.difference.pieces)
        else:
            before = units_of(state) if UNIT_BYTES * state.num_elements <= memory else None
            apply_all(state, all_updates(self.ledger.records), on_progress=on_progress)
            if before is not None:
                self.difference = Difference(state, before)
        reached = state.checksum()
        if self.checksum and reached != self.checksum:
            self.undo(state)
            self.difference = None
            raise ChecksumMismatch(
                f"replay ends at checksum {reached:016x}, the ledger records {self.checksum:016x}: the ledger is "
                "damaged, or something else has moved the model's weights"
            )
        self.checksum = reached

    def undo(self, state: LatticeState) -> None:
        """Return from the ledger's weights to the base, to the bit."""
        if self.difference is not None:
            state.add(self.difference.pieces, -1)
        else:
            apply_all(state, all_updates(self.ledger.records), -1)
