"""Calibration of groups of tensors by forward passes alone: signal and curvature of each, measured by itself.

A group's tensors are perturbed along directions of their own, the others staying as they are. What a step's scalars and
outputs tell of all trained tensors (`estimator.curvature`) they then tell of the group: the square of its gradient, m,
the noise in it, v, the curvature of one direction, t, and that along the gradient. `estimator.tensor_choice` chooses.
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
"""Directions along which ε is tried, fewest of leave-one-out that tell curvature along the gradient."""
LEAST_DIRECTIONS = PROBES
CURVED = 1e-5, 1e-2
"""Nats by which the loss may be curved between w and w + εz, ½ ε² t: below, rounding counts; above, what differs in
curvature between directions does, as if it were signal."""
_WANTED = 1e-3
LARGEST_EPSILON = 2.0**-4
"""There is room for it on every lattice."""
_GROUP_PASSES = 4  # with fewer the first of them, at which ε is tried, would be all
LEAST_DEVICES = 3
"""A median of fewer is one device's word."""
_KINDS = {"residual-bias": 0, "bias": 1, "gain": 1, "norm": 1, "convolution": 3}


@dataclass(frozen=True)
class GroupMeasure:
    """What one device, or several, measured of a group at unit scale.

    Attributes:
        weights: how many the group has.
        directions: degrees of freedom of `square`: directions less one for each mean that is taken off.
        square: m, mean square of the projected gradients.
        noise: v, the part of it that is noise of utterances.
        curvature: t, mean of zᵀFz.
        along_signal, along_noise: gᵀFg of the gradient, and what the noise of utterances adds to it.
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
    """Measure one group with so many forward passes of a batch; the weights are afterwards as before, to the bit.

    1. `PROBES` directions at an ε for which the perturbation has a length of about a quarter.
    2. Where the curvature calls for another ε, they are measured again; then the passes that are left at that ε.

    Args:
        tensors: names of the group's tensors.
        loss_fn: makes a step's loss; called once a step, for a batch each.
        seed: of the directions.
        weigh: as in `zo_step`.

    Raises:
        ConfigError: fewer passes than `LEAST_DIRECTIONS`; a loss that tells no curvature.
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
    """A power of two with which the loss is curved as is wanted, within a factor of 64 of the one that was tried."""
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
    """One measure of several: means weighted by directions.

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
    """One measure of several devices': of more than two each number's median, which no single one of them decides.

    A median counts each device as one degree of freedom: the squares of their gradients differ by more than those along
    several directions of one.
    """
    if len(measures) <= 2:
        return pooled_measures(measures)
    columns = zip(*(astuple(m)[2:] for m in measures), strict=True)
    weights = int(median(m.weights for m in measures))
    return GroupMeasure(weights, len(measures), *(float(median(c)) for c in columns))


@contextmanager
def only(model: nn.Module, tensors: Sequence[str]) -> Iterator[LatticeState]:
    """A lattice of these tensors alone, in which they may be moved; at the end their bits are as before.

    What snapping changes is remembered: few weights of a published model lie between grid points.
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
    """Groups in the order in which they are worth a look.

    The default preset first, with which all are compared; then few weights before many, the encoder's before a
    decoder's.
    """

    def rank(group: str) -> tuple[int, str]:
        if group == DEFAULT:
            return -1, group
        place, _, kind = group.partition(SEPARATOR)
        return _KINDS.get(kind, 4) + (3 if place.startswith("decoder") else 0 if place.endswith("-first") else 1), group

    return sorted(groups, key=rank)


def passes_of_groups(passes: int) -> tuple[int, int]:
    """How a device shares out its passes: passes a group, and for how many groups there are enough."""
    each = max(1, passes // _GROUP_PASSES)
    return passes // each, each


def shared_out(groups: Sequence[str], devices: int, each: int) -> list[list[str]]:
    """Which groups each device measures, every group being measured by as many devices as there is room for.

    Args:
        groups: the most important first; where there is no room for `LEAST_DEVICES` of each, the last are left out.
        each: groups that a device has the passes for.
    """
    room = devices * each
    kept = list(groups)[: max(1, room // min(LEAST_DEVICES, devices))]
    each = min(each, len(kept))
    return [[kept[(device * each + place) % len(kept)] for place in range(each)] for device in range(devices)]
