"""The randomised gradient estimator (q-RGE): q directions per step, forward passes only.

Two-sided: g_j = (L(w+εz_j) − L(w−εz_j)) / 2ε. One-sided: (L(w+εz_j) − L(w))/ε. Leave-one-out:
(L(w+εz_j) − mean_{i≠j} L(w+εz_i))/ε. Sources: MeZO (arXiv 2305.17333), ZO-ASR (2512.01267), FZOO (2506.09034).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.directions.seeds import direction_seed
from zo_common.errors import ConfigError, NonFiniteLoss
from zo_common.estimator.curvature import Curvature, OutputTrace, TracedLoss, curvature_of, fisher_gram
from zo_common.estimator.settings import EstimatorConfig
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update

LossFn = Callable[[], torch.Tensor]
Quantise = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Release = Callable[[NDArray[np.float64]], NDArray[np.float32]]
Weigh = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class StepResult:
    """The measurements of one step.

    Attributes:
        projected_grads: float32, shape (q,).
        per_example: float64, shape (q, B): each example's projected gradient; their mean over B is `projected_grads`.
        loss: mean of the measured losses, an approximation of L(w).
        examples: B, the number of examples.
        curvature: if it was requested and the batch was not empty.
    """

    projected_grads: NDArray[np.float32]
    per_example: NDArray[np.float64]
    loss: float
    examples: int
    curvature: Curvature | None = None


class Walker:
    """Moves a state from one perturbation to the next in one fused pass, and finally back to the exact start."""

    def __init__(self, state: LatticeState, epsilon: float) -> None:
        self._state = state
        self._units = state.epsilon_units(epsilon)
        self._at: tuple[int, int] | None = None

    def move(self, target: tuple[int, int] | None, updates: Sequence[Update] = ()) -> None:
        """Go to `w + sign·ε·z(seed)` for target (seed, sign), or to `w` for None, adding `updates` on the way."""
        seeds: list[int] = []
        columns: list[NDArray[np.int64]] = []
        for place, sign in ((self._at, -1), (target, 1)):
            if place is not None:
                seeds.append(place[0])
                columns.append(sign * place[1] * self._units)
        if len(seeds) == 2 and seeds[0] == seeds[1]:
            seeds, columns = seeds[:1], [columns[0] + columns[1]]
        if updates:
            self._state.count_quanta(updates)
            seeds += [u.seed for u in updates]
            columns.append(self._state.units([u.coefficient for u in updates]))
        if seeds:
            self._state.shift(seeds, np.concatenate(columns, axis=1))
        self._at = target


def _losses(loss_fn: LossFn) -> NDArray[np.float64]:
    values: NDArray[np.float64] = loss_fn().detach().cpu().double().numpy().reshape(-1)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise NonFiniteLoss(
            f"the loss is not finite for {bad} of {values.size} examples: lower epsilon or the learning rate, "
            "or check the audio and labels of this batch"
        )
    return values


def clip_factors(per_example: NDArray[np.float64], multiple: float) -> NDArray[np.float64]:
    """Return the factor on each utterance's scalars, (B,), that limits their norm to `multiple` times the median.

    Squared gradient norms of utterances vary by two to three orders of magnitude. Without clipping, a single recording
    with a wrong transcript would dominate a step.

    Args:
        per_example: (q, B), one column per utterance.
        multiple: 0 clips nothing.
    """
    norms = np.sqrt(np.square(per_example).sum(axis=0))
    most = multiple * float(np.median(norms)) if norms.size else 0.0
    if not most > 0:
        return np.ones_like(norms)
    return np.asarray(most / np.maximum(norms, most))


def measure(
    walker: Walker,
    loss_fn: LossFn,
    seeds: Sequence[int],
    config: EstimatorConfig,
    weigh: Weigh | None = None,
    curvature: bool = False,
) -> StepResult:
    """Measure projected gradients along the directions of `seeds`; leaves the walker at the last perturbation.

    Args:
        weigh, curvature: as in `zo_step`.

    Raises:
        NonFiniteLoss: a loss was NaN or infinite.
        ConfigError: curvature is requested from a loss that does not support it.
    """
    trace = _attach_trace(loss_fn, config) if curvature else None
    try:
        per_example, seen = _per_example(walker, loss_fn, seeds, config)
    finally:
        if isinstance(loss_fn, TracedLoss):
            loss_fn.trace = None
    q, examples = per_example.shape
    if not examples:  # a random sample may be empty: nothing to measure or to add
        return StepResult(np.zeros(q, np.float32), per_example, 0.0, 0)
    factors = weigh(per_example) if weigh is not None else np.ones(examples)
    per_example = per_example * factors
    with np.errstate(over="ignore"):
        grads = per_example.mean(axis=1).astype(np.float32)
    if not np.isfinite(grads).all():
        raise NonFiniteLoss("a projected gradient exceeds float32: raise epsilon")
    found = None
    if trace is not None:  # an utterance has the same weight in the curvature as in the gradient
        weights = trace.weights * factors[trace.rows]
        gram = fisher_gram(trace.log_probs, weights, config.estimator, config.epsilon)
        found = curvature_of(gram, per_example, config.estimator, config.epsilon)
    return StepResult(grads, per_example, float(seen.mean()), examples, found)


def _attach_trace(loss_fn: LossFn, config: EstimatorConfig) -> OutputTrace:
    if not isinstance(loss_fn, TracedLoss):
        raise ConfigError("the curvature is measured of cross-entropies and CTC only: set learning-rate to a number")
    loss_fn.trace = trace = OutputTrace(config.forwards)
    return trace


def _per_example(
    walker: Walker, loss_fn: LossFn, seeds: Sequence[int], config: EstimatorConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each example's projected gradients, (q, B), and the measured losses."""
    plus: list[NDArray[np.float64]] = []
    minus: list[NDArray[np.float64]] = []
    clean = _losses(loss_fn) if config.estimator == "one-sided" else None
    for seed in seeds:
        walker.move((seed, 1))
        plus.append(_losses(loss_fn))
        if config.estimator == "two-sided":
            walker.move((seed, -1))
            minus.append(_losses(loss_fn))
    up = np.stack(plus)
    if config.estimator == "two-sided":
        return (up - np.stack(minus)) / (2 * config.epsilon), np.concatenate([up, np.stack(minus)])
    if clean is not None:
        return (up - clean) / config.epsilon, up
    others = (up.sum(axis=0) - up) / (len(up) - 1)
    return (up - others) / config.epsilon, up


def step_updates(seeds: Sequence[int], grads: NDArray[np.float32], learning_rate: float) -> list[Update]:
    """Return the coefficients c_j = −learning_rate · g_j / q, the mean over queries (ZO-ASR applies the sum)."""
    q = len(seeds)
    return [Update(s, float(np.float32(-learning_rate * float(g) / q))) for s, g in zip(seeds, grads, strict=True)]


@torch.inference_mode()
def zo_step(
    state: LatticeState,
    loss_fn: LossFn,
    seed: int,
    step: int,
    config: EstimatorConfig,
    learning_rate: float,
    quantise: Quantise | None = None,
    release: Release | None = None,
    *,
    weigh: Weigh | None = None,
    curvature: bool = False,
    apply: bool = True,
) -> StepResult:
    """Do one ZO-SGD step on the lattice.

    1. Directions `direction_seed(seed, step, 0 … q−1)`.
    2. Measure along each; "restore z_j" and "apply +εz_{j+1}" are one pass.
    3. "Restore z_q" and all q updates are one pass: 2q+1 passes over the weights for two-sided.

    On any error the weights are exactly what they were before the step.

    Args:
        quantise: function that rounds the projected gradients before they are applied and reported, for records that
            store them in a narrower type than float32.
        release: function that computes the applied and reported projected gradients from those of each example,
            (q, B), for differential privacy (`privacy.Mechanism.release_step`).
        weigh: function that computes factors (B,) from the scalars of each example, (q, B), such as `clip_factors`;
            `release` gets the unweighted scalars, as it clips by itself.
        curvature: whether to measure it, without further forward passes; for losses that are a `TracedLoss`.
        apply: whether the weights move; false for a step that the caller would undo at once, so that no update can
            leave the lattice.
    """
    seeds = [direction_seed(seed, step, query) for query in range(config.num_queries)]
    walker = Walker(state, config.epsilon)
    try:
        result = measure(walker, loss_fn, seeds, config, weigh if release is None else None, curvature)
        if release is not None:
            result = replace(result, projected_grads=release(result.per_example))
        if quantise is not None:
            result = replace(result, projected_grads=quantise(result.projected_grads))
        updates = step_updates(seeds, result.projected_grads, learning_rate) if apply else []
        walker.move(None, updates)
    except BaseException:
        walker.move(None)
        raise
    return result


def joined(losses: Sequence[LossFn]) -> LossFn:
    """Return one loss over several batches, evaluated one after another; it returns the losses of all examples."""
    if len(losses) == 1:
        return losses[0]
    return lambda: torch.cat([loss() for loss in losses])
