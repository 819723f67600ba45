"""States that a run may end with, as contributions that lead there from its last one.

Weights are sums of contributions on a lattice, so that any earlier state and any average of states is a record of the
run's own contributions times negative factors: whoever replays the ledger, with it, holds that state bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.guards.guard import Contributions
from zo_common.ledger.record import Record

Losses = NDArray[np.float64]
_SHARE = 3  # an average is over the last one in three rounds


@dataclass(frozen=True, eq=False)
class Candidate:
    """A state that a run may end with.

    Attributes:
        name: "last", "best" or "average".
        of: what it is, in words.
        contributions: from the last state to it; empty if it is the last one.
        losses: of the held-out utterances, (N,).
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


def kept_records(records: Iterable[Record], taken_back: Iterable[tuple[int, int]], after: int) -> tuple[Record, ...]:
    """Records after round `after` whose contributions are in the weights.

    Args:
        taken_back: first and last round of the stretches that were undone; their contributions add up to nothing.
    """
    undone = {number for first, last in taken_back for number in range(first, last + 1)}
    return tuple(r for r in records if r.contributions and r.server_round > after and r.server_round not in undone)


def averaged_rounds(count: int) -> int:
    """Over how many of the last of `count` rounds weights are averaged: a third, at least 2; 0 of a single round."""
    return max(2, -(-count // _SHARE)) if count > 1 else 0


def to_average(records: Sequence[Record]) -> Contributions:
    """What leads from the state after the last of some records to the mean of the states after each of them.

    Of m states, the i-th record (from 0) is missing in i: w̄ = w_last − Σ_i (i/m)·(contributions of record i). Each
    coefficient is rounded to float32, and to the grid when it is applied: the mean is met to one unit of the grid a
    direction.
    """
    count = len(records)
    return tuple(c.scaled(-i / count) for i, record in enumerate(records) if i for c in record.contributions)
