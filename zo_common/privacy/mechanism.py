"""Differential privacy of the devices' scalars: the guarantees, and the clipping and noise for them.

Two guarantees, under "zero-out" neighbours (Kairouz et al., "Practical and Private (Deep) Learning Without Sampling or
Shuffling", 2021): one utterance, or one device, contributes zeros instead. How many there are is public.

- example-level: one utterance of a device. In every step the device draws a Poisson sample of its utterances, clips
  each utterance's q projected gradients as one vector, adds them up and adds noise (DP-SGD, Abadi et al. 2016; on
  scalars DP-ZO, Tang et al. 2024, and DPZero, Zhang et al. 2024). It holds against all who see replies, including the
  server.
- device-level: all data of a device. Its whole reply of K·q scalars is clipped as one vector (DP-FedAvg, McMahan et
  al. 2018). The server adds noise to the sum, or the devices do in shares (distributed discrete Gaussian, Kairouz, Liu
  and Steinke 2021), which holds against the server only if it sees only the sum: with secure aggregation, where the
    shares are added under the masks.

Noise is a discrete Gaussian on a grid of integers (`discrete_gaussian`, `clipping`): no bit of a float reveals it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from zo_common.errors import ConfigError
from zo_common.privacy.clipping import Grid
from zo_common.privacy.discrete_gaussian import discrete_gaussians

Privacy = Literal["none", "example", "device"]
NoiseBy = Literal["devices", "server"]
LEVELS: tuple[str, ...] = ("example", "device")
LEAST_NOISE = 1e-6  # of a share of the noise, too; its ε is still finite in a float
MOST_NOISE = 1e6
LEAST_SHARE = 8
"""Grid units. By τ = 10·Σ_{k<n} exp(−2π²σ²k/(k+1)) ≤ 10·n·exp(−π²σ²) the sum of n devices' shares differs from one
discrete Gaussian (Kairouz, Liu and Steinke 2021); from σ = 8 on that is below n · 10⁻²⁷³."""


@dataclass(frozen=True)
class PrivacySettings:
    """A run's privacy guarantee and its limits.

    Attributes:
        level: "example" or "device".
        target_epsilon, target_delta: limit; no round starts after which a device would have spent more.
        clip_norm: L2 bound of an utterance's q scalars, or of a device's K·q.
        noise_multiplier: standard deviation of the noise of a sum over the clip norm; 0: the minimum for the target.
        noise_by: "devices" or "server": who adds the device level's noise.

    Raises:
        ConfigError: a value that gives no guarantee.
    """

    level: Privacy
    target_epsilon: float
    target_delta: float
    clip_norm: float
    noise_multiplier: float = 0.0
    noise_by: NoiseBy = "devices"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ConfigError(f"privacy is {self.level!r}, expected one of {', '.join(LEVELS)}")
        if self.noise_by not in get_args(NoiseBy):
            raise ConfigError(f"noise-by is {self.noise_by!r}, expected one of {', '.join(get_args(NoiseBy))}")
        if not (math.isfinite(self.target_epsilon) and self.target_epsilon > 0):
            raise ConfigError(f"target-epsilon is {self.target_epsilon}, expected a positive number, such as 8")
        if not 0 < self.target_delta < 1:
            raise ConfigError(f"target-delta is {self.target_delta}, expected a small probability, such as 1e-6")
        Grid.of(self.clip_norm)
        check_noise_multiplier(self.noise_multiplier, or_none=True)

    def check_population(self, count: int) -> None:
        """Refuse a δ that would allow one of `count` utterances or devices to be published.

        Raises:
            ConfigError: δ ≥ 1/count.
        """
        what = "utterances" if self.level == "example" else "devices"
        if self.target_delta * count >= 1:
            raise ConfigError(
                f"target-delta is {self.target_delta:g} with {count} {what}, expected less than 1/{count}: "
                "at that, publishing one of them outright would count as private"
            )


def check_run(settings: PrivacySettings, directions: str, weighting: str, evaluate_on: str) -> None:
    """Refuse a run whose other settings would break its guarantee.

    Raises:
        ConfigError: two settings do not fit; the message names both.
    """
    if evaluate_on == "clients":
        raise ConfigError(
            f"privacy={settings.level} with evaluate-on=clients: error counts of the devices' recordings carry no "
            "noise; evaluate on the server"
        )
    if settings.level == "device" and directions != "shared":
        raise ConfigError(
            f"privacy=device with directions={directions}: the ledger would hold every device's own scalars, "
            "and noise is for their sum; set directions=shared"
        )
    if settings.level == "device" and weighting != "uniform":
        raise ConfigError(
            f"privacy=device with weighting={weighting}: a device with more utterances would move the sum by more than "
            "clip-norm; set weighting=uniform"
        )


def check_noise_multiplier(value: float, *, or_none: bool = False) -> None:
    """Refuse a noise multiplier out of range.

    Raises:
        ConfigError: not a positive number (or 0 with `or_none`).
    """
    if not (math.isfinite(value) and (LEAST_NOISE <= value <= MOST_NOISE or (or_none and value == 0))):
        hint = "0 for what target-epsilon asks" if or_none else "without noise there is no guarantee"
        raise ConfigError(f"noise-multiplier is {value}, expected {LEAST_NOISE:g} … {MOST_NOISE:g} ({hint})")


@dataclass(frozen=True)
class Mechanism:
    """The privacy mechanism that a plan asks of one device.

    Attributes:
        level: "example" or "device".
        clip_norm: L2 bound of the vectors that are clipped.
        noise_multiplier: of the noise that this device adds, over the clip norm; 0 only if the server adds it.
        num_examples: number of utterances that the accountant assumes: with fewer, each would be drawn more often than
            is accounted for.
        masked: the noise is that of a secure sum: each device adds its share in integer units before masking, and
            `release_reply` only clips. For the device level.

    Raises:
        ConfigError: a value that gives no guarantee.
    """

    level: Privacy
    clip_norm: float
    noise_multiplier: float
    num_examples: int
    masked: bool = False

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ConfigError(f"privacy is {self.level!r}, expected one of {', '.join(LEVELS)}")
        Grid.of(self.clip_norm)
        check_noise_multiplier(self.noise_multiplier, or_none=self.level == "device" and not self.masked)
        if self.masked and self.level != "device":
            raise ConfigError(
                f"noise under a mask is for privacy=device, got {self.level}: example-level noise is each step's"
            )
        if self.num_examples < 1:
            raise ConfigError("a device without utterances has nothing to protect and nothing to train on")

    @property
    def grid(self) -> Grid:
        """The grid of its scalars and its noise."""
        return Grid.of(self.clip_norm)

    @property
    def sigma_units(self) -> int:
        """Standard deviation of the noise in grid units, rounded up."""
        return math.ceil(self.noise_multiplier * self.grid.bound)

    def share_units(self, devices: int) -> int:
        """Return σ in grid units of each device's noise in a masked sum, so that any `devices` shares are enough.

        A sum of discrete Gaussians is not one, but nearly one from `LEAST_SHARE` on (see there).
        """
        # the next integer, never the same: no rounding of a float reduces the noise
        return max(LEAST_SHARE, math.floor(share_of_noise(self.noise_multiplier, devices) * self.grid.bound) + 1)

    def release_step(self, per_example: NDArray[np.float64], expected: int) -> NDArray[np.float32]:
        """Return one step's scalars, clipped and noised, so that anyone may see them.

        The divisor is the *expected* batch size, not the one drawn: then one utterance changes the result by at most
        clip_norm / expected, while the drawn size as divisor would let it change all the others' parts, too, and would
        itself reveal the batch's size.

        Args:
            per_example: (q, B) projected gradients of a Poisson sample, B ≥ 0.
            expected: expected batch size.

        Returns:
            float32 (q,).
        """
        return self._noised(self.grid.clip(per_example).sum(axis=1), self.sigma_units, expected)

    def release_reply(self, grads: NDArray[np.floating]) -> NDArray[np.float32]:
        """Clip a device's (K, q) scalars as one vector, and add this device's part of the noise unless it is masked.

        Scalars that are not finite count as zeros: a failure on a device's data must not be visible.
        """
        units = self.grid.clip(grads.reshape(-1, 1))[:, 0]
        return self._noised(units, 0 if self.masked else self.sigma_units, 1).reshape(grads.shape)

    def _noised(self, units: NDArray[np.int64], sigma: int, divisor: int) -> NDArray[np.float32]:
        noise = discrete_gaussians(len(units), sigma)
        # sums in integers; float64 and float32 only round private values
        values = [self.grid.value(int(u) + z) / divisor for u, z in zip(units, noise, strict=True)]
        return np.array(values, np.float64).astype(np.float32)


def noised_mean(replies: list[NDArray[np.float32]], clip_norm: float, noise_multiplier: float) -> NDArray[np.float32]:
    """Return the mean of m devices' (K, q) scalars, each clipped to `clip_norm`, with the noise of the sum added.

    Raises:
        ConfigError: the noise multiplier is out of range.
    """
    check_noise_multiplier(noise_multiplier)
    grid = Grid.of(clip_norm)
    total = grid.clip(np.stack([r.reshape(-1) for r in replies], axis=1)).sum(axis=1)
    noise = discrete_gaussians(len(total), math.ceil(noise_multiplier * grid.bound))
    values = [grid.value(int(u) + z) / len(replies) for u, z in zip(total, noise, strict=True)]
    return np.array(values, np.float64).astype(np.float32).reshape(replies[0].shape)


def share_of_noise(noise_multiplier: float, devices: int) -> float:
    """Return the noise multiplier of each of at least `devices` devices, so that their sum has `noise_multiplier`.

    A sum of discrete Gaussians is not one, but the difference, τ of Kairouz, Liu and Steinke (2021), falls with
    exp(−π²σ²): at a share of σ = 2¹⁰ units it is below exp(−10⁶).
    """
    return noise_multiplier / math.sqrt(devices)
