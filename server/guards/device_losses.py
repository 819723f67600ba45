"""Comparison of the losses of devices' held-out speech at two states: the rise and its standard error.

The comparison is paired, over the devices that answered at both states. With w_i device i's share of the utterances,
and d_i the difference of its mean losses, the rise is m = Σ w_i d_i. The noise is that of sampling devices:
SE² = N/(N − 1) · Σ w_i² (d_i − m)², the linearised standard error of a ratio (Cochran, Sampling Techniques, 1977,
chapter 6). For equal shares this is sd(d)/√N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

import numpy as np

LEAST_DEVICES = 2  # the noise between devices cannot be estimated from one
_NOISE = 2.0  # standard errors above which a rise is significant
_MOST = 2  # a device's weight is at most this many median ones: it reports its own number of utterances


@dataclass(frozen=True)
class DeviceLosses:
    """Devices' losses of their held-out speech at one state.

    Attributes:
        sums: client id → sum of the losses (nats per token or character), number of utterances (at least one).
        broken: client ids whose sum is not finite.
        refusals: reasons why other devices' answers were refused.
        down, up: payload bytes of the exchange.
    """

    sums: dict[int, tuple[float, int]]
    broken: frozenset[int] = frozenset()
    refusals: tuple[str, ...] = ()
    down: int = 0
    up: int = 0

    @property
    def loss(self) -> float:
        """The weighted mean loss, of at least one device."""
        shares = _shares(np.array([count for _, count in self.sums.values()], np.float64))
        return float(shares @ [total / count for total, count in self.sums.values()])


@dataclass(frozen=True)
class Rise:
    """Change of the loss from one state to another, over the devices that answered at both.

    Attributes:
        mean: weighted mean of the differences of the devices whose loss is finite; NaN if there is none.
        error: its standard error; infinite for fewer than two devices.
        middle: the median device's difference; a loss that is not finite counts as the highest.
        devices: number of devices, of which `broken` have a loss that is not finite.
    """

    mean: float
    error: float
    middle: float
    devices: int
    broken: int

    @property
    def broke(self) -> bool:
        """Whether most devices' loss is no longer finite."""
        return 2 * self.broken > self.devices

    @property
    def higher(self) -> bool:
        """Whether the loss rose, in the mean and for the median device: no single device can decide this."""
        return self.broke or (self.mean > 0 and self.middle > 0)

    @property
    def lower(self) -> bool:
        """Whether the loss fell, in the mean and for the median device."""
        return not self.broke and self.mean < 0 and self.middle < 0

    @property
    def beyond_noise(self) -> bool:
        """Whether the loss rose by more than two standard errors."""
        return self.broke or (self.higher and self.mean > _NOISE * self.error)


def compare(found: DeviceLosses, best: DeviceLosses) -> Rise | None:
    """Return the rise of the loss from `best` to `found`; None if only one device, or less than half of them, answered.

    A device that reports another number of utterances than before has other speech, and counts as one that did not
    answer.
    """
    same = sorted(c for c, (_, count) in found.sums.items() if c in best.sums and best.sums[c][1] == count)
    broken = len(found.broken & best.sums.keys())
    devices = len(same) + broken
    if devices < LEAST_DEVICES or 2 * devices < len(best.sums):
        return None
    differences = np.array([(found.sums[c][0] - best.sums[c][0]) / best.sums[c][1] for c in same])
    middle = float(median([*differences.tolist(), *[math.inf] * broken]))
    if not same:
        return Rise(math.nan, math.inf, middle, devices, broken)
    shares = _shares(np.array([best.sums[c][1] for c in same], np.float64))
    mean = float(shares @ differences)
    count = len(same)
    spread = float(shares**2 @ (differences - mean) ** 2)
    error = math.sqrt(spread * count / (count - 1)) if count > 1 else math.inf
    return Rise(mean, error, middle, devices, broken)


def _shares(counts: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return shares of the utterances, (N,); a device's count is capped at twice the median."""
    capped = np.minimum(counts, _MOST * np.median(counts))
    shares: np.ndarray[tuple[int], np.dtype[np.float64]] = capped / capped.sum()
    return shares
