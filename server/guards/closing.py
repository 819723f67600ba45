"""States that a run may end with, as contributions that lead there from its last state.

Weights are sums of contributions on a lattice. Any earlier state, or average of states, can thus be reached by a record
of the run's own contributions times negative factors. Replaying the ledger gives this state bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.guards.guard import Contributions
from zo_common.ledger.record import Record

Losses = NDArray[np.float64]
_SHARE = 3  # an average is over the last third of the rounds


@dataclass(frozen=True, eq=False)
class Candidate:
    """A state that a run may end with.

    Attributes:
        name: "last", "best" or "average".
        of: a description for the log.
        contributions: lead from the last state to this one; empty for the last state.
        losses: losses of the held-out utterances, (N,).
    """

    name: str
    of: str
    contributions: Contributions
    losses: Losses

    @property
    def loss(self) -> float:
        """The mean loss; infinite where it is not a number."""
        mean = float(np.mean(self.losses))
        return mean if np.isfinite(mean) else float("inf")


def applied_records(records: Iterable[Record], taken_back: Iterable[tuple[int, int]], after: int) -> tuple[Record, ...]:
    """Return the records after round `after` whose contributions are in the weights.

    Args:
        taken_back: first and last round of each undone range; its contributions sum to zero.
    """
    undone = {number for first, last in taken_back for number in range(first, last + 1)}
    return tuple(r for r in records if r.contributions and r.server_round > after and r.server_round not in undone)


def averaged_rounds(count: int) -> int:
    """Return how many of the last of `count` rounds are averaged: a third, at least 2; 0 for a single round."""
    return max(2, -(-count // _SHARE)) if count > 1 else 0


def to_average(records: Sequence[Record]) -> Contributions:
    """Return the contributions from the state after the last record to the mean of the states after each record.

    The i-th record (from 0) is missing in i of the m states: w̄ = w_last − Σ_i (i/m)·(contributions of record i). Each
    coefficient is rounded to float32, and to the grid when it is applied, so the mean is exact to one grid unit for
    each direction.
    """
    count = len(records)
    return tuple(c.scaled(-i / count) for i, record in enumerate(records) if i for c in record.contributions)
