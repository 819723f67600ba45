"""Shamir's shares: any threshold of them give the secret back, fewer fit every secret, altered ones are noticed."""

from __future__ import annotations

import random
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zo_common.errors import SecureAggregationError
from zo_common.secure_sum.shamir import PRIME, SHARE_BYTES, combine, split


def test_the_field_is_prime() -> None:
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (
        2,
        3,
        5,
        7,
        11,
        13,
        17,
        19,
        23,
        29,
        31,
        37,
        *(random.Random(0).randrange(2, PRIME) for _ in range(20)),
    ):
        x = pow(base, odd, PRIME)
        assert x == 1 or any(pow(x, 1 << i, PRIME) == PRIME - 1 for i in range(twos))  # Miller and Rabin


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.randoms(use_true_random=False))
def test_any_threshold_of_the_shares_gives_the_secret_back(secret: bytes, count: int, draw: random.Random) -> None:
    threshold = draw.randint(1, count)
    points = draw.sample(range(1, 1 << 16), count)
    shares = split(secret, threshold, points)
    assert all(len(share) == SHARE_BYTES for share in shares.values())
    some = draw.sample(points, draw.randint(threshold, count))
    assert combine({point: shares[point] for point in some}, threshold) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_ends_of_the_range(secret: bytes) -> None:
    assert combine(split(secret, 3, [1, 2, 3]), 3) == secret


def test_a_polynomial_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    given_out = iter([7, 5])  # 7 x² + 5 x + 9
    monkeypatch.setattr(secrets, "randbelow", lambda limit: next(given_out))
    shares = split((9).to_bytes(32, "little"), 3, [1, 2, 10])
    assert {p: int.from_bytes(s, "little") for p, s in shares.items()} == {1: 21, 2: 47, 10: 759}


def test_one_share_too_few_fits_every_secret() -> None:
    """With threshold − 1 shares given, for each secret there is one more share that makes it come out."""
    shares = split(secrets.token_bytes(32), 3, [1, 2, 3])
    for wanted in (0, 1, 12345, (1 << 256) - 1):
        y1, y2 = (int.from_bytes(shares[point], "little") for point in (1, 2))
        # the secret is 3 y1 − 3 y2 + y3
        y3 = (wanted - 3 * y1 + 3 * y2) % PRIME
        forged = {1: shares[1], 2: shares[2], 3: y3.to_bytes(SHARE_BYTES, "little")}
        assert combine(forged, 3) == wanted.to_bytes(32, "little")


def test_too_few_and_malformed_shares_are_refused() -> None:
    shares = split(bytes(32), 3, [1, 2, 3, 4])
    with pytest.raises(SecureAggregationError, match="has 2 shares, 3 are needed"):
        combine({1: shares[1], 4: shares[4]}, 3)
    for bad in (PRIME.to_bytes(SHARE_BYTES, "little"), b"\xff" * SHARE_BYTES, bytes(32), b""):
        with pytest.raises(SecureAggregationError, match="no element"):
            combine(shares | {2: bad}, 3)


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [(bytes(31), 1, [1]), (bytes(32), 0, [1]), (bytes(32), 2, [1]), (bytes(32), 1, [1, 1]), (bytes(32), 1, [0])],
)
def test_arguments_out_of_range(secret: bytes, threshold: int, points: list[int]) -> None:
    with pytest.raises(ValueError):
        split(secret, threshold, points)
