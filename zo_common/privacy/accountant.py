"""Accounting of the privacy spent: Rényi differential privacy, composed over steps, rounds and restarts.

Google's `dp-accounting` computes the Poisson-subsampled Gaussian (Mironov, Talwar and Zhang, arXiv 1908.10530) and
converts to (ε, δ) (Canonne, Kamath and Steinke 2020, proposition 12). Only integer orders α are used: their bound is

    log Σ_k C(α,k) (1−p)^(α−k) p^k E[(shifted / centred)^k],    E[…] = exp(k(k−1)·Δ²/2σ²),

and that expectation is the same number for the discrete Gaussian with an integer shift, as is the reflection by which
the paper bounds the other direction: the result is valid for the noise that is really added.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from zo_common.errors import ConfigError

ORDERS = (*range(2, 41), 44, 48, 56, 64, 80, 96, 128, 192, 256, 512)
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e5


@dataclass(frozen=True, order=True)
class Release:
    """One noisy answer: a Gaussian of `noise_multiplier` over a Poisson sample of `batch` out of `examples`.

    The rate is 1 if batch ≥ examples, and for a device-level reply.
    """

    noise_multiplier: float
    batch: int = 1
    examples: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ConfigError(f"noise-multiplier is {self.noise_multiplier}: without noise there is no guarantee")
        if self.batch < 1 or self.examples < 1:
            raise ConfigError(f"a sample of {self.batch} out of {self.examples} cannot be accounted for")

    @property
    def rate(self) -> float:
        """Probability with which one of the examples is in the sample."""
        return min(1.0, self.batch / self.examples)


Spending = Mapping[Release, int]
"""Number of answers of each kind."""


def epsilon_spent(spending: Spending | Mapping[tuple[float, int, int], int], delta: float) -> float:
    """Return the ε at `delta` of all these answers together; 0.0 for none.

    Args:
        spending: how often each kind of answer was given; a kind is a `Release`, or its fields as a tuple
            (noise multiplier, batch, examples), with (noise multiplier, 1, 1) for a device-level reply.

    Raises:
        ConfigError: δ is not a probability below 1, or a kind of answer gives no guarantee.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"target-delta is {delta}, expected a small probability, such as 1e-6")
    counts: Counter[Release] = Counter()
    for kind, count in spending.items():
        counts[kind if isinstance(kind, Release) else Release(*kind)] += count
    return _epsilon(tuple(sorted((r, n) for r, n in counts.items() if n)), delta)


@lru_cache(maxsize=4096)
def _epsilon(spending: tuple[tuple[Release, int], ...], delta: float) -> float:
    if not spending:
        return 0.0
    from dp_accounting import rdp

    total = sum(count * _rdp(release) for release, count in spending)
    return float(rdp.compute_epsilon(ORDERS, total, delta)[0])


@lru_cache(maxsize=4096)
def _rdp(release: Release) -> NDArray[np.float64]:
    """Return the Rényi divergence of one answer at each of `ORDERS`; those of several answers add up."""
    import dp_accounting
    from dp_accounting import rdp

    # zero-out neighbours: one example's contribution is replaced with zero, and sizes are public
    accountant = rdp.RdpAccountant(ORDERS, dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    event = dp_accounting.GaussianDpEvent(release.noise_multiplier)
    accountant.compose(event if release.rate == 1 else dp_accounting.PoissonSampledDpEvent(release.rate, event))
    return np.asarray(accountant.rdp, np.float64)


def noise_for(epsilon: float, delta: float, answers: int, batch: int = 1, examples: int = 1) -> float:
    """Return the minimum noise multiplier, within a thousandth, with which `answers` answers stay within (ε, δ).

    Args:
        answers: noisy sums that are released: steps of all rounds at the example level, rounds at the device level.
        batch: expected number of utterances in a step's Poisson sample.
        examples: number of utterances that the sample is drawn from.

    Raises:
        ConfigError: the target is not possible.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"target-epsilon is {epsilon}, expected a positive number, such as 8")
    if answers < 1:
        raise ConfigError(f"{answers} answers need no noise: give rounds and steps of at least 1")

    def spent(noise: float) -> float:
        return epsilon_spent({Release(noise, batch, examples): answers}, delta)

    low, high = _LEAST_NOISE, _LEAST_NOISE
    while spent(high) > epsilon:
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise ConfigError(
                f"no noise below {_MOST_NOISE:g} keeps {answers} answers within ε {epsilon:g} at δ {delta:g}: "
                "ask for a larger epsilon, or fewer rounds and steps"
            )
    while high - low > 5e-4 * high:  # `high` always keeps the target
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > epsilon else (low, middle)
    return math.ceil(high * 1e4) / 1e4
