"""Relative errors between two ways to compute a loss, and the suitability of ε, with tolerances."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
_MOST_LONGER = 2.0
_LEAST_LOSS = 0.05  # nats: of a loss that is nearly 0, shares say nothing


@dataclass(frozen=True)
class Tolerances:
    """Tolerances, as fractions.

    Attributes:
        loss: mean |error| of the utterances' losses ÷ their mean loss.
        worst: the same of the worst utterance.
        difference: root mean square error of the differences ÷ their root mean square.
        turn: sine of the angle between the differences, with frozen weights in another precision; 0.436 is a cosine of
            0.9. Passes for the same progress rise with 1 ÷ cosine², here by a quarter, which is less than the time that
            a pass in bfloat16 or int8 saves.
        noise: rounding noise in a difference ÷ difference.
        curvature: |mean of (L(w+εz) + L(w−εz))/2 − L(w)| ÷ L(w).
    """

    loss: float = 0.02
    worst: float = 0.15
    difference: float = 0.15
    noise: float = 0.1
    curvature: float = 0.1
    turn: float = 0.436

    def times(self, factor: float) -> Tolerances:
        """Return all tolerances times a number."""
        return Tolerances(*(factor * getattr(self, f.name) for f in fields(self)))

    @property
    def of_types(self) -> Tolerances:
        """Tolerances of a shorter type: rounding that all losses share leaves their differences, so it may be twice."""
        return replace(self, loss=2 * self.loss, difference=self.noise)

    @property
    def of_held(self) -> Tolerances:
        """Tolerances of frozen weights in another precision, for `compare_held`."""
        return replace(self.of_types, difference=self.turn)


@dataclass(frozen=True)
class Probe:
    """Losses at the weights, (n,), half their differences and mean curvature terms along directions, (J, n)."""

    losses: Values
    differences: Values
    curvatures: Values

    @property
    def curvature(self) -> float:
        """The curvature term ÷ loss."""
        return abs(float(self.curvatures.mean())) / max(float(self.losses.mean()), _LEAST_LOSS)


@dataclass(frozen=True)
class Comparison:
    """The errors of a setting relative to the reference, as the fractions in `Tolerances`.

    `difference` is None where the differences were not compared. Of held weights (`compare_held`) it is the sine of the
    angle between the differences, and `held` is true.
    """

    loss: float
    worst: float
    nats: float
    difference: float | None = None
    held: bool = False

    def fits(self, tolerances: Tolerances) -> bool:
        """Return whether all errors are within tolerance; errors that are not finite are not."""
        within = self.loss <= tolerances.loss and self.worst <= tolerances.worst
        return bool(within and (self.difference is None or self.difference <= tolerances.difference))

    def words(self, of: str) -> str:
        """Return the comparison in words, `of` naming the reference in the possessive."""
        loss = f"loss within {self.loss:.1%} (worst utterance {self.nats:.2g} nats)"
        if self.difference is None:
            return f"{loss} of {of}"
        if not self.held:
            return f"{loss}, differences within {self.difference:.0%} of {of}"
        cosine = math.sqrt(max(0.0, 1 - min(1.0, self.difference) ** 2))
        return f"{loss} of {of}, cosine of the differences {f'{cosine:.3f}' if cosine else '0 or a wrong size'}"


def compare_losses(found: Values, reference: Values) -> Comparison:
    """Return the errors of losses (n,) relative to the reference's."""
    errors, mean = np.abs(found - reference), max(float(reference.mean()), _LEAST_LOSS)
    return Comparison(float(errors.mean()) / mean, float(errors.max()) / mean, float(errors.max()))


def compare(found: Probe, reference: Probe) -> Comparison:
    """Return the errors of a probe relative to the reference's along the same directions."""
    size = root_mean_square(reference.differences)
    off = root_mean_square(found.differences - reference.differences)
    apart = off / size if size else math.inf if off else 0.0
    return replace(compare_losses(found.losses, reference.losses), difference=apart)


def compare_held(found: Probe, reference: Probe) -> Comparison:
    """As `compare`, for frozen weights in another precision, which are those of a slightly different model.

    A step along that model's gradient lowers the loss of the reference at cos θ of the rate, with θ the angle between
    the gradients, whatever their lengths. θ is estimated from the differences, (J, n) as one vector. If these are
    opposed, or one is more than twice as long as the other, the error is infinite.
    """
    one, two = found.differences.ravel(), reference.differences.ravel()
    sizes = float(np.linalg.norm(one)), float(np.linalg.norm(two))
    sine = math.inf
    if min(sizes) > 0 and max(sizes) <= _MOST_LONGER * min(sizes):
        cosine = float(one @ two) / (sizes[0] * sizes[1])
        sine = math.sqrt(max(0.0, 1 - cosine**2)) if cosine > 0 else math.inf
    return replace(compare_losses(found.losses, reference.losses), difference=sine, held=True)


@dataclass(frozen=True)
class EpsilonVerdict:
    """The errors of an ε: rounding noise and curvature, as the fractions in `Tolerances`."""

    noise: float
    curvature: float

    def excess(self, tolerances: Tolerances) -> float:
        """1 or less where ε fits."""
        return max(self.noise / tolerances.noise, self.curvature / tolerances.curvature)

    def __str__(self) -> str:
        clear = f"{1 / self.noise:.0f} times above" if self.noise > 1e-4 else "far above"
        stand = f"differences stand {clear} rounding noise" if self.noise < 1 else "differences drown in rounding noise"
        return f"{stand}, curvature is {self.curvature:.1%} of the loss"


def root_mean_square(values: Values) -> float:
    """√ of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))
