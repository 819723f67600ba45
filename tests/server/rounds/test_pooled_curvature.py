"""Numbers of devices and rounds as one: quotients of means, averages over rounds, with their errors."""

from __future__ import annotations

import math

import pytest

from server.rounds.pooled_curvature import (
    ERRORS_OF_CAUTION,
    FEWEST_ROUNDS,
    LEAST_SIGNAL,
    MOST_ROUNDS,
    averaged,
    history,
    pooled,
)
from zo_common.estimator.curvature import MOST_NOISE_SHARE, RelativeCurvature


@pytest.mark.parametrize(("directions", "rounds"), [(64, 5), (512, 5), (32, 10), (8, MOST_ROUNDS), (1, MOST_ROUNDS)])
def test_fewer_directions_are_averaged_over_more_rounds(directions: int, rounds: int) -> None:
    assert history(directions) == rounds
    assert MOST_ROUNDS > FEWEST_ROUNDS


def test_quotients_of_means_and_their_standard_error() -> None:
    small = RelativeCurvature(100.0, 4.0, 2.0, 0.9, square=1.0)
    large = RelativeCurvature(300.0, 1.0, 1.0, 0.1, square=3.0)

    found = pooled([small, large])

    assert found.per_direction == 200.0
    assert found.along_signal == pytest.approx((1 * 4 + 3 * 1) / 4)
    assert found.along_noise == pytest.approx((1 * 2 + 3 * 1) / 4)
    assert found.noise_share == pytest.approx((1 * 0.9 + 3 * 0.1) / 4)
    # of 2 · ¼ · 4 and 2 · ¾ · 1
    assert found.along_error == pytest.approx(math.sqrt(((2 - 1.75) ** 2 + (1.5 - 1.75) ** 2) / 1) / math.sqrt(2))
    assert found.cautious.along_signal == found.along_signal + found.along_error


def test_one_device_s_number_may_be_off_by_itself() -> None:
    assert pooled([RelativeCurvature(100.0, -4.0, 2.0, 0.5)]).along_error == 4.0


def test_rounds_tell_the_error_where_there_is_one_device() -> None:
    rounds = [pooled([RelativeCurvature(100.0, value, 2.0, 0.5)]) for value in (8.0, 10.0, 12.0, 10.0)]

    few, enough = averaged(rounds[:1] + rounds[2:3]), averaged([*rounds, rounds[1]])

    # each is expected to have the quotient, ten fiftieths, of its signal's share of curvature: a tenth of a hundred
    # before the fifth round, then half
    assert few.noise_share == 0.9
    assert few.along_signal == pytest.approx((10 + math.sqrt(8**2 + 12**2) / 2) / 50 * 10)
    assert enough.noise_share == 0.5
    assert enough.along_signal == pytest.approx(10 + math.sqrt(8 * 5 / 4) / 5)


def test_rounds_of_one_device_count_as_their_scalars_squares() -> None:
    """The quotient of sums is that of all rounds' scalars as one round's; quotients' mean would be far off."""
    loud = pooled([RelativeCurvature(100.0, 8.0, 1.0, 0.2, square=9.0)])
    faint = pooled([RelativeCurvature(100.0, -80.0, 10.0, 1.5, square=1.0)])

    found = averaged([loud, faint] * 40, most=20)

    share, quotient = (9 * 0.2 + 1 * 1.5) / 10, (9 * 8 - 80) / (9 * 80 - 50)
    apart = math.sqrt(40 * ((9 * (0.2 - share)) ** 2 + (1.5 - share) ** 2) * 80 / 79) / 400
    along = math.sqrt(40 * (72**2 + 80**2)) / (40 * 670)  # what each round's own error is at most
    assert found.noise_share == pytest.approx(share + ERRORS_OF_CAUTION * apart)
    assert found.along_noise == pytest.approx((9 * 1.0 + 1 * 10.0) / 10)
    assert found.along_signal == pytest.approx((quotient + along) * (1 - share - ERRORS_OF_CAUTION * apart) * 100)


def test_noise_alone_leaves_hardly_any_signal() -> None:
    for devices in (1, 2):
        found = averaged([pooled([RelativeCurvature(100.0, 0.0, 1.0, 2.0)] * devices)] * 6)

        assert found.noise_share == 1 - LEAST_SIGNAL


def test_shares_of_noise_above_one_count_in_the_mean() -> None:
    found = pooled([RelativeCurvature(100.0, 0.0, 1.0, share) for share in (2.0, 0.4)])

    assert found.noise_share == pytest.approx(1.2)
    assert found.share_error == pytest.approx(1.4826 * 0.8 / math.sqrt(2))
    assert found.cautious.noise_share == MOST_NOISE_SHARE
    assert found.square == 0.0


def test_signal_counts_as_what_is_beyond_doubt() -> None:
    rounds = [pooled([RelativeCurvature(100.0, 0.0, 1.0, share) for share in (0.5, 0.7, 0.9)])] * 4
    error = 1.4826 * 0.2 / math.sqrt(3)

    apart = [
        pooled([RelativeCurvature(100.0, 0.0, 1.0, share + by) for share in (0.5, 0.7, 0.9)]) for by in (-0.1, 0.1)
    ]

    assert averaged(rounds[:2]).noise_share == pytest.approx(0.7)  # too few to doubt
    spread = math.sqrt(0.04 * 4 / 3) / 4  # less than the error of devices
    assert averaged(apart * 2).noise_share == pytest.approx(0.7 + ERRORS_OF_CAUTION * spread)
    assert averaged([*apart, rounds[0]] * 9).noise_share < 0.7 + ERRORS_OF_CAUTION * error / math.sqrt(20)
    assert averaged([*rounds, *rounds]).noise_share == pytest.approx(0.7)  # as one round after another says the same


def test_no_device_raises_doubt() -> None:
    honest = [RelativeCurvature(100.0, 0.0, 1.0, share) for share in (0.4, 0.5, 0.6)]
    liar = RelativeCurvature(100.0, 0.0, 1.0, 3.0)

    assert pooled([*honest, liar]).share_error <= 1.5 * pooled(honest).share_error


def test_rounds_of_one_device_among_those_of_several_count_the_same() -> None:
    one, several = RelativeCurvature(100.0, 8.0, 1.0, 0.2, square=9.0), RelativeCurvature(100.0, 8.0, 1.0, 0.6)

    assert averaged([pooled([one]), pooled([several] * 2)]).noise_share == pytest.approx(0.4)


def test_curvature_along_the_gradient_follows_the_signal() -> None:
    strong = pooled([RelativeCurvature(100.0, 8.0, 1.0, 0.2)] * 2)
    weak = pooled([RelativeCurvature(50.0, -3.0, 1.0, 0.8)] * 2)  # of a gradient that is all but noise

    found = averaged([strong, weak])

    share = (0.2 + 0.8) / 2
    assert found.per_direction == 75.0
    assert found.along_signal == pytest.approx((8 - 3) / (80 + 10) * (1 - share) * 75)
