"""A check, by forward passes alone, that the loss difference exceeds the rounding noise of the forward pass.

Along a direction z the antithetic loss difference d(ε) = (L(w+εz) − L(w−εz)) / 2 is εg + O(ε³), while rounding adds
noise whose size falls more slowly: not at all for that of activations, as √ε for that of weights cast to a shorter type
(few of them cross a rounding step). So the difference at one eighth of the perturbation, less one eighth of the
difference, is noise and little else, and bounds the noise at ε from below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.estimator.step import LossFn, Walker
from zo_common.lattice.state import LatticeState

FRACTION = 8
LIMIT = 0.25  # if all of the difference is noise of the √ε kind, the share is 1/√8 = 0.35


@dataclass(frozen=True)
class RoundingNoise:
    """Root mean squares over directions, in nats, of the loss difference and of its rounding noise."""

    difference: float
    noise: float

    @property
    def share(self) -> float:
        """Noise ÷ loss difference; 1 if the difference is zero."""
        return min(1.0, self.noise / self.difference) if self.difference else 1.0

    @property
    def too_large(self) -> bool:
        """Whether the loss difference does not exceed the noise."""
        return self.share > LIMIT  # false if the loss is not finite: the step itself reports that


def measure_noise(state: LatticeState, loss_fn: LossFn, seeds: Sequence[int], epsilon: float) -> RoundingNoise:
    """Measure rounding noise along a few directions, with 4 forwards per direction; the weights are restored.

    An ε of fewer than `FRACTION` grid units cannot be divided; then ε and `FRACTION` times ε are compared.

    Raises:
        EpsilonTooSmall: as in a step.
        LatticeOverflow: as in a step, or because the larger perturbation leaves the lattice.
    """
    divisible = int(state.epsilon_units(epsilon).min()) >= FRACTION
    large = epsilon if divisible else FRACTION * epsilon
    differences = {size: _differences(state, loss_fn, seeds, size) for size in (large, large / FRACTION)}
    return RoundingNoise(_rms(differences[epsilon]), noise_between(differences[large], differences[large / FRACTION]))


def noise_between(large: NDArray[np.float64], small: NDArray[np.float64]) -> float:
    """Return the RMS of the noise in differences, from those at ε (`large`) and at ε / `FRACTION`, of any shape."""
    # the residual has the noise of the small difference and an eighth of that of the large one
    return _rms(small - large / FRACTION) / float(np.sqrt(1 + FRACTION**-2))


@torch.inference_mode()
def _differences(state: LatticeState, loss_fn: LossFn, seeds: Sequence[int], epsilon: float) -> NDArray[np.float64]:
    """Return half the antithetic differences of the mean loss, shape (directions,)."""
    walker = Walker(state, epsilon)
    found = []
    try:
        for seed in seeds:
            sides = []
            for sign in (1, -1):
                walker.move((seed, sign))
                sides.append(float(loss_fn().double().mean()))
            found.append((sides[0] - sides[1]) / 2)
    finally:
        walker.move(None)
    return np.array(found)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
