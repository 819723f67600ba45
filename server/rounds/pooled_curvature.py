"""Pooling of the measured curvature of the loss over devices and rounds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
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
FEWEST_TRUSTED = 2
MOST_INFLUENCE = 2.0
_SHARES = ("along_signal", "along_noise", "noise_share")
_MOST_WEIGHT = 10.0  # of a device's mean square, over the median's
_MOST_APART = 100.0  # ratio of devices' curvatures of one direction to the median
_LEAST_POWER, _HALVINGS = -512.0, 24  # of two: the minimum share of a device's own numbers
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
        square: m of a single device, by which its rounds are weighted; 0 for several, whose rounds have equal weights.
    """

    per_direction: float
    along_signal: float
    along_noise: float
    noise_share: float
    along_error: float
    square: float = 0.0

    @property
    def cautious(self) -> RelativeCurvature:
        """The same with one standard error more curvature along the gradient: short steps cost less than long ones."""
        along = self.along_signal + self.along_error
        return RelativeCurvature(self.per_direction, along, self.along_noise, self.noise_share)


@dataclass(frozen=True)
class StepRow:
    """A line of `<output>/steps.jsonl`.

    Attributes:
        learning_rate: the one used, float32.
        per_direction, along_signal, along_noise, noise_share, along_error, square: the round's `Pooled`.
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
    square: Annotated[float, Field(ge=0, lt=_MOST)] = 0.0

    @property
    def pooled(self) -> Pooled:
        """The round's pooled numbers."""
        return Pooled(*(getattr(self, each.name) for each in fields(Pooled)))


def pooled(found: Sequence[RelativeCurvature]) -> Pooled:
    """Return means over at least one device; numbers relative to m are weighted by it.

    The mean of quotients would be biased: m of a device's few scalars is half or twice its expectation. For a single
    device its rounds are weighted instead (`averaged`), with their shares of noise unchanged. With several devices,
    shares are limited to `MOST_NOISE_SHARE` each and rounds have equal weights, which was measured to be as good or
    better with 64 directions a round; with eight of one device, the mean of limited shares would be far too small, and
    training stalls.
    """
    total = math.fsum(each.square for each in found)
    weights = [each.square / total * len(found) if total else 1.0 for each in found]
    signal = [w * each.along_signal for w, each in zip(weights, found, strict=True)]
    alone = len(found) == 1
    error = abs(signal[0]) if alone else float(np.std(signal, ddof=1)) / math.sqrt(len(found))
    shares = (each.noise_share if alone else min(each.noise_share, MOST_NOISE_SHARE) for each in found)
    return Pooled(
        fmean(each.per_direction for each in found),
        fmean(signal),
        fmean(w * each.along_noise for w, each in zip(weights, found, strict=True)),
        fmean(w * share for w, share in zip(weights, shares, strict=True)),
        error,
        total if alone else 0.0,
    )


def history(directions: int) -> int:
    """Return the number of rounds to average over, for `directions` of all devices per round.

    With fewer directions a round's numbers are less certain; and on a quadratic, a step of twice the best size gains
    nothing.
    """
    return min(max(-(-DIRECTIONS // directions), FEWEST_ROUNDS), MOST_ROUNDS)


def averaged(rounds: Sequence[Pooled], most: int = FEWEST_ROUNDS) -> Pooled:
    """Return the numbers of a round from those of all rounds so far, of which it is the last.

    Args:
        most: number of rounds to average over, from `history`.

    If all rounds are of one device, numbers relative to m are weighted by it, as devices are in `pooled`.

    Curvature along the gradient is the least certain number of a round, and only noise where the gradient is small; but
    its ratio to the curvature of one direction times the signal changes slowly. That ratio is computed from the last
    4 × `most` rounds, as a quotient of sums, to which rounds of strong gradients contribute most. The rest are means
    over the last `most` rounds. The error is that of the rounds' own errors, or their spread around the quotient if
    that is less: with one device, only the spread of its rounds shows the error.
    """
    long = rounds[-_LONG * most :]
    alone = all(each.square for each in long)
    weights = [each.square if alone else 1.0 for each in long]
    recent = list(zip(weights, long, strict=True))[-most:]
    weight = math.fsum(w for w, _ in recent)
    noise = math.fsum(w * each.along_noise for w, each in recent) / weight
    share = math.fsum(w * each.noise_share for w, each in recent) / weight
    share = min(share, MOST_NOISE_SHARE) if alone else share
    expected = [w * (1 - each.noise_share) * each.per_direction for w, each in zip(weights, long, strict=True)]
    along = [w * each.along_signal for w, each in zip(weights, long, strict=True)]
    least = math.fsum(w * each.per_direction for w, each in zip(weights, long, strict=True)) * (1 - MOST_NOISE_SHARE)
    total = max(math.fsum(expected), least) if alone else math.fsum(expected)
    quotient = math.fsum(along) / total
    error = math.sqrt(math.fsum((w * each.along_error) ** 2 for w, each in zip(weights, long, strict=True))) / total
    if len(long) > 2:
        apart = [found - quotient * scale for found, scale in zip(along, expected, strict=True)]
        error = min(error, math.sqrt(math.fsum(e**2 for e in apart) * len(long) / (len(long) - 1)) / total)
    t = fmean(each.per_direction for _, each in recent)
    scale = (1 - share) * t
    return Pooled(t, quotient * scale, noise, share, error * scale)


def trusted(
    found: Sequence[RelativeCurvature], rate_of: Callable[[Sequence[RelativeCurvature]], float]
) -> tuple[list[RelativeCurvature], int]:
    """Limit each device's influence on the step to a factor of two; return the numbers, and how many were changed.

    The numbers of a device with more influence are moved towards the mean of the others' until it changes the step by
    that factor, beginning with the most influential. Of two devices it is unknown which one lies.
    """
    kept, changed = list(found), set[int]()
    if len(kept) > FEWEST_TRUSTED:
        usual, square = median(each.per_direction for each in found), median(each.square for each in found)
        kept = [_possible(each, usual, square) for each in found]
    while len(kept) > FEWEST_TRUSTED:
        others = {i: rate_of([*kept[:i], *kept[i + 1 :]]) for i in _outermost(kept) - changed}
        rate = rate_of(kept)
        influence = {i: abs(math.log(rate / other)) for i, other in others.items()}
        worst = max(influence, key=lambda i: influence[i], default=0)
        if not influence or influence[worst] <= math.log(MOST_INFLUENCE):
            break
        kept[worst] = _brought_near(kept, worst, rate_of, others[worst])
        changed.add(worst)
    return kept, len(changed)


def _outermost(found: Sequence[RelativeCurvature]) -> set[int]:
    """Return the devices with extreme values in any number: only these can have the most influence on means."""
    columns = [
        [each.per_direction for each in found],
        [each.square for each in found],
        *([each.square * getattr(each, name) for each in found] for name in _SHARES),
    ]
    orders = (np.argsort(np.array(column), kind="stable") for column in columns)
    return {int(i) for order in orders for i in (*order[:2], *order[-2:])}


def _possible(found: RelativeCurvature, usual: float, square: float) -> RelativeCurvature:
    """Limit numbers to those of a matrix of about that trace, whose curvature along any direction is at most it."""
    t = min(max(found.per_direction, usual / _MOST_APART), usual * _MOST_APART)
    signal, noise = (min(max(number, -t), t) for number in (found.along_signal, found.along_noise))
    return RelativeCurvature(t, signal, noise, found.noise_share, min(found.square, _MOST_WEIGHT * square))


def _brought_near(
    found: Sequence[RelativeCurvature],
    at: int,
    rate_of: Callable[[Sequence[RelativeCurvature]], float],
    without: float,
) -> RelativeCurvature:
    """Return numbers nearest to a device's own with which the rate is within `MOST_INFLUENCE` of that without it."""
    rest = [*found[:at], *found[at + 1 :]]
    mean, own = pooled(rest), found[at]
    square = fmean(each.square for each in rest)
    centre = RelativeCurvature(mean.per_direction, mean.along_signal, mean.along_noise, mean.noise_share, square)

    def blend(share: float) -> RelativeCurvature:
        pairs = zip(astuple(centre), astuple(own), strict=True)
        return RelativeCurvature(*(a + share * (b - a) for a, b in pairs))

    low, high = _LEAST_POWER, 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = abs(math.log(rate_of([*rest, blend(2.0**middle)]) / without)) <= math.log(MOST_INFLUENCE)
        low, high = (middle, high) if inside else (low, middle)
    return blend(2.0**low)


def without_extremes(
    found: Sequence[RelativeCurvature], count: int, rate_of: Callable[[Sequence[RelativeCurvature]], float]
) -> list[RelativeCurvature]:
    """Return all devices but the `count` whose own numbers give the shortest and the longest steps, equally weighted.

    For robust rules, which assume `count` devices that may collude.
    """
    ordered = sorted(found, key=lambda each: rate_of([each]))
    middle = ordered[count : len(ordered) - count] or ordered[len(ordered) // 2 :][:1]
    return [replace(each, square=1.0) for each in middle]


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
