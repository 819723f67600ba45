"""The signal that held-out losses tell: what rounds promised, against what they did."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.guards.guard import Progress
from server.rounds.held_out_signal import Rounds, judged_signals
from server.rounds.pooled_curvature import StepRow
from zo_common.estimator.curvature import RelativeCurvature

MADE = Rounds(queries=8, local_steps=1, shared=False, left_out=8)


def _row(number: int, rate: float = 0.05, square: float = 0.6, devices: int = 8) -> StepRow:
    return StepRow(number, rate, 25.0, 1.0, 2.0, 0.9, 0.1, devices, 1.0, mean_square=square)


def _found(share: float, along: float = 0.0, noise: float = 0.0) -> RelativeCurvature:
    return RelativeCurvature(25.0, along, noise, 1 - share)


def _check(change: float, after: int = 0, last: int = 4, error: float = 0.01, factor: float = 1.0) -> Progress:
    return Progress(after, last, change, error, factor)


def test_what_rounds_of_a_quadratic_do_tells_the_signal() -> None:
    """Drawn rounds of scalars with a known share of signal, and the exact change of the loss."""
    rng, width, share, rate = np.random.default_rng(0), 200, 0.04, 0.05
    h = 1 / np.arange(1.0, width + 1)
    h *= 25 / h.sum()
    x = rng.standard_normal(width)
    x *= np.sqrt(0.024 / np.square(h * x).sum())  # |gradient|², what a direction of signs finds of it
    noise = 0.024 * (1 - share) / share
    changes, squares = [], []
    for _ in range(400):
        now, of = x, []
        for _ in range(2):
            z = rng.choice([-1.0, 1.0], (64, width))
            clean = z @ (h * now)
            scalars = clean + math.sqrt(noise) * rng.standard_normal(64)
            of.append(np.square(scalars).mean())
            now = now - rate / 64 * z.T @ scalars
        changes.append((h @ now**2 - h @ x**2) / 2)
        squares.append(of)
    rows = [_row(number + 1, rate, m) for number, m in enumerate(np.mean(squares, axis=0))]
    made = replace(MADE, left_out=0)
    along = float((h * x) @ (h * (h * x))) / rows[0].mean_square

    [found] = judged_signals([_check(float(np.mean(changes)), last=2)], rows, _found(share, along), made)

    assert found.signal == pytest.approx(share, abs=0.004)


@given(
    share=st.floats(-0.1, 0.8),
    known=st.floats(0.01, 0.5),
    quotient=st.floats(0, 10),
    noise=st.floats(0, 3),
    factor=st.sampled_from([1.0, 0.5]),
)
def test_the_signal_is_that_of_the_formula(
    share: float, known: float, quotient: float, noise: float, factor: float
) -> None:
    along = quotient * known
    rows = [_row(number, 0.01 * number, 0.3 + 0.1 * number) for number in range(1, 5)]
    c, q, alphas = 7 / 8, 64, [row.learning_rate * factor / 64 for row in rows]
    squares = [row.mean_square for row in rows]
    curve = 25 + (q + 1 / c) * (along * max(1.0, share / known) + noise / 8)
    gain = c * share * float(np.mean(squares)) * q * sum(alphas)
    change = -gain + sum(q * m * a**2 / 2 * curve for m, a in zip(squares, alphas, strict=True))

    [found] = judged_signals([_check(change, factor=factor)], rows, _found(known, along, noise), MADE)

    assert found.signal == pytest.approx(share, abs=1e-9)
    assert found.error > 0


def test_longer_rounds_tell_it_as_precisely() -> None:
    """The noise of a held-out loss grows with the step as the promised change does."""
    short = judged_signals([_check(-1e-4, error=1e-3)], [_row(n, 0.001) for n in range(1, 5)], _found(0.04), MADE)
    long = judged_signals([_check(-1e-3, error=1e-2)], [_row(n, 0.010) for n in range(1, 5)], _found(0.04), MADE)

    assert long[0].error == pytest.approx(short[0].error)


def test_a_step_far_too_long_does_not_make_the_signal_endless() -> None:
    [found] = judged_signals([_check(-1.0)], [_row(n, 5.0) for n in range(1, 5)], _found(0.01, along=3.0), MADE)

    assert math.isfinite(found.signal) and found.error > 0


def test_checks_that_cannot_tell_are_left_out() -> None:
    rows = [_row(number) for number in range(5, 9)]
    early, unknown = _check(-0.1, 0, 4), [replace(row, mean_square=0.0) for row in rows]
    partly, sure = _check(-0.1, 2, 6), _check(-0.1, 4, 8)

    assert judged_signals([early, partly], rows, _found(0.1), MADE) == []
    assert judged_signals([sure], unknown, _found(0.1), MADE) == []
    assert len(judged_signals([early, sure], rows, _found(0.1), MADE)) == 1
    assert judged_signals([replace(sure, error=math.inf)], rows, _found(0.1), MADE) == []


def test_shared_directions_and_local_steps_count_once() -> None:
    shared = Rounds(queries=8, local_steps=3, shared=True, left_out=0)

    assert shared.apart(5) == 8 and MADE.apart(5) == 40
    assert (shared.correction, MADE.correction) == (1.0, 7 / 8)
