"""Evidence of what one device's scalars, compared with the others', say of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zo_common.checked import STRICT


@dataclass
class Evidence:
    """What is known of one device's scalars.

    Attributes:
        rounds: in which it could be compared.
        information: sum of the rounds' inverse variances.
        score: sum of the rounds' Fisher z, each times its inverse variance.
        echoes: rounds in a row in which it sent the update of the round before.
        report: what the operator was told; empty while there is nothing to tell.
    """

    __pydantic_config__ = STRICT
    rounds: int = 0
    information: float = 0.0
    score: float = 0.0
    echoes: int = 0
    report: str = ""

    @property
    def relation(self) -> float:
        """Mean Fisher z over the rounds."""
        return self.score / self.information if self.information else 0.0

    @property
    def deviations(self) -> float:
        """How many standard deviations the score is above that of unrelated scalars."""
        return self.score / math.sqrt(self.information) if self.information else 0.0
