"""A clipped vector is within the bound in exact integers, keeps its direction, and is left alone if it was short."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from zo_common.errors import ConfigError
from zo_common.privacy.clipping import CLIP_BITS, Grid

clip_norms = st.floats(1e-6, 1e6)
shapes = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
vectors = arrays.arrays(np.float64, shapes, elements=st.floats(-1e9, 1e9))
any_vectors = arrays.arrays(np.float64, shapes, elements=st.floats())


def _norms(units: NDArray[np.int64]) -> list[float]:
    return [math.sqrt(sum(int(u) ** 2 for u in column)) for column in units.T]


@settings(deadline=None)
@given(clip_norms)
def test_the_bound_is_the_clip_norm_rounded_down(clip_norm: float) -> None:
    grid = Grid.of(clip_norm)

    unit = Fraction(2) ** grid.exponent
    assert 2**CLIP_BITS <= grid.bound < 2 ** (CLIP_BITS + 1)
    assert grid.bound * unit <= Fraction(clip_norm) < (grid.bound + 1) * unit


@settings(deadline=None)
@given(any_vectors, clip_norms)
def test_no_vector_is_longer_than_the_bound(columns: NDArray[np.float64], clip_norm: float) -> None:
    grid = Grid.of(clip_norm)

    units = grid.clip(columns)

    assert units.dtype == np.int64
    assert units.shape == columns.shape
    assert all(sum(int(u) ** 2 for u in column) <= grid.bound**2 for column in units.T)
    assert not units[:, ~np.isfinite(columns).all(axis=0)].any()


@settings(deadline=None)
@given(vectors, clip_norms)
def test_the_direction_is_kept(columns: NDArray[np.float64], clip_norm: float) -> None:
    grid = Grid.of(clip_norm)

    for column, units in zip(columns.T, grid.clip(columns).T, strict=True):
        length = np.linalg.norm(column)
        if length == 0:
            assert not units.any()
            continue
        size = min(length, math.ldexp(grid.bound, grid.exponent))
        wanted = column / length * math.ldexp(size, -grid.exponent)
        assert np.abs(units - wanted).max() <= 1 + 1e-6 * np.abs(wanted).max()
        assert (np.sign(units) * np.sign(column) >= 0).all()


@settings(deadline=None)
@given(arrays.arrays(np.float64, shapes, elements=st.floats(-1, 1)))
def test_a_short_vector_is_only_put_on_the_grid(columns: NDArray[np.float64]) -> None:
    grid = Grid.of(10.0)

    found = np.ldexp(grid.clip(columns).astype(np.float64), grid.exponent)

    assert (np.abs(found) <= np.abs(columns)).all()
    assert np.abs(found - columns).max() < 2.0**grid.exponent


@settings(deadline=None)
@given(any_vectors, clip_norms, st.data())
def test_one_example_moves_the_sum_by_no_more_than_the_bound(
    columns: NDArray[np.float64], clip_norm: float, data: Any
) -> None:
    """Also as one that is not there: what is left of the others is the same to the bit."""
    grid = Grid.of(clip_norm)
    gone = data.draw(st.integers(0, columns.shape[1] - 1))

    whole = grid.clip(columns).sum(axis=1)
    without = grid.clip(np.delete(columns, gone, axis=1)).sum(axis=1)

    assert sum(int(d) ** 2 for d in whole - without) <= grid.bound**2


def test_an_empty_sample_is_zero() -> None:
    assert Grid.of(1.0).clip(np.zeros((4, 0))).sum(axis=1).tolist() == [0, 0, 0, 0]


def test_units_are_exact_in_float32() -> None:
    grid = Grid.of(100.0)
    units = grid.clip(np.random.default_rng(0).normal(size=(8, 50)) * 100)

    values = np.array([[grid.value(u) for u in row] for row in units])

    assert (values.astype(np.float32).astype(np.float64) == values).all()
    assert (grid.clip(values) == units).all()
    assert max(_norms(units)) <= grid.bound


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf, 1e-40])
def test_a_clip_norm_that_is_none(clip_norm: float) -> None:
    with pytest.raises(ConfigError, match=r"^clip-norm is .*, expected a positive number"):
        Grid.of(clip_norm)
