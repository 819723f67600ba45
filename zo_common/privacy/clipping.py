"""Clipping on a grid of integers, so that sums and their noise are exact.

A vector is scaled down to the clip norm, then each of its numbers is truncated towards zero to an integer number of
grid units. Truncation makes no number larger, so the integer vector's norm is within the bound too: it costs no
sensitivity, while rounding to nearest adds up to half a unit per number (Kairouz, Liu and Steinke, ICML 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zo_common.errors import ConfigError

CLIP_BITS = 20
"""A clip norm is 2**20 … 2**21 units: truncation removes about a millionth of it, and scalars without noise are exact
in float32."""
_SHRINK = 1 - 2.0**-30
_LAST_BITS = 2.0**-40


@dataclass(frozen=True)
class Grid:
    """Units of 2**exponent; a clipped vector has an L2 norm of at most `bound` units.

    bound · 2**exponent is the clip norm, rounded down to an integer number of units.
    """

    exponent: int
    bound: int

    @classmethod
    def of(cls, clip_norm: float) -> Grid:
        """Return the grid of a clip norm.

        Raises:
            ConfigError: the clip norm is not a positive number that has such a grid.
        """
        if not (math.isfinite(clip_norm) and 1e-30 < clip_norm < 1e30):
            raise ConfigError(
                f"clip-norm is {clip_norm}, expected a positive number, such as the norm of a usual vector of scalars"
            )
        exponent = math.frexp(clip_norm)[1] - 1 - CLIP_BITS
        return cls(exponent, math.floor(math.ldexp(clip_norm, -exponent)))

    def clip(self, vectors: NDArray[np.floating]) -> NDArray[np.int64]:
        """Clip each column of (d, n), to int64 in units; a column that is not finite counts as zero.

        The direction is kept and the norm is at most `bound`, which is checked in integers, not in floating point.
        """
        columns = np.asarray(vectors, np.float64)
        columns = np.where(np.isfinite(columns).all(axis=0), columns, 0.0)
        peak = np.abs(columns).max(axis=0, initial=0.0)
        peak = np.where(peak > 0, peak, 1.0)
        shape = columns / peak  # no square overflows
        norm = np.sqrt((shape**2).sum(axis=0))
        limit = math.ldexp(self.bound, self.exponent)
        with np.errstate(over="ignore"):
            short = norm * peak <= limit * (1 + _LAST_BITS)  # not scaled, but checked in integers below
        scaled = np.ldexp(np.where(short, columns, shape * (limit / np.maximum(norm, 1.0))), -self.exponent)
        units: NDArray[np.int64] = np.trunc(scaled).astype(np.int64)
        while (over := (units**2).sum(axis=0) > self.bound**2).any():  # by the last bits of a square root
            scaled = np.where(over, scaled * _SHRINK, scaled)
            units = np.trunc(scaled).astype(np.int64)
        return units

    def value(self, units: int | float) -> float:
        """Convert units to a number."""
        return math.ldexp(float(units), self.exponent)
