"""Numbers of devices and rounds as one: quotients of means, averages over rounds, and no device's word alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from server.rounds.pooled_curvature import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    averaged,
    history,
    pooled,
    trusted,
    without_extremes,
)
from server.rounds.step_size import best_coefficient
from zo_common.estimator.curvature import RelativeCurvature


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

    found = averaged(rounds)

    # each is expected to have the quotient, ten fiftieths, of its signal's share of curvature, half of a hundred
    assert found.along_signal == pytest.approx(10.0)
    assert found.along_error == pytest.approx(math.sqrt(8 * 4 / 3) / 200 * 50)
    assert averaged(rounds[:2]).along_error == pytest.approx(math.sqrt(8**2 + 10**2) / 100 * 50)


def test_rounds_of_one_device_count_as_their_scalars_squares() -> None:
    """The quotient of sums is that of all rounds' scalars as one round's; quotients' mean would be far off."""
    loud = pooled([RelativeCurvature(100.0, 8.0, 1.0, 0.2, square=9.0)])
    faint = pooled([RelativeCurvature(100.0, -80.0, 10.0, 1.5, square=1.0)])

    found = averaged([loud, faint])

    share = (9 * 0.2 + 1 * 1.5) / 10
    assert found.noise_share == pytest.approx(share)
    assert found.along_noise == pytest.approx((9 * 1.0 + 1 * 10.0) / 10)
    assert found.along_signal == pytest.approx((9 * 8 - 80) / (9 * 80 - 50) * (1 - share) * 100)


def test_noise_alone_leaves_a_twentieth_of_signal() -> None:
    found = averaged([pooled([RelativeCurvature(100.0, 0.0, 1.0, 2.0)])] * 3)

    assert found.noise_share == 0.95


def test_a_device_among_others_says_no_more_than_that_all_is_noise() -> None:
    found = pooled([RelativeCurvature(100.0, 0.0, 1.0, share) for share in (2.0, 0.45)])

    assert found.noise_share == pytest.approx((0.95 + 0.45) / 2)
    assert found.square == 0.0


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


@pytest.mark.parametrize(
    ("lie", "held"),
    [
        ({"per_direction": 1e30}, 1),
        ({"per_direction": 1e30, "along_signal": 1e30, "along_noise": 1e30}, 1),
        ({"per_direction": 1e-30, "along_signal": -1e30}, 0),  # cut to what a matrix can have, it does little
        ({"square": 1e30, "along_signal": 1e30}, 1),
    ],
)
def test_a_liar_is_held_to_a_factor_of_two_and_honest_devices_keep_theirs(lie: dict[str, float], held: int) -> None:
    honest = [RelativeCurvature(100.0 + i, 8.0, 1.0, 0.5, square=1.0 + i / 10) for i in range(5)]
    liar = replace(RelativeCurvature(100.0, 8.0, 1.0, 0.5), **lie)

    def rate(some: Any) -> float:
        return best_coefficient(pooled(some).cautious, directions=40, devices=5, left_out=8)

    kept, changed = trusted([*honest, liar], rate)

    assert kept[:5] == honest
    assert changed == held
    assert (1.9 if held else 1.0) < max(rate(kept) / rate(honest), rate(honest) / rate(kept)) <= 2.0 + 1e-9
    assert trusted(honest, rate) == (honest, 0)
    assert trusted([honest[0], liar], rate) == ([honest[0], liar], 0)  # of two nobody knows which


def test_of_a_thousand_devices_the_liar_is_found_in_a_moment() -> None:
    honest = [RelativeCurvature(100.0 + i % 7, 8.0 - i % 5, 1.0, 0.5, square=1.0 + i % 3) for i in range(999)]
    asked = []

    def rate(some: Any) -> float:
        asked.append(len(some))
        return best_coefficient(pooled(some).cautious, directions=40, devices=5, left_out=8)

    kept, changed = trusted([*honest, RelativeCurvature(1e30, 1e30, 1e30, 0.95)], rate)

    assert kept[:999] == honest
    assert changed == 1
    assert 0.5 <= rate(kept) / rate(honest) < 2
    assert len(asked) < 100


def test_robust_rules_leave_out_as_many_as_may_have_agreed() -> None:
    honest = [RelativeCurvature(100.0 + i, 8.0, 1.0, 0.5, square=1.0 + i) for i in range(6)]
    liars = [RelativeCurvature(1e30, 1e30, 1.0, 0.5)] * 2

    def rate(some: Any) -> float:
        return best_coefficient(pooled(some).cautious, directions=64, devices=8, left_out=8)

    found = without_extremes([*honest, *liars], 2, rate)

    assert [each.per_direction for each in found] == [105.0, 104.0, 103.0, 102.0]  # the longest steps go, too
    assert {each.square for each in found} == {1.0}
    assert without_extremes(honest[:2], 1, rate) == [replace(honest[0], square=1.0)]
