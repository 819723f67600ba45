"""A rise of devices' losses: paired by device, beyond its noise, and never by the word of one of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.guards.device_losses import DeviceLosses, Rise, compare


def _losses(*means: float, counts: tuple[int, ...] = (), broken: tuple[int, ...] = ()) -> DeviceLosses:
    numbers = counts or (10,) * len(means)
    pairs = enumerate(zip(means, numbers, strict=True))
    return DeviceLosses({c: (m * n, n) for c, (m, n) in pairs if c not in broken}, frozenset(broken))


BEST = _losses(1.0, 2.0, 3.0, 4.0)


def test_a_rise_of_equal_devices_is_the_paired_one() -> None:
    """Differences of 0.1, 0.2, 0.3 and 0.2: mean 0.2, standard deviation 0.0816, over √4."""
    rise = compare(_losses(1.1, 2.2, 3.3, 4.2), BEST)

    assert rise is not None
    assert (rise.mean, rise.middle) == pytest.approx((0.2, 0.2))
    assert rise.error == pytest.approx(math.sqrt(0.02 / 3) / 2)
    assert rise.higher and rise.beyond_noise and not rise.lower and not rise.broke


def test_shares_are_those_of_the_utterances() -> None:
    """10, 10 and 20 utterances, differences of 0.4, 0 and 0.2."""
    best, found = (_losses(*means, counts=(10, 10, 20)) for means in ((1.0, 1.0, 1.0), (1.4, 1.0, 1.2)))
    rise = compare(found, best)

    assert rise is not None and rise.mean == pytest.approx(0.2)
    assert rise.error == pytest.approx(math.sqrt(1.5 * (0.25**2 * 0.2**2 * 2)))
    assert best.loss == pytest.approx(1.0) and found.loss == pytest.approx(1.2)


def test_a_device_counts_with_at_most_twice_the_median_s_utterances() -> None:
    best, found = (_losses(*means, counts=(10, 10, 10**9)) for means in ((1.0, 1.0, 1.0), (1.0, 1.0, 2.0)))
    rise = compare(found, best)
    assert rise is not None and rise.mean == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "higher", "beyond", "lower"),
    [
        ((0.1, 0.1, 0.1, 0.1), True, True, False),
        ((0.0, 0.0, 0.0, 0.0), False, False, False),
        ((-0.1, -0.2, -0.1, -0.1), False, False, True),
        ((1.0, -0.1, 1.0, 0.1), True, False, False),  # 0.5 ± 0.29
        ((9.0, -0.1, -0.1, -0.1), False, False, False),  # the mean rose, the median device's loss fell
        ((-9.0, 0.1, 0.1, 0.1), False, False, False),
    ],
)
def test_what_is_higher(changes: tuple[float, ...], higher: bool, beyond: bool, lower: bool) -> None:
    rise = compare(_losses(*(level + change for level, change in enumerate(changes, 1))), BEST)
    assert rise is not None
    assert (rise.higher, rise.beyond_noise, rise.lower) == (higher, beyond, lower)


@pytest.mark.parametrize(
    ("broken", "broke", "beyond"), [((0,), False, False), ((0, 1), False, False), ((0, 1, 2), True, True)]
)
def test_losses_that_are_not_finite_count_where_most_devices_have_them(
    broken: tuple[int, ...], broke: bool, beyond: bool
) -> None:
    rise = compare(_losses(1.0, 2.0, 3.0, 4.0, broken=broken), BEST)
    assert rise is not None
    assert (rise.broke, rise.beyond_noise, rise.broken, rise.devices) == (broke, beyond, len(broken), 4)


def test_where_all_break_there_is_no_mean() -> None:
    rise = compare(_losses(1.0, 2.0, 3.0, 4.0, broken=(0, 1, 2, 3)), BEST)
    assert rise is not None and rise.broke and math.isnan(rise.mean)


def test_fewer_than_half_of_the_devices_are_no_look() -> None:
    assert compare(DeviceLosses({0: (10.0, 10)}), BEST) is None
    assert compare(DeviceLosses({7: (10.0, 10), 8: (10.0, 10), 9: (10.0, 10)}), BEST) is None
    assert compare(DeviceLosses({0: (10.0, 10), 1: (20.0, 10)}), BEST) == Rise(0.0, 0.0, 0.0, 2, 0)
    assert compare(_losses(1.0, counts=(10,)), _losses(1.0, counts=(10,))) is None


def test_other_utterances_are_no_answer() -> None:
    found = _losses(1.0, 2.0, 3.0, 9.0, counts=(10, 10, 10, 11))
    assert compare(found, BEST) == Rise(0.0, 0.0, 0.0, 3, 0)


@given(
    falls=st.lists(st.floats(1e-6, 5), min_size=3, max_size=9),
    lie=st.one_of(st.none(), st.floats(0, 1e6)),
    claimed=st.integers(1, 2**32 - 1),
    place=st.integers(0, 9),
)
def test_one_device_that_lies_takes_no_round_back_where_the_others_fell(
    falls: list[float], lie: float | None, claimed: int, place: int
) -> None:
    """Whatever it says now, and whatever it said of itself at the best check."""
    liar = place % (len(falls) + 1)
    before = {c + (c >= liar): (60.0, 10) for c in range(len(falls))}
    after = {c + (c >= liar): (60.0 - 10 * fall, 10) for c, fall in enumerate(falls)}
    best = DeviceLosses(before | {liar: (0.0, claimed)})
    told = {} if lie is None else {liar: (lie * claimed, claimed)}
    found = DeviceLosses(after | told, frozenset() if told else frozenset([liar]))

    rise = compare(found, best)

    assert rise is not None and not rise.higher and not rise.beyond_noise


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(0, 9))
def test_levels_of_devices_are_no_noise(changes: list[float], level: float) -> None:
    levels = [10 + level * number for number in range(len(changes))]
    rise = compare(_losses(*(a + b for a, b in zip(levels, changes, strict=True))), _losses(*levels))
    plain = compare(_losses(*(10 + c for c in changes)), _losses(*[10.0] * len(changes)))
    assert rise is not None and plain is not None
    assert (rise.mean, rise.error) == pytest.approx((plain.mean, plain.error), abs=1e-9)
