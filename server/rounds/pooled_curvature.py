"""Pooling of the measured curvature of the loss over devices and rounds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median
from typing import Annotated

import numpy as np
from pydantic import Field

from server.run.log import read_rows
from zo_common.checked import STRICT, Count, read_values
from zo_common.errors import ConfigError
from zo_common.estimator.curvature import MOST_NOISE_SHARE, MOST_OF_ONE, RelativeCurvature
from zo_common.secure_sum.terms import MOST_DEVICES

FEWEST_ROUNDS, MOST_ROUNDS = 5, 20
DIRECTIONS = 320
"""Directions of all devices over which averages are taken: five rounds of eight devices along eight each."""
_LONG = 4  # times as many rounds for numbers that change slowly
LEAST_SIGNAL = 0.002
"""Share of the signal below which no step is longer: with none at all, weights hardly move."""
ERRORS_OF_CAUTION = 1.0
"""Standard errors by which the signal counts as smaller than it was measured. A step that is c times the best one gains
c (2 − c) of what the best one gains: half of it is three quarters of the gain, and four times of it loses eight."""
EXPLORED_SIGNAL, ENOUGH_CHECKS = 0.02, 2
"""The least signal before so many checks of held-out losses: rounds of almost no step would tell nothing."""
_LEAST_ERROR = 1e-3
_FIRST_SIGNAL = 0.1  # at most, while one device's rounds are too few to show the error
_OF_MEDIAN_DEVIATION = 1.4826  # standard deviation over median deviation, of a normal distribution
_MOST = 1e200  # of a number, far beyond the result of float32 scalars
_Real = Annotated[float, Field(gt=-_MOST, lt=_MOST)]
_Above0 = Annotated[float, Field(gt=0, lt=_MOST)]


@dataclass(frozen=True)
class Pooled:
    """Means over devices or rounds.

    Attributes:
        per_direction, along_signal, along_noise, noise_share: as in `RelativeCurvature`.
        along_error: standard error of `along_signal`; unknown for one device in one round, where it is set to the
            number itself.
        share_error: standard error of `noise_share`, by the median deviation of devices, so that no device can raise
            it much; 0 for one device in one round, where it is unknown.
        square: m of a single device, by which its rounds are weighted; 0 for several, whose rounds have equal weights.
        mean_square: m, the mean over devices; 0 where it is unknown.
        kept: the part of m that is not noise added for privacy.
    """

    per_direction: float
    along_signal: float
    along_noise: float
    noise_share: float
    along_error: float
    share_error: float = 0.0
    square: float = 0.0
    mean_square: float = 0.0
    kept: float = 1.0

    @property
    def cautious(self) -> RelativeCurvature:
        """The same with one standard error more curvature along the gradient: short steps cost less than long ones.

        The share of noise is at most `MOST_NOISE_SHARE`: a round alone cannot tell less signal from none.
        """
        along, share = self.along_signal + self.along_error, min(self.noise_share, MOST_NOISE_SHARE)
        return RelativeCurvature(self.per_direction, along, self.along_noise, share)


@dataclass(frozen=True)
class StepRow:
    """A line of `<output>/steps.jsonl`.

    Attributes:
        learning_rate: the one used, float32.
        per_direction, along_signal, along_noise, noise_share, along_error, share_error, square, mean_square, kept:
            the round's `Pooled`.
        devices: valid replies.
        room: the rate at which the round's mean update would be as large as the lattice allows.
    """

    __pydantic_config__ = STRICT
    server_round: Count
    learning_rate: _Above0
    per_direction: _Above0
    along_signal: _Real
    along_noise: _Real
    noise_share: Annotated[float, Field(ge=0, le=MOST_OF_ONE)]
    along_error: Annotated[float, Field(ge=0, lt=_MOST)]
    devices: Annotated[int, Field(gt=0, le=MOST_DEVICES)]
    room: _Above0
    share_error: Annotated[float, Field(ge=0, lt=_MOST)] = 0.0
    square: Annotated[float, Field(ge=0, lt=_MOST)] = 0.0
    mean_square: Annotated[float, Field(ge=0, lt=_MOST)] = 0.0
    kept: Annotated[float, Field(ge=0, le=1)] = 1.0

    @property
    def pooled(self) -> Pooled:
        """The round's pooled numbers."""
        return Pooled(*(getattr(self, each.name) for each in fields(Pooled)))


def pooled(found: Sequence[RelativeCurvature]) -> Pooled:
    """Return means over at least one device; numbers relative to m are weighted by it.

    The mean of quotients would be biased: m of a device's few scalars is half or twice its expectation. For a single
    device its rounds are weighted instead (`averaged`). Shares of noise above 1 are kept: where there is little signal,
    half of all devices measure one, and a mean without them would see signal in pure noise.
    """
    total = math.fsum(each.square for each in found)
    weights = [each.square / total * len(found) if total else 1.0 for each in found]
    signal = [w * each.along_signal for w, each in zip(weights, found, strict=True)]
    alone = len(found) == 1
    error = abs(signal[0]) if alone else float(np.std(signal, ddof=1)) / math.sqrt(len(found))
    share = fmean(w * each.noise_share for w, each in zip(weights, found, strict=True))
    apart = [w * (each.noise_share - share) for w, each in zip(weights, found, strict=True)]
    middle = median(apart)
    spread = _OF_MEDIAN_DEVIATION * median(abs(each - middle) for each in apart)
    return Pooled(
        fmean(each.per_direction for each in found),
        fmean(signal),
        fmean(w * each.along_noise for w, each in zip(weights, found, strict=True)),
        share,
        error,
        0.0 if alone else spread / math.sqrt(len(found)),
        total if alone else 0.0,
        total / len(found),
    )


def history(directions: int) -> int:
    """Return the number of rounds to average over, for `directions` of all devices per round.

    With fewer directions a round's numbers are less certain; and on a quadratic, a step of twice the best size gains
    nothing.
    """
    return min(max(-(-DIRECTIONS // directions), FEWEST_ROUNDS), MOST_ROUNDS)


@dataclass(frozen=True)
class Estimate:
    """A share of signal, 1 − v/m, and its standard error."""

    signal: float
    error: float


def long_window(most: int) -> int:
    """Return over how many rounds slowly changing numbers are averaged; `most` as in `averaged`."""
    return _LONG * most


def averaged(
    rounds: Sequence[Pooled],
    most: int = FEWEST_ROUNDS,
    judged: Sequence[Estimate] | None = None,
    explored: float = EXPLORED_SIGNAL,
) -> RelativeCurvature:
    """Return the numbers that a round's step follows from, of all rounds so far, of which it is the last.

    Args:
        most: number of rounds to average over, from `history`.
        judged: what held-out losses tell of the signal (`server.rounds.held_out_signal`); None where none are known.
        explored: the least share of signal before `ENOUGH_CHECKS` of them, for several devices.

    If all rounds are of one device, numbers relative to m are weighted by it, as devices are in `pooled`.

    - The share of noise is a mean over the last 4 × `most` rounds, and `ERRORS_OF_CAUTION` standard errors more: as a
      model comes to know the speech, the signal vanishes in the noise of utterances, and what is left of it must not be
      overestimated. Held-out losses tell it more precisely where it is small: the mean of all estimates is weighted by
      their inverse variances.
    - Curvature along the gradient is the least certain number of a round, and only noise where the gradient is small;
      but its ratio to the curvature of one direction times the signal changes slowly. That ratio is a quotient of sums
      over the same rounds, to which rounds of strong gradients contribute most, and one standard error more.
    - The rest are means over the last `most` rounds.

    Standard errors are those of the rounds' own errors, or their spread if that is less. With one device, only the
    spread of its rounds shows the error, and the signal counts as a tenth at most before the fifth.
    """
    long = rounds[-_LONG * most :]
    alone = all(each.square for each in long)
    weights = [each.square if alone else 1.0 for each in long]
    recent = list(zip(weights, long, strict=True))[-most:]
    noise = math.fsum(w * each.along_noise for w, each in recent) / math.fsum(w for w, _ in recent)
    t = fmean(each.per_direction for _, each in recent)
    of_shares = _signal_of_shares(weights, long, alone=alone)
    early = len(rounds) < (FEWEST_ROUNDS if alone else 3)
    signal = _beyond_doubt(of_shares, alone=alone, early=early)
    quotient, error = _quotient(weights, long)
    along = (quotient + error) * t * signal
    if judged is not None:
        signal = _beyond_doubt(of_shares, alone=alone, early=early, judged=judged, explored=explored)
        along = max(along, (quotient + error) * t * signal)  # the gradient of what is learned is no smaller
    return RelativeCurvature(t, along, noise, 1 - signal)


def _signal_of_shares(weights: Sequence[float], rounds: Sequence[Pooled], *, alone: bool) -> Estimate:
    """Return the share of signal that rounds measured."""
    total = math.fsum(weights)
    share = math.fsum(w * each.noise_share for w, each in zip(weights, rounds, strict=True)) / total
    error = _spread([w * (each.noise_share - share) for w, each in zip(weights, rounds, strict=True)])
    if not alone:
        of_rounds = math.sqrt(math.fsum((w * each.share_error) ** 2 for w, each in zip(weights, rounds, strict=True)))
        error = min(error, of_rounds)
    return Estimate(1 - share, error / total)


def _beyond_doubt(
    of_shares: Estimate,
    *,
    alone: bool,
    early: bool,
    judged: Sequence[Estimate] | None = None,
    explored: float = EXPLORED_SIGNAL,
) -> float:
    """Return the share of signal that is certain; of the first few rounds, what they measured."""
    best = _combined([of_shares, *judged]) if judged and not early else of_shares
    if early:
        least = min(best.signal, _FIRST_SIGNAL) if alone else best.signal
    else:
        least = best.signal - ERRORS_OF_CAUTION * best.error
    floor = min(LEAST_SIGNAL, best.signal) if best.signal > 0 else LEAST_SIGNAL
    if judged is not None and len(judged) < ENOUGH_CHECKS and not alone:
        floor = explored
    return min(max(least, floor), 1.0)


def _combined(found: Sequence[Estimate]) -> Estimate:
    """Return the mean of estimates, weighted by their inverse variances."""
    weights = [1 / max(each.error, _LEAST_ERROR) ** 2 for each in found]
    total = math.fsum(weights)
    mean = math.fsum(w * each.signal for w, each in zip(weights, found, strict=True)) / total
    return Estimate(mean, 1 / math.sqrt(total))


def _quotient(weights: Sequence[float], rounds: Sequence[Pooled]) -> tuple[float, float]:
    """Return curvature along the gradient over that of one direction times the signal, and its standard error."""
    expected = [w * (1 - each.noise_share) * each.per_direction for w, each in zip(weights, rounds, strict=True)]
    along = [w * each.along_signal for w, each in zip(weights, rounds, strict=True)]
    least = math.fsum(w * each.per_direction for w, each in zip(weights, rounds, strict=True)) * (1 - MOST_NOISE_SHARE)
    total = max(math.fsum(expected), least)
    quotient = math.fsum(along) / total
    error = math.sqrt(math.fsum((w * each.along_error) ** 2 for w, each in zip(weights, rounds, strict=True)))
    if len(rounds) > 2:
        error = min(error, _spread([found - quotient * scale for found, scale in zip(along, expected, strict=True)]))
    return quotient, error / total


def _spread(apart: Sequence[float]) -> float:
    """Return the standard error of a sum of at least two numbers from their differences to what is expected of each."""
    return math.sqrt(math.fsum(each**2 for each in apart) * len(apart) / max(1, len(apart) - 1))


def encode_rows(rows: Sequence[StepRow]) -> bytes:
    """Encode rows as JSON lines."""
    return "".join(json.dumps(asdict(row)) + "\n" for row in rows).encode()


def rows_of(path: Path, last_round: int) -> list[StepRow]:
    """Read the rows of rounds that are in the ledger: a crash may lie between a row and its round's record.

    Raises:
        ConfigError: a line is not a measured step.
    """
    try:
        rows = [read_values(StepRow, row) for row in read_rows(path)]
    except ValueError as error:
        raise ConfigError(
            f"{path} holds a line that is not a measured step ({error}): move the file away, and the run goes on "
            "without the rates of earlier rounds"
        ) from None
    return [row for row in rows if row.server_round <= last_round]
