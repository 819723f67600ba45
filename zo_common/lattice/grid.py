"""The lattice: grid and scale exponents of a tensor, snapping, and quanta (exact-ZO v1).

Every trained weight is an integer (|n| ≤ 2**24) times 2**grid_exponent, and every change is an integer number of
such units, so float32 adds are exact: reversible, order-free and the same on any hardware.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

Scale = Literal["unit", "rms", "unit-wide"]
UNIT_BITS = 24
MAX_UNITS = 1 << UNIT_BITS
MIN_MAGNITUDE = 2.0**-3
WIDE_MAGNITUDE = 2.0**3  # of vectors on a wide grid
MIN_RMS = 2.0**-7
_CHUNK = 1 << 20  # elements of a temporary: building a lattice must not need a copy of a tensor


def ceil_log2(value: float) -> int:
    """ceil(log2(value)) for a positive float, exactly (no rounded logarithm)."""
    mantissa, exponent = math.frexp(value)
    return exponent - 1 if mantissa == 0.5 else exponent


def magnitude(weight: torch.Tensor) -> float:
    """max|w|; 0 for an empty tensor, NaN or infinite if one of its elements is."""
    if not weight.numel():
        return 0.0
    low, high = (float(bound) for bound in torch.aminmax(weight.detach()))
    return max(-low, high)


def grid_exponent(weight: torch.Tensor, scale: Scale = "unit") -> int:
    """k_T = ceil(log2(max(max|w|, 2**-3))) + 1 − 24: at least twofold headroom above the largest weight.

    For "unit-wide" a vector (a bias, a norm's weight) has 2**3 in place of 2**-3: the change of a bias does not depend
    on its initial size, and can far exceed ±1/4 if the loss depends on it weakly.
    """
    least = WIDE_MAGNITUDE if scale == "unit-wide" and weight.dim() <= 1 else MIN_MAGNITUDE
    return ceil_log2(max(magnitude(weight), least)) + 1 - UNIT_BITS


def scale_exponent(weight: torch.Tensor, scale: Scale) -> int:
    """s_T: 0 for "unit" and "unit-wide"; rint(log2(max(rms, 2**-7))) for "rms", the rms taken in float64."""
    if scale != "rms":
        return 0
    parts = torch.split(weight.detach().reshape(-1), _CHUNK)
    rms = math.sqrt(sum(float(part.cpu().double().square().sum()) for part in parts) / max(weight.numel(), 1))
    return round(math.log2(max(rms, MIN_RMS)))


def snap(weight: torch.Tensor, exponent: int) -> torch.Tensor:
    """Return the nearest grid points (half to even), float32, same shape; a zero is +0.0, as integers have no other."""
    return torch.round(weight.detach().to(torch.float32) * 2.0**-exponent) * 2.0**exponent + 0.0


def snap_in_place(weight: torch.Tensor, exponent: int) -> None:
    """`snap` written back to a contiguous float32 tensor, a bounded part at a time."""
    for part in torch.split(weight.view(-1), _CHUNK):
        part.copy_(snap(part, exponent))


def quantum(coefficient: float, scale_exp: int, grid_exp: int) -> int:
    """rint(float32(c) · 2**(s_T − k_T)): a coefficient as a whole number of grid units (half to even)."""
    return round(float(np.float32(coefficient)) * 2.0 ** (scale_exp - grid_exp))


def least_epsilon(scale_exp: int, grid_exp: int) -> float:
    """Return the smallest float32 ε whose quantum in this tensor is not zero (just above half a unit)."""
    half_unit = np.float32(2.0 ** (grid_exp - scale_exp - 1))
    return float(np.nextafter(half_unit, np.float32(np.inf)))
