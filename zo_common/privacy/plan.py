"""The cost of a guarantee before a run: the noise, its effect on a scalar, and the slow-down of training.

A step's expected progress with directions z is ½·|g|⁴·q / (trace(H)·E[scalar²]): the gradient's part of a scalar
causes the progress, all else in it reduces the step size. Without privacy E[scalar²] = |g|² + v/B, with v the variance
of one utterance's gradient along a direction and B the batch. Noise of variance τ² in a scalar makes it |g|² + v/B +
τ², so the same progress takes 1 + τ²/(|g|² + v/B) times the steps, at a learning rate smaller by as much.

Clipping to C < N, the usual norm, scales a vector by s = C/N, which a larger learning rate compensates: the noise is
then τ/s, the same for every C ≤ N. A C above N only adds noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from zo_common.directions.seeds import Directions
from zo_common.errors import ConfigError
from zo_common.privacy.accountant import epsilon_spent, noise_for
from zo_common.privacy.charges import release_of
from zo_common.privacy.mechanism import Privacy, PrivacySettings

GRADIENT_SQUARE = 10.6
"""|g|² of Whisper-tiny.en's default tensors on synthetic dialect, as measured (`benchmarks.privacy.planned`)."""
GRADIENT_VARIANCE = 57.0
"""The variance of one utterance's gradient along a direction, of the same measurement."""
TENTHS = 10


@dataclass(frozen=True)
class PrivacyPlan:
    """A planned run.

    Attributes:
        level: "example" or "device".
        epsilon, delta: the target.
        rounds: number of rounds in which a device is asked.
        steps, batch, queries: of each round.
        examples: utterances of the device with the fewest.
        devices: minimum number that answer a round.
        clip_norm: 0 for the usual norm of the clipped vectors.
        gradient_square, gradient_variance: |g|² and v above.
        directions: with "shared", or at the device level, the mean of all devices is applied.

    Raises:
        ConfigError: a value gives no guarantee, or no run.
    """

    level: Privacy
    epsilon: float
    delta: float
    rounds: int
    steps: int = 1
    batch: int = 16
    examples: int = 1
    queries: int = 8
    devices: int = 1
    clip_norm: float = 0.0
    gradient_square: float = GRADIENT_SQUARE
    gradient_variance: float = GRADIENT_VARIANCE
    directions: Directions = "independent"

    def __post_init__(self) -> None:
        for name in ("rounds", "steps", "batch", "examples", "queries", "devices"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("gradient_square", "gradient_variance"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name.replace('_', '-')} is {getattr(self, name)}, expected a positive number")
        if self.directions not in get_args(Directions):
            raise ConfigError(f"directions is {self.directions!r}, expected one of {', '.join(get_args(Directions))}")
        settings = PrivacySettings(self.level, self.epsilon, self.delta, self.clip)
        settings.check_population(self.devices * (self.examples if self.level == "example" else 1))

    @property
    def expected_batch(self) -> int:
        """Expected number of utterances per step."""
        return min(self.batch, self.examples) if self.level == "example" else self.batch

    @property
    def usual_norm(self) -> float:
        """Expected norm of an utterance's q scalars, or of a device's K·q."""
        if self.level == "example":
            return math.sqrt(self.queries * (self.gradient_square + self.gradient_variance))
        return math.sqrt(
            self.steps * self.queries * (self.gradient_square + self.gradient_variance / self.expected_batch)
        )

    @property
    def clip(self) -> float:
        """The clip norm."""
        return self.clip_norm if self.clip_norm else self.usual_norm

    @property
    def divisor(self) -> int:
        """Divisor of a clipped and noised sum: the batch, or the devices."""
        return self.expected_batch if self.level == "example" else self.devices

    @property
    def averaged(self) -> int:
        """Number of devices whose scalars along one direction are averaged."""
        return self.devices if self.level == "device" or self.directions == "shared" else 1

    def result(self) -> PrivacyCost:
        """Return the cost, by the accountant."""
        release, times = release_of(self.level, 1.0, self.steps, self.batch, self.examples)
        noise = noise_for(self.epsilon, self.delta, times * self.rounds, release.batch, release.examples)
        noise_std = noise * self.clip / self.divisor
        if self.level == "example":  # every device adds its own
            noise_std /= math.sqrt(self.averaged)
        shrink = min(1.0, self.clip / self.usual_norm)
        scalar_std = math.sqrt(self.gradient_square + self.gradient_variance / (self.expected_batch * self.averaged))
        ratio = noise_std / shrink / scalar_std
        noisy, _ = release_of(self.level, noise, self.steps, self.batch, self.examples)
        after = [max(1, round(self.rounds * tenth / TENTHS)) for tenth in range(1, TENTHS + 1)]
        return PrivacyCost(
            noise_multiplier=noise,
            rate=release.rate,
            clip_norm=self.clip,
            usual_norm=self.usual_norm,
            noise_std=noise_std,
            scalar_std=scalar_std * shrink,
            noise_to_scalar=ratio,
            slow_down=1 + ratio**2,
            learning_rate_factor=1 / (shrink * (1 + ratio**2)),
            epsilon_after={n: epsilon_spent({noisy: times * n}, self.delta) for n in after},
        )


@dataclass(frozen=True)
class PrivacyCost:
    """The cost of a plan.

    Attributes:
        noise_multiplier: standard deviation of the noise of a sum, over the clip norm.
        rate: probability that an utterance is in a step's sample, or 1.
        usual_norm: expected norm of the vectors that are clipped.
        noise_std, scalar_std: standard deviations of the noise and of the rest of an applied scalar, after clipping.
        noise_to_scalar: their ratio.
        slow_down: steps for the same progress over steps without privacy.
        learning_rate_factor: factor of the best learning rate.
        epsilon_after: ε by the number of rounds.
    """

    noise_multiplier: float
    rate: float
    clip_norm: float
    usual_norm: float
    noise_std: float
    scalar_std: float
    noise_to_scalar: float
    slow_down: float
    learning_rate_factor: float
    epsilon_after: dict[int, float]
