"""No device's numbers alone decide the step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.rounds.pooled_curvature import pooled
from server.rounds.step_size import best_coefficient
from server.rounds.trusted_curvature import trusted, without_extremes
from zo_common.estimator.curvature import RelativeCurvature


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
    assert sum(asked) < 100 * len(honest)


def test_robust_rules_leave_out_as_many_as_may_have_agreed() -> None:
    honest = [RelativeCurvature(100.0 + i, 8.0, 1.0, 0.5, square=1.0 + i) for i in range(6)]
    liars = [RelativeCurvature(1e30, 1e30, 1.0, 0.5)] * 2

    def rate(some: Any) -> float:
        return best_coefficient(pooled(some).cautious, directions=64, devices=8, left_out=8)

    found = without_extremes([*honest, *liars], 2, rate)

    assert [each.per_direction for each in found] == [105.0, 104.0, 103.0, 102.0]  # the longest steps go, too
    assert {each.square for each in found} == {1.0}
    assert without_extremes(honest[:2], 1, rate) == [replace(honest[0], square=1.0)]
