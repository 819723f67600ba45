"""The grid of scalars: exact for what float32 scalars are, clipped where they are too large, sums without overflow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from zo_common.errors import SecureAggregationError
from zo_common.secure_sum.quantiser import MOST_SUM, Quantiser

GRID = Quantiser()
scalars = arrays.arrays(np.float32, st.integers(1, 20), elements=st.floats(-16384, 16384, width=32))


@given(scalars)
def test_within_half_a_step_and_exact_from_one_on(values: np.ndarray) -> None:
    units, clipped = GRID.quantise(values)
    back = GRID.mean(units, 1)
    assert clipped == 0 and units.dtype == np.int64
    assert np.abs(back - values.astype(np.float64)).max() <= 2.0**-25
    large = np.abs(values) >= 1
    assert (back[large] == values[large]).all()


def test_values_beyond_the_limit_are_clipped_and_counted() -> None:
    units, clipped = GRID.quantise(np.array([1e6, -1e30, 16384.0, 0.5], np.float32))
    assert units.tolist() == [1 << 38, -(1 << 38), 1 << 38, 1 << 23]
    assert clipped == 2 and GRID.limit == 16384.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(SecureAggregationError, match="not finite"):
        GRID.quantise(np.array([0.0, bad]))


def test_no_sum_of_a_legal_cohort_overflows() -> None:
    assert GRID.most * GRID.most_weight <= MOST_SUM < GRID.most * (GRID.most_weight + 1)
    total = GRID.weighted(np.array([GRID.most]), GRID.most_weight, GRID.most_weight)
    assert int(total[0]) == GRID.most * GRID.most_weight
    with pytest.raises(SecureAggregationError, match="weighting=uniform"):
        GRID.weighted(np.array([1]), 1, GRID.most_weight + 1)
    with pytest.raises(SecureAggregationError):
        GRID.weighted(np.array([1]), 0, 5)


def test_the_mean_is_that_of_the_exact_sum() -> None:
    total = np.array([3 << 24, -(1 << 24)], np.int64)
    assert GRID.mean(total, 6).tolist() == [0.5, -1 / 6]
