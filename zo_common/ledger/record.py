"""One client's contribution to a round: a seed and K·q coefficients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zo_common.directions.seeds import direction_seed
from zo_common.lattice.update import Update


@dataclass(frozen=True, eq=False)
class Contribution:
    """K·q replayable updates of one seed.

    Attributes:
        seed: u64; direction (step, query) is `direction_seed(seed, step, query)`.
        client_id: the client that it is from (0 if the round shares its directions).
        coefficients: float32, shape (K, q).
    """

    seed: int
    client_id: int
    coefficients: NDArray[np.float32]

    def updates(self) -> list[Update]:
        """Return the K·q updates, in step then query order (any order gives the same weights)."""
        return [
            Update(direction_seed(self.seed, k, j), coefficient)
            for k, row in enumerate(self.coefficients.tolist())
            for j, coefficient in enumerate(row)
        ]

    def scaled(self, factor: float) -> Contribution:
        """Return coefficients times `factor`, rounded once to float32."""
        return Contribution(
            self.seed, self.client_id, (self.coefficients.astype(np.float64) * factor).astype(np.float32)
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Contribution):
            return NotImplemented
        mine, theirs = self.coefficients, other.coefficients
        # bitwise, like the encoded bytes: −0.0 differs from 0.0, and a NaN equals itself
        same = mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes()
        return same and (self.seed, self.client_id) == (other.seed, other.client_id)

    def __hash__(self) -> int:
        return hash((self.seed, self.client_id))


@dataclass(frozen=True)
class Record:
    """One round of the ledger.

    Attributes:
        server_round: from 1, each one more than the last.
        checksum: state checksum after the round; 0 if the server holds no model and cannot know it.
        contributions: contributions of the round's clients.
    """

    server_round: int
    checksum: int
    contributions: tuple[Contribution, ...]

    def __hash__(self) -> int:
        return hash((self.server_round, self.checksum))  # not over a thousand contributions

    def updates(self) -> list[Update]:
        """Return all updates of the round."""
        return all_updates([self])


def all_updates(records: Iterable[Record]) -> list[Update]:
    """Return the updates of several rounds, for one fused replay."""
    return [u for record in records for c in record.contributions for u in c.updates()]
