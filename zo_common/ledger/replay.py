"""Replay: base model + ledger → adapted model, the only way to get a run's weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from zo_common.errors import ChecksumMismatch, LatticeOverflow, WrongBaseModel
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.ledger.ledger import Ledger, LedgerHeader
from zo_common.ledger.record import all_updates

BATCH = 4096  # directions per fused pass


def restore_state(model: nn.Module, header: LedgerHeader, *, threads: int | None = None) -> LatticeState:
    """Return the lattice state of a ledger's base model, before its first round.

    Raises:
        WrongBaseModel: the model's fingerprint is not the ledger's.
    """
    require_base(fingerprint(model), header)
    return state_on_base(model, header, threads=threads)


def require_base(found: str, header: LedgerHeader) -> None:
    """Refuse a ledger for a model of the fingerprint `found`.

    Raises:
        WrongBaseModel: the ledger was made on another.
    """
    if found != header.fingerprint:
        raise WrongBaseModel(
            f"the base model's fingerprint is {found[:16]}…, the ledger was made on {header.fingerprint[:16]}… "
            f"({header.model}): load that model"
        )


def state_on_base(model: nn.Module, header: LedgerHeader, *, threads: int | None = None) -> LatticeState:
    """As `restore_state`, of a model whose fingerprint is known to be the ledger's."""
    names = ",".join(t.name for t in header.tensors)
    state = LatticeState(model, names, header.scale, exponents=header.exponents, threads=threads)
    if header.base_checksum:
        state.expect_checksum(header.base_checksum)
    return state


def apply_all(
    state: LatticeState,
    updates: Sequence[Update],
    sign: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Apply all updates, or none, in passes of `BATCH` directions: memory does not grow with their number.

    As in one pass, only where the updates end must be legal. The smallest come first, so that the exact but slow way
    near the edge of the lattice is left with the few that lead there.

    Args:
        on_progress: called with (directions done, directions in all).

    Raises:
        LatticeOverflow: a weight would end outside its lattice; the weights are as before.
    """
    ordered = sorted(updates, key=lambda update: abs(update.coefficient))
    counted = state.quanta, state.zero_quanta
    done = 0
    try:
        while done < len(ordered):
            done += _apply_batch(state, ordered, done, sign)
            if on_progress is not None:
                on_progress(done, len(ordered))
    except LatticeOverflow:
        for start in reversed(range(0, done, BATCH)):
            state.apply(ordered[start : min(start + BATCH, done)], -sign)
        state.quanta, state.zero_quanta = counted
        raise


def _apply_batch(state: LatticeState, updates: Sequence[Update], start: int, sign: int) -> int:
    """Apply the next batch; where it alone would leave the lattice, all that is left at once. Returns how many."""
    counted = state.quanta, state.zero_quanta
    batch = updates[start : start + BATCH]
    try:
        state.apply(batch, sign)
    except LatticeOverflow:
        batch = updates[start:]
        if len(batch) <= BATCH:
            raise
        state.quanta, state.zero_quanta = counted
        state.apply(batch, sign)
    return len(batch)


def replay(
    base: LatticeState | nn.Module, ledger: Ledger, on_progress: Callable[[int, int], None] | None = None
) -> int:
    """Apply all rounds of a ledger to the base model, in place, and check the result.

    Args:
        base: the base model, whose fingerprint is checked, or the lattice state that `restore_state` made of it.
        on_progress: called with (directions done, directions in all).

    Returns:
        The state checksum reached, a u64.

    Raises:
        WrongBaseModel: the model is not the one that the ledger was made on.
        ChecksumMismatch: the last recorded checksum is not reached.
        LatticeOverflow: the ledger leads outside the lattice; the weights are the base model's.
    """
    state = base if isinstance(base, LatticeState) else restore_state(base, ledger.header)
    apply_all(state, all_updates(ledger.records), on_progress=on_progress)
    reached = state.checksum()
    recorded = ledger.records[-1].checksum if ledger.records else 0
    if recorded and recorded != reached:
        raise ChecksumMismatch(
            f"replay ends at checksum {reached:016x}, the ledger records {recorded:016x}: base model or ledger is "
            "damaged"
        )
    return reached
