"""The share of signal in the scalars, from what rounds did to the held-out loss.

Rounds of coefficients α_r along Q random directions each, with scalars of mean square m_r, of which the share x is
signal, change a quadratic loss (`server.rounds.step_size`) by

    Δ = −c x m Σ Q α_r + ½ Σ Q m_r α_r² (t + (Q + 1/c) (r x + R_noise))

in expectation, with m the mean of m_r, c = (q − 1)/q of leave-one-out scalars, else 1, and r x the curvature along the
gradient, R_signal/m. A check of the held-out loss measures Δ within the noise of its utterances, and so x. For batches
of B and N held-out utterances the error of x is about √(B/(N Q)) for one round, that of 1 − v/m about √(2/Q): of 4 and
32 a quarter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from server.guards.guard import Progress
from server.rounds.pooled_curvature import Estimate, StepRow
from zo_common.estimator.curvature import RelativeCurvature

_LEAST_PART = 0.25  # of the promised gain, that curvature along the gradient leaves: beyond, the model says too little


def correction_of(left_out: int) -> float:
    """Return c of this module, for q of leave-one-out scalars; 0 for other estimators."""
    return (left_out - 1) / left_out if left_out else 1.0


@dataclass(frozen=True)
class Rounds:
    """Shape of all rounds of a run.

    Attributes:
        queries: directions of a device's local step.
        local_steps: of a device.
        shared: whether devices measure along the same directions.
        left_out: q of leave-one-out scalars; 0 for other estimators.
    """

    queries: int
    local_steps: int
    shared: bool
    left_out: int

    @property
    def correction(self) -> float:
        """c of this module."""
        return correction_of(self.left_out)

    def apart(self, devices: int) -> int:
        """Return the number of distinct directions of a local step of all devices."""
        return self.queries * (1 if self.shared else devices)


def judged_signals(
    progress: Sequence[Progress], rows: Sequence[StepRow], found: RelativeCurvature, made: Rounds
) -> list[Estimate]:
    """Return the share of signal that each check tells; checks of other rounds than those of `rows` are left out.

    Args:
        rows: of the last rounds.
        found: their mean, with the share of signal that the scalars themselves tell.
    """
    estimates = []
    for each in progress:
        of = [row for row in rows if each.after < row.server_round <= each.server_round]
        if of and each.after + 1 >= rows[0].server_round and all(row.mean_square > 0 for row in of):
            estimates.append(_signal(each, of, found, made))
    return [each for each in estimates if math.isfinite(each.signal) and math.isfinite(each.error)]


def _signal(progress: Progress, rows: Sequence[StepRow], found: RelativeCurvature, made: Rounds) -> Estimate:
    c, known = made.correction, 1 - found.noise_share
    mean = math.fsum(row.mean_square for row in rows) / len(rows)
    promised = without = along = 0.0
    for row in rows:
        apart = made.apart(row.devices)
        directions = made.local_steps * apart
        alpha = row.learning_rate * progress.step_factor / apart
        noise = found.along_noise / row.devices
        square = known + (1 - known) / row.devices if made.shared else 1.0
        half = directions * row.mean_square * alpha**2 / 2
        promised += c * mean * directions * alpha
        without += half * (square * found.per_direction + (directions + 1 / c) * max(0.0, noise))
        along += half * (directions + 1 / c) * max(0.0, found.along_signal)
    if not promised > 0:
        return Estimate(math.nan, math.inf)
    signal, scale = (without + along - progress.change) / promised, promised
    if signal > known > 0:  # then the curvature along the gradient is more than is known, too
        scale = max(promised - along / known, _LEAST_PART * promised)
        signal = (without - progress.change) / scale
    return Estimate(signal, progress.error / scale)
