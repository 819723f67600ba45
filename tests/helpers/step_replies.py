"""Numbers of valid replies, as a measured step asks for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zo_common.aggregation.mean import ClientScalars
from zo_common.estimator.curvature import RelativeCurvature

MEASURED = {"learning_rate": "auto", "num_queries": 4, "local_steps": 1, "num_server_rounds": 4}


@dataclass
class Replies:
    """Numbers of valid replies."""

    found: list[RelativeCurvature]

    @property
    def accepted(self) -> int:
        return len(self.found)

    def curvatures(self) -> list[RelativeCurvature]:
        return self.found

    def scalars(self) -> list[ClientScalars]:
        return [ClientScalars(number, 1, 5, np.full((1, 4), 2.0)) for number in range(self.accepted)]


def numbers_of(t: float = 200.0, signal: float = 8.0, noise: float = 1.0, share: float = 0.25) -> RelativeCurvature:
    """Of one device."""
    return RelativeCurvature(t, signal, noise, share)
