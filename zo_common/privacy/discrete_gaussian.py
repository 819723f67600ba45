"""Exact samples of the discrete Gaussian, from the operating system's randomness.

A continuous Gaussian rounded to floating point has holes and spikes in the low bits, which distinguish the noise of
one value from that of another (Mironov, CCS 2012). Canonne, Kamath and Steinke ("The Discrete Gaussian for
Differential Privacy", NeurIPS 2020, arXiv 2004.00010) sample on the integers instead, with integer arithmetic only:
P(x) ∝ exp(−x²/2σ²) holds exactly, and a query of sensitivity Δ gets the same Δ²/2σ² of concentrated privacy.

There is no seed: noise that can be replayed can be subtracted.
"""

from __future__ import annotations

import secrets

from zo_common.errors import ConfigError

_below = secrets.randbelow  # os.urandom, rejection-sampled: uniform without bias


def _bernoulli_exp_below_one(numerator: int, denominator: int) -> bool:
    """Return True with probability exp(−n/d), 0 ≤ n ≤ d: algorithm 1 of the paper, case 1 (von Neumann's series)."""
    k = 1
    while _below(denominator * k) < numerator:
        k += 1
    return k % 2 == 1


def bernoulli_exp(numerator: int, denominator: int) -> bool:
    """Return True with probability exp(−numerator/denominator), exactly; both are integers, n ≥ 0 and d ≥ 1."""
    while numerator > denominator:
        if not _bernoulli_exp_below_one(1, 1):
            return False
        numerator -= denominator
    return _bernoulli_exp_below_one(numerator, denominator)


def discrete_laplace(scale: int) -> int:
    """Sample P(x) ∝ exp(−|x|/scale), scale ≥ 1: algorithm 2 of the paper with s = 1."""
    while True:
        low = _below(scale)
        if not _bernoulli_exp_below_one(low, scale):
            continue
        high = 0
        while _bernoulli_exp_below_one(1, 1):
            high += 1
        size = low + scale * high
        negative = _below(2) == 1
        if negative and size == 0:
            continue  # zero has one sign
        return -size if negative else size


def discrete_gaussian(sigma: int) -> int:
    """Sample P(x) ∝ exp(−x²/2σ²) on the integers: algorithm 3 of the paper, rejection from a discrete Laplace.

    Args:
        sigma: an integer ≥ 0; 0 gives 0. The standard deviation is at most sigma, and nearly sigma from 1 on.

    Raises:
        ConfigError: sigma is negative.
    """
    if sigma < 0:
        raise ConfigError(f"the noise's sigma is {sigma} units, expected none or a positive number")
    if sigma == 0:
        return 0
    scale = sigma + 1
    square = sigma * sigma
    denominator = 2 * square * scale * scale
    while True:
        value = discrete_laplace(scale)
        # (|x| − σ²/t)² / 2σ², over one denominator
        if bernoulli_exp((abs(value) * scale - square) ** 2, denominator):
            return value


def discrete_gaussians(count: int, sigma: int) -> list[int]:
    """Return `count` independent samples."""
    return [discrete_gaussian(sigma) for _ in range(count)]


def poisson_subset(size: int, numerator: int, denominator: int) -> list[int]:
    """Return indices below `size`, each included with probability numerator/denominator, exactly and independently.

    Privacy amplification by sampling requires a secret sample: it, too, uses the operating system's randomness.

    Raises:
        ConfigError: the probability is not in [0, 1].
    """
    if not 0 <= numerator <= denominator or denominator < 1:
        raise ConfigError(f"a sampling rate of {numerator}/{denominator} is no probability")
    return [index for index in range(size) if _below(denominator) < numerator]
