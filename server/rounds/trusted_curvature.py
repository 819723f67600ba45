"""Curvature that devices report, with the influence of each limited: no device decides the step of a round."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from statistics import fmean, median

import numpy as np

from server.rounds.pooled_curvature import pooled
from zo_common.estimator.curvature import RelativeCurvature

FEWEST_TRUSTED = 2
MOST_INFLUENCE = 2.0
_SHARES = ("along_signal", "along_noise", "noise_share")
_MOST_WEIGHT = 10.0  # of a device's mean square, over the median's
_MOST_APART = 100.0  # ratio of devices' curvatures of one direction to the median
_LEAST_POWER, _HALVINGS = -512.0, 24  # of two: the minimum share of a device's own numbers


def trusted(
    found: Sequence[RelativeCurvature], rate_of: Callable[[Sequence[RelativeCurvature]], float]
) -> tuple[list[RelativeCurvature], int]:
    """Limit each device's influence on the step to a factor of two; return the numbers, and how many were changed.

    The numbers of a device with more influence are moved towards the mean of the others' until it changes the step by
    that factor, beginning with the oddest. The rest are then compared without it. Beside a liar, an honest device has
    much influence, too: a device that is not odd by more than that factor is left alone, unless it is the oddest. Of
    two devices it is unknown which one lies.
    """
    limited, changed = list(found), set[int]()
    if len(limited) > FEWEST_TRUSTED:
        usual, square = median(each.per_direction for each in found), median(each.square for each in found)
        limited = [_possible(each, usual, square) for each in found]
    typical = RelativeCurvature(*(median(column) for column in zip(*map(astuple, limited), strict=True)))
    while len(own := [i for i in range(len(limited)) if i not in changed]) > FEWEST_TRUSTED:
        rate = rate_of([limited[i] for i in own])
        outermost = [own[i] for i in _outermost([limited[i] for i in own])]
        odd = {i: _oddness(limited[i], typical, rate_of) for i in outermost}
        limit = min(max(odd.values()), math.log(MOST_INFLUENCE))
        others = {i: rate_of([limited[j] for j in own if j != i]) for i in outermost if odd[i] >= limit}
        moved = [i for i, other in others.items() if abs(math.log(rate / other)) > math.log(MOST_INFLUENCE)]
        if not moved:
            break
        worst = max(moved, key=lambda i: odd[i])
        limited[worst] = _brought_near(limited[worst], [limited[j] for j in own if j != worst], rate_of)
        changed.add(worst)
    return limited, len(changed)


def _oddness(
    found: RelativeCurvature, typical: RelativeCurvature, rate_of: Callable[[Sequence[RelativeCurvature]], float]
) -> float:
    """Return how much one of a device's numbers would change the rate of typical ones, as a logarithm, at most."""
    usual, names = rate_of([typical]), ("per_direction", *_SHARES)
    return max(abs(math.log(rate_of([replace(typical, **{n: getattr(found, n)})]) / usual)) for n in names)


def _outermost(found: Sequence[RelativeCurvature]) -> set[int]:
    """Return the devices with extreme values in any number: only these can have the most influence on means."""
    columns = [
        [each.per_direction for each in found],
        [each.square for each in found],
        *([each.square * getattr(each, name) for each in found] for name in _SHARES),
    ]
    orders = (np.argsort(np.array(column), kind="stable") for column in columns)
    return {int(i) for order in orders for i in (*order[:2], *order[-2:])}


def _possible(found: RelativeCurvature, usual: float, square: float) -> RelativeCurvature:
    """Limit numbers to those of a matrix of about that trace, whose curvature along any direction is at most it."""
    t = min(max(found.per_direction, usual / _MOST_APART), usual * _MOST_APART)
    signal, noise = (min(max(number, -t), t) for number in (found.along_signal, found.along_noise))
    return RelativeCurvature(t, signal, noise, found.noise_share, min(found.square, _MOST_WEIGHT * square))


def _brought_near(
    own: RelativeCurvature, rest: Sequence[RelativeCurvature], rate_of: Callable[[Sequence[RelativeCurvature]], float]
) -> RelativeCurvature:
    """Return numbers nearest to a device's own with which the rate is within `MOST_INFLUENCE` of that without it."""
    mean, without = pooled(rest), rate_of(rest)
    square = fmean(each.square for each in rest)
    centre = RelativeCurvature(mean.per_direction, mean.along_signal, mean.along_noise, mean.noise_share, square)

    def blend(share: float) -> RelativeCurvature:
        pairs = zip(astuple(centre), astuple(own), strict=True)
        return RelativeCurvature(*(a + share * (b - a) for a, b in pairs))

    low, high = _LEAST_POWER, 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = abs(math.log(rate_of([*rest, blend(2.0**middle)]) / without)) <= math.log(MOST_INFLUENCE)
        low, high = (middle, high) if inside else (low, middle)
    return blend(2.0**low)


def without_extremes(
    found: Sequence[RelativeCurvature], count: int, rate_of: Callable[[Sequence[RelativeCurvature]], float]
) -> list[RelativeCurvature]:
    """Return all devices but the `count` whose own numbers give the shortest and the longest steps, equally weighted.

    For robust rules, which assume `count` devices that may collude.
    """
    ordered = sorted(found, key=lambda each: rate_of([each]))
    middle = ordered[count : len(ordered) - count] or ordered[len(ordered) // 2 :][:1]
    return [replace(each, square=1.0) for each in middle]
