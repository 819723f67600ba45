"""Steps of test-time adaptation on the audio to be recognised; they stay until they are undone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from client.adapt.record import AdaptationRecord, Layout, quantise, undo
from zo_common.errors import ConfigError
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import LossFn, zo_step
from zo_common.lattice.state import LatticeState


class Plateau:
    """Early stop of an objective whose running mean has had no new minimum for `patience` values.

    The running mean is over the last `patience` values, as single losses are noisy, and starts once there are so many.
    So it stops after 2·`patience` values at the earliest. Patience 0 never stops.
    """

    def __init__(self, patience: int) -> None:
        if patience < 0:
            raise ConfigError(f"patience is {patience}, expected 0 (never stop) or a number of steps")
        self._patience = patience
        self._recent: deque[float] = deque(maxlen=patience)
        self._best = math.inf
        self._since = 0

    def reached(self, value: float) -> bool:
        """Take a value; return whether to stop after it."""
        self._recent.append(value)
        if len(self._recent) < max(self._patience, 1):
            return False
        mean = sum(self._recent) / len(self._recent)
        self._since = 0 if mean < self._best else self._since + 1
        self._best = min(self._best, mean)
        return self._since >= self._patience


class _Narrow:
    """Rounding of each step's scalars to the layout; "sign" takes its magnitude from the first step's mean size."""

    def __init__(self, layout: Layout, magnitude: float | None) -> None:
        self._layout: Layout = layout
        self._magnitude = magnitude

    def __call__(self, grads: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._magnitude is None:
            self._magnitude = float(np.abs(grads.astype(np.float64)).mean())
        return quantise(grads, self._layout, self._magnitude)


def adapt(
    state: LatticeState,
    loss_of_step: Callable[[int], LossFn],
    seed: int,
    steps: int,
    config: EstimatorConfig,
    learning_rate: float,
    *,
    patience: int = 0,
    layout: Layout = "float32",
    magnitude: float | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> AdaptationRecord:
    """Run up to `steps` steps of ZO-SGD; the state keeps their updates until `undo(state, record)`.

    1. Step k takes its loss, `loss_of_step(k)`, before any weight is perturbed, and measures its projected gradients.
    2. They are rounded to `layout` and then applied, so that a replay of the record gives the same bits.
    3. The steps end early where the running mean of the losses stops falling (`Plateau`).

    On any error the steps taken are undone: the state is where it was.

    Args:
        seed: u64; one for each utterance, so that no two share their directions.
        learning_rate: for the mean over queries; ZO-ASR's 2e-5 is for the sum over 8, 1.6e-4 here.
        patience: steps without progress before an early stop, 0 for all steps.
        layout: "float32", "float16" (half the bytes), or "sign" (a bit a scalar).
        magnitude: of every scalar of "sign"; by default the mean size of the first step's.
        on_step: called with (step, loss) after each step.

    Raises:
        ConfigError: steps, learning rate, patience, layout or magnitude out of range.
        NonFiniteLoss, LatticeOverflow: a loss was not finite, or a step would leave the lattice.
    """
    _check(steps, learning_rate, layout, magnitude)
    plateau, narrow, start = Plateau(patience), _Narrow(layout, magnitude), state.checksum()
    rows: list[NDArray[np.float32]] = []
    try:
        for step in range(steps):
            result = zo_step(state, loss_of_step(step), seed, step, config, learning_rate, narrow)
            rows.append(result.projected_grads)
            on_step(step, result.loss)
            if plateau.reached(result.loss):
                break
        return AdaptationRecord(seed, learning_rate, _stacked(rows, config), layout, start, state.checksum())
    except BaseException:
        undo(state, AdaptationRecord(seed, learning_rate, _stacked(rows, config), layout, start, 0))
        raise


def _stacked(rows: list[NDArray[np.float32]], config: EstimatorConfig) -> NDArray[np.float32]:
    """Stack the scalars of all steps, (K, q)."""
    return np.stack(rows) if rows else np.empty((0, config.num_queries), np.float32)


def _check(steps: int, learning_rate: float, layout: Layout, magnitude: float | None) -> None:
    """Raise ConfigError for an argument out of range."""
    if not 0 <= steps <= 0xFFFF:
        raise ConfigError(f"steps is {steps}, expected 0 … 65535")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ConfigError(f"learning-rate is {learning_rate}, expected a positive number")
    if magnitude is not None and not 0 <= magnitude <= np.finfo(np.float32).max:
        raise ConfigError(f"magnitude is {magnitude}, expected a number, 0 or above")
    if layout not in get_args(Layout):
        raise ConfigError(f"layout is {layout!r}, expected one of {', '.join(get_args(Layout))}")
