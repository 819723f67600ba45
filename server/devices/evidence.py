"""Statistics of one device's scalars compared with the other devices'."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zo_common.checked import STRICT


@dataclass
class Evidence:
    """Statistics of one device's scalars over the rounds.

    Attributes:
        rounds: number of rounds in which it could be compared.
        information: sum of the rounds' inverse variances.
        score: sum of the rounds' Fisher z, each times its inverse variance.
        share: relation that its number of utterances lets one expect, as a part of the median device's.
        echoes: rounds in a row in which it sent the update of the round before.
        report: the last report to the operator; empty if there is none.
    """

    __pydantic_config__ = STRICT
    rounds: int = 0
    information: float = 0.0
    score: float = 0.0
    share: float = 1.0
    echoes: int = 0
    report: str = ""

    @property
    def relation(self) -> float:
        """Mean Fisher z over the rounds."""
        return self.score / self.information if self.information else 0.0

    @property
    def deviations(self) -> float:
        """Standard deviations by which the score exceeds that of unrelated scalars."""
        return self.score / math.sqrt(self.information) if self.information else 0.0
