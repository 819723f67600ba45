"""Calibration of groups of tensors by forward passes alone: signal and curvature, measured for each group.

Only one group's tensors are perturbed at a time. The scalars and outputs of a step (`estimator.curvature`) then give
for this group: the squared gradient, m, its noise, v, the curvature of one direction, t, and that along the gradient.
`estimator.tensor_choice` makes the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from statistics import median

import numpy as np
from torch import nn

from zo_common.errors import ConfigError, NonFiniteLoss
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import LossFn, Weigh, zo_step
from zo_common.lattice import grid as lattice
from zo_common.lattice.groups import SEPARATOR
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import DEFAULT, unique_parameters

PROBES = 3
"""Directions for the search of ε; the fewest for which leave-one-out gives curvature along the gradient."""
LEAST_DIRECTIONS = PROBES
CURVED = 1e-5, 1e-2
"""Target for ½ ε² t in nats: below it, rounding noise dominates; above it, curvature differences between directions
look like signal."""
_WANTED = 1e-3
LARGEST_EPSILON = 2.0**-4
"""This always fits the lattice."""
_GROUP_PASSES = 4  # with fewer, the search of ε would use all of them
LEAST_DEVICES = 3
"""With fewer devices, one device determines the median."""
_KINDS = {"residual-bias": 0, "bias": 1, "gain": 1, "norm": 1, "convolution": 3}


@dataclass(frozen=True)
class GroupMeasure:
    """Measurements of a group at unit scale, from one or several devices.

    Attributes:
        weights: number of weights in the group.
        directions: degrees of freedom of `square`: directions less one for each mean that is subtracted.
        square: m, mean square of the projected gradients.
        noise: v, the part of m that is noise from sampling utterances.
        curvature: t, mean of zᵀFz.
        along_signal, along_noise: gᵀFg of the gradient, and the part that sampling noise adds.
    """

    weights: int
    directions: int
    square: float
    noise: float
    curvature: float
    along_signal: float
    along_noise: float

    def __post_init__(self) -> None:
        numbers = astuple(self)[2:]
        if not (all(map(math.isfinite, numbers)) and self.square >= 0 and self.noise >= 0 and self.curvature >= 0):
            raise NonFiniteLoss(f"a group's numbers are {numbers}, expected finite ones, and no negative squares")

    @property
    def signal(self) -> float:
        """s = m − v, an unbiased estimate of |g|²; may be negative."""
        return self.square - self.noise


def measure_group(
    model: nn.Module,
    tensors: Sequence[str],
    loss_fn: Callable[[], LossFn],
    seed: int,
    passes: int,
    weigh: Weigh | None = None,
) -> GroupMeasure:
    """Measure one group with the given number of forward passes; the weights are restored bit for bit.

    1. `PROBES` directions at an ε for which the perturbation has a length of about a quarter.
    2. If the curvature requires another ε, they are measured again; the remaining passes use that ε.

    Args:
        tensors: names of the group's tensors.
        loss_fn: returns a step's loss; called once per step, each with a new batch.
        seed: seed of the directions.
        weigh: as in `zo_step`.

    Raises:
        ConfigError: fewer passes than `LEAST_DIRECTIONS`; a loss without curvature.
        NonFiniteLoss, EpsilonTooSmall, LatticeOverflow: as a step.
    """
    if passes < LEAST_DIRECTIONS:
        raise ConfigError(f"calibration got {passes} passes for a group, expected at least {LEAST_DIRECTIONS}")
    with only(model, tensors) as state:
        epsilon, left = _first_epsilon(state), passes
        found: list[GroupMeasure] = []
        while left >= LEAST_DIRECTIONS:
            queries = left if found or left < PROBES + LEAST_DIRECTIONS else PROBES
            measured = _step(state, loss_fn(), seed, passes - left, queries, epsilon, weigh)
            left -= queries
            curved = measured.curvature * epsilon**2 / 2
            another = epsilon if CURVED[0] <= curved <= CURVED[1] else _fitting(epsilon, curved)
            if another == epsilon or left < LEAST_DIRECTIONS:
                found.append(measured)
            epsilon = another
        return pooled_measures(found)


def _first_epsilon(state: LatticeState) -> float:
    return min(LARGEST_EPSILON, float(2.0 ** -round(2 + math.log2(max(1, state.num_elements)) / 2)))


def _fitting(epsilon: float, curved: float) -> float:
    """Return a power of two for which ½ ε² t meets the target, within a factor of 64 of the ε that was tried."""
    factor = math.sqrt(_WANTED / curved) if curved > 0 else 64.0
    return min(LARGEST_EPSILON, float(2.0 ** round(math.log2(epsilon * min(64.0, max(1 / 64, factor))))))


def _step(
    state: LatticeState, loss_fn: LossFn, seed: int, step: int, queries: int, epsilon: float, weigh: Weigh | None
) -> GroupMeasure:
    config = EstimatorConfig("leave-one-out", queries, epsilon)
    result = zo_step(state, loss_fn, seed, step, config, 0.0, weigh=weigh, curvature=True)
    if result.curvature is None:
        raise ConfigError("calibration got an empty batch, expected at least one utterance: add recordings")
    # leave-one-out scalars are q/(q − 1) times those of independent directions, squared
    correction = (queries - 1) / queries
    square = float(np.square(result.projected_grads.astype(np.float64)).mean()) * correction
    c = result.curvature
    return GroupMeasure(
        state.num_elements,
        queries - 1,
        square,
        c.noise * correction,
        c.per_direction,
        c.along_signal,
        c.along_noise,
    )


def pooled_measures(measures: Sequence[GroupMeasure]) -> GroupMeasure:
    """Combine measures of one device: means weighted by directions.

    Raises:
        ConfigError: there is none.
    """
    if not measures:
        raise ConfigError("calibration has no measure of a group, expected at least one")
    total = sum(m.directions for m in measures)
    columns = zip(*(astuple(m)[2:] for m in measures), strict=True)
    shares = [m.directions / total for m in measures]
    means = [math.fsum(n * share for n, share in zip(column, shares, strict=True)) for column in columns]
    return GroupMeasure(measures[0].weights, total, *means)


def agreed_measure(measures: Sequence[GroupMeasure]) -> GroupMeasure:
    """Combine several devices' measures: for more than two, the median of each number, so that no device decides alone.

    A median counts each device as one degree of freedom: squared gradients vary more between devices than between
    directions of one device.
    """
    if len(measures) <= 2:
        return pooled_measures(measures)
    columns = zip(*(astuple(m)[2:] for m in measures), strict=True)
    weights = int(median(m.weights for m in measures))
    return GroupMeasure(weights, len(measures), *(float(median(c)) for c in columns))


@contextmanager
def only(model: nn.Module, tensors: Sequence[str]) -> Iterator[LatticeState]:
    """Yield a lattice of only these tensors; at the end their bits are restored.

    Weights changed by snapping are stored: few weights of a published model lie between grid points.
    """
    parameters = unique_parameters(model)
    moved = {}
    for name in tensors:
        weight = parameters[name].data
        was = weight.clone().reshape(-1)
        lattice.snap_in_place(weight, lattice.grid_exponent(weight))
        places = (weight.reshape(-1) != was).nonzero()[:, 0]
        moved[name] = places, was[places]
    try:
        yield LatticeState(model, ",".join(tensors))
    finally:
        for name, (places, values) in moved.items():
            parameters[name].data.view(-1)[places] = values


def by_importance(groups: Iterable[str]) -> list[str]:
    """Return groups in order of priority.

    The default preset comes first, since all are compared with it; then small groups before large ones, and the
    encoder's before the decoder's.
    """

    def rank(group: str) -> tuple[int, str]:
        if group == DEFAULT:
            return -1, group
        place, _, kind = group.partition(SEPARATOR)
        return _KINDS.get(kind, 4) + (3 if place.startswith("decoder") else 0 if place.endswith("-first") else 1), group

    return sorted(groups, key=rank)


def passes_of_groups(passes: int) -> tuple[int, int]:
    """Return how a device divides its passes: passes per group, and the number of groups that this allows."""
    each = max(1, passes // _GROUP_PASSES)
    return passes // each, each


def shared_out(groups: Sequence[str], devices: int, each: int) -> list[list[str]]:
    """Return the groups that each device measures; every group is measured by as many devices as possible.

    Args:
        groups: the most important first; the last are left out if they cannot be measured by `LEAST_DEVICES` each.
        each: number of groups that one device can measure.
    """
    room = devices * each
    kept = list(groups)[: max(1, room // min(LEAST_DEVICES, devices))]
    each = min(each, len(kept))
    return [[kept[(device * each + place) % len(kept)] for place in range(each)] for device in range(devices)]
