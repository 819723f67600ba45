"""Shamir's secret sharing of 32-byte secrets (Shamir, How to share a secret, CACM 1979).

Own code and not pycryptodome's `Crypto.Protocol.SecretSharing`: that works on 16 bytes, bit by bit, and computes
Lagrange's weights again for each secret. With 100 holders it takes 300 times as long to split, and to reconstruct a
thousand secrets of a thousand holders would take days. Here the weights of one set of holders are kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

from zo_common.errors import SecureAggregationError

PRIME = (1 << 256) + 297  # the least prime above 2**256, so that every 32-byte secret is an element
SECRET_BYTES = 32
SHARE_BYTES = 33
MOST_POINTS = 1 << 16


def split(secret: bytes, threshold: int, points: Sequence[int]) -> dict[int, bytes]:
    """Split a secret into shares, of which `threshold` reconstruct it and fewer reveal nothing.

    Args:
        secret: 32 bytes.
        threshold: 1 … number of points.
        points: distinct holders' numbers, 1 … 2**16.

    Returns:
        33 bytes for each point: the value there of a polynomial of degree threshold − 1 over GF(2**256 + 297) whose
        other coefficients come from the operating system.

    Raises:
        ValueError: an argument out of range.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(points) or len(set(points)) != len(points):
        raise ValueError(f"cannot split {len(secret)} bytes among {len(points)} holders, {threshold} of them needed")
    if not all(1 <= point <= MOST_POINTS for point in points):
        raise ValueError(f"holders' numbers are 1 … {MOST_POINTS}")
    constant = int.from_bytes(secret, "little")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    shares = {}
    for point in points:
        value = 0
        for coefficient in coefficients:  # Horner, the highest first
            value = (value * point + coefficient) % PRIME
        shares[point] = ((value * point + constant) % PRIME).to_bytes(SHARE_BYTES, "little")
    return shares


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Reconstruct the secret of at least `threshold` shares; of more, those with the lowest numbers are used.

    Raises:
        SecureAggregationError: there are too few shares, or they cannot belong to one 32-byte secret.
    """
    if len(shares) < threshold:
        raise SecureAggregationError(
            f"a secret has {len(shares)} shares, {threshold} are needed: too many devices have dropped out"
        )
    points = tuple(sorted(shares)[:threshold])
    value = 0
    for point, weight in zip(points, _weights(points), strict=True):
        share = int.from_bytes(shares[point], "little")
        if len(shares[point]) != SHARE_BYTES or share >= PRIME:
            raise SecureAggregationError(f"the share of holder {point} is no element of the field: it was altered")
        value += weight * share
    value %= PRIME
    if value >> (8 * SECRET_BYTES):
        raise SecureAggregationError("the shares of a secret do not fit together: at least one of them was altered")
    return value.to_bytes(SECRET_BYTES, "little")


@lru_cache(maxsize=8)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Return Lagrange's weights at zero: Π over m ≠ j of x_m / (x_m − x_j)."""
    weights = []
    for j in points:
        numerator = denominator = 1
        for m in points:
            if m != j:
                numerator = numerator * m % PRIME
                denominator = denominator * (m - j) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(weights)
