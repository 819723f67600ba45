"""The choice of trained tensors, and of the scales of their directions, from what a calibration measured.

For Q directions of N devices a round, the step of `server.rounds.step_size` lowers a quadratic model of the loss by

    P = ½ Q s² / (m t + (Q + 1) R)

with s = |g|², m = s and the noise of utterances, t the curvature of one direction and R = gᵀFg. Where directions act on
a group 2**e times as strongly, its s, m and t count 4**e times and R 16**e times. Groups' s, m and t add up; of R only
bounds are known: the sum where curvature along two groups' gradients has nothing in common, (Σ √R)² where it is along
one output. Half of each is taken. Where noise rules (Q s small against m t), P is the (Σ|g|²)²/(tr F · σ²) that a
single group makes largest; where directions are many, R rules, and groups that are added help.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from zo_common.estimator.calibration import GroupMeasure
from zo_common.lattice import grid as lattice
from zo_common.lattice.trained import DEFAULT

MARGIN = 1.2
"""Another choice must predict this many times the default's progress."""
_ADDS = 1.1  # factor of progress that a group must add to be chosen
_MOST_SCALE = 6
_LEAST_WEIGHTS = 1000  # fewer are soon exhausted
_PRIOR_DIRECTIONS = 16
_FARTHEST = 4.0  # standard deviations, of a few thousand weights
_ROUNDS_STRAIGHT = 10
_MOST_WIDER = 6
_TOGETHER = 0.5  # of R, how far groups' curvatures add up in amplitude


@dataclass(frozen=True)
class RoundShape:
    """A round's number of distinct directions, the devices whose noise is averaged in R, and the run's rounds."""

    directions: int
    devices: int
    rounds: int = 40


@dataclass(frozen=True)
class TensorChoice:
    """The choice of trained tensors, and the reason.

    Attributes:
        pattern: as in `trained-tensors`: groups with their scales, or the default preset.
        progress: predicted for one round, nats; 0 if no prediction was possible.
        reason: a clause for the log.
    """

    pattern: str
    progress: float
    reason: str


Scales = Mapping[str, int]  # of chosen groups: exponents of two


def standard_error(measure: GroupMeasure) -> float:
    """Return the squared standard error of the signal, from m's degrees of freedom under normality."""
    return measure.square * math.sqrt(2 / max(1, measure.directions))


def shrunk(measures: Mapping[str, GroupMeasure]) -> dict[str, GroupMeasure]:
    """Return groups whose signal exceeds its standard error, shrunk towards a prior from all groups.

    - s: the prior is normal around r t, with r = Σ s / Σ t and as wide as it is large. What is moved is the division of
      m into signal and noise; where s is more than m then, m grows.
    - R: the prior is c s t, with c = Σ R / Σ s t over all groups, and counts as `_PRIOR_DIRECTIONS` directions;
      half of it is the least.
    """
    curvature = sum(m.curvature for m in measures.values())
    ratio = max(0.0, sum(m.signal for m in measures.values())) / curvature if curvature > 0 else 0.0
    both = sum(max(0.0, m.signal) * m.curvature for m in measures.values())
    along = max(0.0, sum(m.along_signal for m in measures.values())) / both if both > 0 else 0.0
    return {
        group: _moved(measure, ratio, along)
        for group, measure in measures.items()
        if measure.curvature > 0 and measure.signal > standard_error(measure)
    }


def _moved(measure: GroupMeasure, ratio: float, along: float) -> GroupMeasure:
    prior = ratio * measure.curvature
    own, other = 1 / standard_error(measure) ** 2, 1 / prior**2 if prior > 0 else 0.0
    signal = (own * measure.signal + other * prior) / (own + other)
    square = max(measure.square, signal)
    share = measure.directions / (measure.directions + _PRIOR_DIRECTIONS)
    usual = along * signal * measure.curvature
    together = max(usual / 2, share * measure.along_signal + (1 - share) * usual)
    return replace(measure, square=square, noise=max(0.0, square - signal), along_signal=together)


def progress(measures: Mapping[str, GroupMeasure], scales: Scales, shape: RoundShape) -> float:
    """Return P (see the module) for groups of known signal, each at its scale."""
    signal, _, below = _together(measures, scales, shape)
    return shape.directions * signal * signal / (2 * below) if signal > 0 and below > 0 else 0.0


def travel(measures: Mapping[str, GroupMeasure], scales: Scales, shape: RoundShape) -> dict[str, float]:
    """Group → how far one of its weights goes in `shape.rounds` of the best steps: the farthest of some thousands.

    With α = s / (m t + (Q + 1) R), a weight walks α √(Q m) a round at random, and α Q |g| / √n along the gradient for
    the first `_ROUNDS_STRAIGHT` rounds.
    """
    signal, square, below = _together(measures, scales, shape)
    step = max(0.0, signal) / below if below > 0 else 0.0
    walk = _FARTHEST * step * math.sqrt(shape.directions * square * shape.rounds)
    straight = step * shape.directions * min(shape.rounds, _ROUNDS_STRAIGHT)
    return {
        group: 2.0**exponent * walk
        + 4.0**exponent * straight * math.sqrt(max(0.0, measures[group].signal) / measures[group].weights)
        for group, exponent in scales.items()
    }


def _together(measures: Mapping[str, GroupMeasure], scales: Scales, shape: RoundShape) -> tuple[float, float, float]:
    """Return s, m, and m t + (Q + 1) R of all chosen groups."""
    chosen = [(measures[group], 4.0**exponent) for group, exponent in scales.items()]
    signal, square, curvature = (
        sum(a * getattr(m, name) for m, a in chosen) for name in ("signal", "square", "curvature")
    )
    along = [a * a * _along(m, shape) for m, a in chosen]
    together = _TOGETHER * sum(map(math.sqrt, along)) ** 2 + (1 - _TOGETHER) * sum(along)
    return signal, square, square * curvature + (shape.directions + 1) * together


def _along(measure: GroupMeasure, shape: RoundShape) -> float:
    """Return R, at least |g|² t / n, its value for a gradient with average curvature."""
    measured = measure.along_signal + measure.along_noise / shape.devices
    return max(measured, measure.signal * measure.curvature / measure.weights, 0.0)


def choose_tensors(measures: Mapping[str, GroupMeasure], shape: RoundShape) -> TensorChoice:
    """Choose the groups and scales with the most predicted progress per round.

    1. Keep groups whose signal exceeds its noise (`shrunk`).
    2. Take the best one, then greedily the one that adds most, at unit scale or at the scale of equal curvature.
    3. Keep the default preset unless the choice, with signals one standard error lower, is `MARGIN` times as good as
       the default with its signal one standard error higher. Keep it also if no signal was measured.

    Args:
        measures: by group, the default preset among them under its name, at unit scale (`calibration.agreed_measure`).
    """
    known = shrunk(measures)
    scales = _best(known, shape)
    usual = {DEFAULT: 0}
    if DEFAULT in measures and DEFAULT not in known:  # a signal below its noise may be as large as the noise
        known |= {DEFAULT: _at_most(measures[DEFAULT])}
    before = progress(_doubted(known, 1), usual, shape) if DEFAULT in known else 0.0
    wider = wider_ranges(known, usual, shape) if DEFAULT in known else {}
    default = DEFAULT + (f"@0^{wider[DEFAULT]}" if wider.get(DEFAULT) else "")
    if not scales:
        return TensorChoice(default, 0.0, "no group's signal is above its noise: the default stays")
    found = progress(_doubted(known, -1), scales, shape)
    if found < MARGIN * before or list(scales) == [DEFAULT]:
        return TensorChoice(default, before, f"nothing is {MARGIN:g} times as good as the default beyond doubt")
    gain = f"{found / before:.1f} times the default's" if before else "the default's not being known"
    pattern = pattern_of(scales, wider_ranges(known, scales, shape))
    return TensorChoice(pattern, found, f"predicted progress a round {found:.3g} nats at least, {gain} at most")


def _doubted(measures: Mapping[str, GroupMeasure], sign: int) -> dict[str, GroupMeasure]:
    """Return the factor by which all signals change when moved one standard error up or down."""
    return {group: _with_signal(m, math.exp(sign * min(2.0, _relative_error(m)))) for group, m in measures.items()}


def _relative_error(measure: GroupMeasure) -> float:
    return standard_error(measure) / measure.signal if measure.signal > 0 else math.inf


def _with_signal(measure: GroupMeasure, factor: float) -> GroupMeasure:
    signal = measure.signal * factor
    return replace(measure, square=measure.noise + signal, along_signal=measure.along_signal * factor)


def wider_ranges(measures: Mapping[str, GroupMeasure], scales: Scales, shape: RoundShape) -> dict[str, int]:
    """Group → exponent by which its range is to be widened: half of a range, 1/8 at least, is free as it is.

    Signals are taken a standard error higher, and once more is doubled: a coarser grid costs nothing that could be
    measured, and a weight that leaves its range ends the run.
    """
    found = {}
    for group, far in travel(_doubted(measures, 1), scales, shape).items():
        needed = max(0, math.ceil(math.log2(0.5 + far / (2 * lattice.MIN_MAGNITUDE))))
        found[group] = min(_MOST_WIDER, needed + 1) if needed else 0
    return found


def _at_most(measure: GroupMeasure) -> GroupMeasure:
    error = standard_error(measure)
    return replace(measure, square=max(measure.square, error), noise=max(0.0, measure.square - error))


def _best(known: Mapping[str, GroupMeasure], shape: RoundShape) -> dict[str, int]:
    scales: dict[str, int] = {}
    while len(scales) < len(known):
        reference = next(iter(scales), None)
        now = progress(known, scales, shape) if scales else 0.0
        enough = sum(known[group].weights for group in scales) >= _LEAST_WEIGHTS
        options = [
            scales | {group: exponent}
            for group in sorted(known.keys() - scales.keys())
            for exponent in _exponents(known, group, reference)
        ]
        best = max(options, key=lambda option: progress(known, option, shape))
        if enough and progress(known, best, shape) <= _ADDS * now:
            break
        scales = best
    return scales


def _exponents(known: Mapping[str, GroupMeasure], group: str, reference: str | None) -> list[int]:
    """Return unit scale, and the scales at which a direction has the reference's curvature in total and per weight."""
    if reference is None:
        return [0]
    one, other = known[reference], known[group]
    total = one.curvature / other.curvature
    equal = [math.log2(ratio) / 2 for ratio in (total, total * other.weights / one.weights)]
    return sorted({0, *(min(_MOST_SCALE, max(-_MOST_SCALE, round(e))) for e in equal)})


def pattern_of(scales: Scales, wider: Mapping[str, int] | None = None) -> str:
    """Return groups, scales and wider ranges as a `trained-tensors` pattern: `encoder-first/norm,rest/bias@-1^2`."""
    return ",".join(_part(group, exponent, (wider or {}).get(group, 0)) for group, exponent in sorted(scales.items()))


def _part(group: str, exponent: int, wider: int) -> str:
    if not (exponent or wider):
        return group
    return f"{group}@{exponent}" + (f"^{wider}" if wider else "")
