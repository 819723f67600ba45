"""Refusal of scalars that would overflow the lattice, before they reach the ledger."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zo_common.aggregation.mean import ClientScalars, Weighting, client_weights
from zo_common.ledger.ledger import LedgerHeader
from zo_common.ledger.record import Contribution

# a sixteenth of the lattice's range in one direction: a thousand times what training takes
MAX_DIRECTION_UNITS = 1 << 20
# a thirty-second of it in all directions of a round together, as the root of the sum of squares
MAX_STEP_UNITS = 1 << 19


def first_out_of_range(
    clients: Sequence[ClientScalars], learning_rate: float, weighting: Weighting, header: LedgerHeader
) -> ClientScalars | None:
    """Return the client with the largest coefficient, if it moves some tensor by more than `MAX_DIRECTION_UNITS`.

    No model is needed, so this also protects a server that only relays scalars.
    """
    if not clients:
        return None
    finest = finest_units(header)
    weights = client_weights(clients, weighting)
    reach = [
        learning_rate * weight * float(np.abs(c.projected_grads).max()) / c.projected_grads.shape[1] * finest
        for c, weight in zip(clients, weights, strict=True)
    ]
    worst = int(np.argmax(reach))
    return clients[worst] if reach[worst] > MAX_DIRECTION_UNITS else None


def out_of_range(contributions: Sequence[Contribution], header: LedgerHeader) -> bool:
    """Return whether a coefficient moves some tensor by more than `MAX_DIRECTION_UNITS`."""
    reach = max((float(np.abs(c.coefficients).max()) for c in contributions), default=0.0)
    return reach * finest_units(header) > MAX_DIRECTION_UNITS


def finest_units(header: LedgerHeader) -> float:
    """Return the grid units by which a coefficient of 1 moves the tensor with the finest grid."""
    return max(2.0 ** (t.scale_exponent - t.grid_exponent) for t in header.tensors)


def largest(clients: Sequence[ClientScalars]) -> ClientScalars:
    """Return the client with the largest scalar."""
    return max(clients, key=lambda c: float(np.abs(c.projected_grads).max()))
