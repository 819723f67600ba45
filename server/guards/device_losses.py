"""Losses of devices' own held-out speech at two states, compared: how much they rose, and beyond what noise.

The comparison is paired by device and of the devices that answered at both states. With w_i device i's share of the
utterances, and d_i the difference of its mean losses, the rise is m = Σ w_i d_i. Its noise is that of choosing devices:
SE² = N/(N − 1) · Σ w_i² (d_i − m)², the linearised standard error of a ratio (Cochran, Sampling Techniques, 1977,
chapter 6), which for equal shares is sd(d)/√N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

import numpy as np

LEAST_DEVICES = 2  # of one alone there is no noise between devices
_NOISE = 2.0  # standard errors by which a rise is not taken for the choice of devices
_MOST = 2  # median numbers of utterances that a device counts with: how many it has, it says itself


@dataclass(frozen=True)
class DeviceLosses:
    """What devices say of their held-out speech at one state.

    Attributes:
        sums: client id → sum of the losses (nats a token or a character) of how many utterances, at least one.
        broken: client ids whose sum is no finite number.
        refusals: why other devices' answers do not count.
        down, up: bytes of payload that asking took.
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
    """How the loss changed from one state to another, on the devices that were asked at both.

    Attributes:
        mean: weighted mean of the differences of the devices whose loss is finite; NaN where there is none.
        error: its standard error; infinite of fewer than two devices.
        middle: the median device's difference, a loss that is not finite being higher than any other.
        devices: how many, and how many of them `broken`.
    """

    mean: float
    error: float
    middle: float
    devices: int
    broken: int

    @property
    def broke(self) -> bool:
        """Whether most devices' loss is not finite any more."""
        return 2 * self.broken > self.devices

    @property
    def higher(self) -> bool:
        """Whether the loss rose, by the mean and for the median device: no device alone can say so."""
        return self.broke or (self.mean > 0 and self.middle > 0)

    @property
    def lower(self) -> bool:
        """Whether it fell, by the mean and for the median device."""
        return not self.broke and self.mean < 0 and self.middle < 0

    @property
    def beyond_noise(self) -> bool:
        """Whether it rose by more than two standard errors."""
        return self.broke or (self.higher and self.mean > _NOISE * self.error)


def compare(found: DeviceLosses, best: DeviceLosses) -> Rise | None:
    """How the loss rose from `best` to `found`; None where fewer than half of the devices of `best` can tell, or one.

    A device that answers for another number of utterances than before has other speech, and counts as one that did not
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
    """Shares of the utterances, (N,), a device with very many counting as one with twice the median's."""
    capped = np.minimum(counts, _MOST * np.median(counts))
    shares: np.ndarray[tuple[int], np.dtype[np.float64]] = capped / capped.sum()
    return shares
