"""Base model + ledger → adapted model: the only way weights come out of a run."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from zo_common.contribution import all_updates
from zo_common.errors import ChecksumMismatch, WrongBaseModel
from zo_common.fingerprint import fingerprint
from zo_common.ledger import Ledger, LedgerHeader
from zo_common.state import LatticeState

BATCH = 4096  # directions a fused pass


def restore_state(model: nn.Module, header: LedgerHeader, *, threads: int | None = None) -> LatticeState:
    """The lattice state of a ledger's base model, before its first round.

    Raises:
        WrongBaseModel: the model's fingerprint is not the ledger's.
    """
    found = fingerprint(model)
    if found != header.fingerprint:
        raise WrongBaseModel(
            f"the base model's fingerprint is {found[:16]}…, the ledger was made on {header.fingerprint[:16]}… "
            f"({header.model}): load that model"
        )
    names = ",".join(t.name for t in header.tensors)
    state = LatticeState(model, names, header.scale, exponents=header.exponents, threads=threads)
    if header.base_checksum:
        state.expect_checksum(header.base_checksum)
    return state


def replay(state: LatticeState, ledger: Ledger, on_progress: Callable[[int, int], None] | None = None) -> int:
    """Apply all rounds of a ledger to the base state and check the result.

    Args:
        on_progress: called with (directions done, directions in all).

    Returns:
        The state checksum reached.

    Raises:
        ChecksumMismatch: the last recorded checksum is not reached.
    """
    updates = all_updates(ledger.records)
    for start in range(0, len(updates), BATCH):
        state.apply(updates[start : start + BATCH])
        if on_progress is not None:
            on_progress(min(start + BATCH, len(updates)), len(updates))
    reached = state.checksum()
    recorded = ledger.records[-1].checksum if ledger.records else 0
    if recorded and recorded != reached:
        raise ChecksumMismatch(
            f"replay ends at checksum {reached:016x}, the ledger records {recorded:016x}: base model or ledger is "
            "damaged"
        )
    return reached
