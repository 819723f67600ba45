"""Quantisation of scalars to integers on a fixed grid, so that sums are exact in any order and modulo 2**64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zo_common.errors import SecureAggregationError

MOST_SUM = (1 << 63) - 1


@dataclass(frozen=True)
class Quantiser:
    """The grid: multiples of 2**exponent, at most `most` of them in size.

    With the defaults a float32 of at least 1 and at most 16384 in size is represented exactly, a smaller one to 3e-8.
    """

    exponent: int = -24
    most: int = 1 << 38

    @property
    def limit(self) -> float:
        """The maximum size of a scalar; larger ones are clipped."""
        return float(np.ldexp(float(self.most), self.exponent))

    @property
    def most_weight(self) -> int:
        """The maximum total weight of a cohort whose sums stay below 2**63."""
        return MOST_SUM // self.most

    def quantise(self, values: NDArray[np.floating[Any]]) -> tuple[NDArray[np.int64], int]:
        """Return integers in grid units, rounded half to even, of the same shape, and the number of clipped values.

        Raises:
            SecureAggregationError: a value is not finite.
        """
        if not np.isfinite(values).all():
            raise SecureAggregationError("a scalar is not finite, and a sum with it would be none: lower epsilon")
        units = np.rint(np.ldexp(values.astype(np.float64), -self.exponent))
        clipped = int(np.count_nonzero(np.abs(units) > self.most))
        return np.clip(units, -self.most, self.most).astype(np.int64), clipped

    def weighted(self, units: NDArray[np.int64], weight: int, total: int) -> NDArray[np.int64]:
        """Return units times a device's weight.

        Raises:
            SecureAggregationError: the weights of the cohort, `total`, are so large that its sum could overflow.
        """
        if not 1 <= weight <= total <= self.most_weight:
            raise SecureAggregationError(
                f"weight {weight} of {total} in all was given, expected at most {self.most_weight} in all: sums would "
                "overflow; set weighting=uniform or ask fewer devices a round"
            )
        return units * np.int64(weight)

    def mean(self, total: NDArray[np.int64], weight: int) -> NDArray[np.float64]:
        """Return the weighted mean of a cohort from its exact sum: one conversion, one division, float64."""
        mean: NDArray[np.float64] = np.ldexp(total.astype(np.float64), self.exponent) / weight
        return mean
