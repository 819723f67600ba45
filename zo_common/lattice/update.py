"""One replayed direction, which ledgers and plans carry; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Update:
    """One replayed direction: `w_t += 2**k_t · quantum(coefficient, t) · z_t(seed)`; coefficient is a float32."""

    seed: int
    coefficient: float
