"""The estimator's settings, which plans carry; needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from zo_common.errors import ConfigError

Estimator = Literal["two-sided", "one-sided", "leave-one-out"]


@dataclass(frozen=True)
class EstimatorConfig:
    """Settings of the gradient estimator: kind, number of directions per step, perturbation size.

    An ε of 0 leaves the size to the device; a step needs a positive number.
    """

    estimator: Estimator = "two-sided"
    num_queries: int = 8
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if self.estimator not in get_args(Estimator):
            raise ConfigError(f"estimator is {self.estimator!r}, expected one of {', '.join(get_args(Estimator))}")
        least = 2 if self.estimator == "leave-one-out" else 1
        if not least <= self.num_queries <= 65535:
            raise ConfigError(f"num-queries is {self.num_queries}, {self.estimator} needs {least} … 65535")
        if not (self.epsilon >= 0 and math.isfinite(self.epsilon)):
            raise ConfigError(f"epsilon is {self.epsilon}, expected a positive number such as 1e-3, or 0 for any")

    @property
    def forwards(self) -> int:
        """Forward passes per step."""
        return {"two-sided": 2 * self.num_queries, "one-sided": self.num_queries + 1}.get(
            self.estimator, self.num_queries
        )
