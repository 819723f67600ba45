"""One replayed direction, which ledgers and plans carry; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Update:
    """One replayed direction: `w_T += 2**k_T · quantum(coefficient, T) · z_T(seed)`; coefficient is a float32."""

    seed: int
    coefficient: float
