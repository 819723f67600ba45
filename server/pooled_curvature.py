"""Numbers of several devices and rounds on the curvature of the loss, as one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import fmean, stdev

from server.run_log import read_rows
from zo_common.errors import ConfigError
from zo_common.estimator.curvature import RelativeCurvature
from zo_common.secure_terms import MOST_DEVICES

FEWEST_TRUSTED = 2
MOST_INFLUENCE = 2.0
_MOST = 1e200  # of a number, far beyond what float32 scalars can give


@dataclass(frozen=True)
class Pooled:
    """Means over devices or rounds.

    Attributes:
        per_direction, along_signal, along_noise, noise_share: as in `RelativeCurvature`.
        along_error: standard error of `along_signal`; of one device in one round nothing is known of it, and it counts
            as large as the number itself.
    """

    per_direction: float
    along_signal: float
    along_noise: float
    noise_share: float
    along_error: float

    @property
    def cautious(self) -> RelativeCurvature:
        """With curvature along the gradient one standard error larger: too short a step costs less than too long."""
        along = self.along_signal + self.along_error
        return RelativeCurvature(self.per_direction, along, self.along_noise, self.noise_share)


@dataclass(frozen=True)
class StepRow:
    """A line of `<output>/steps.jsonl`.

    Attributes:
        learning_rate: the one used, float32.
        per_direction, along_signal, along_noise, noise_share, along_error: the round's `Pooled`.
        devices: valid replies.
    """

    server_round: int
    learning_rate: float
    per_direction: float
    along_signal: float
    along_noise: float
    noise_share: float
    along_error: float
    devices: int

    @property
    def pooled(self) -> Pooled:
        """The round's numbers."""
        return Pooled(self.per_direction, self.along_signal, self.along_noise, self.noise_share, self.along_error)


def pooled(found: Sequence[RelativeCurvature]) -> Pooled:
    """Means over devices, of which there is at least one; what is relative to m is weighted by it.

    The mean of quotients would be biased: m, of a device's few scalars, is half or twice its expectation.
    """
    total = math.fsum(each.square for each in found)
    weights = [each.square / total * len(found) for each in found]
    signal = [w * each.along_signal for w, each in zip(weights, found, strict=True)]
    error = stdev(signal) / math.sqrt(len(found)) if len(found) > 1 else abs(signal[0])
    return Pooled(
        fmean(each.per_direction for each in found),
        fmean(signal),
        fmean(w * each.along_noise for w, each in zip(weights, found, strict=True)),
        fmean(w * each.noise_share for w, each in zip(weights, found, strict=True)),
        error,
    )


def averaged(rounds: Sequence[Pooled]) -> Pooled:
    """Means over rounds; the error is that of the rounds' own errors, or by how much the rounds differ if that is less.

    Where there is one device, its rounds are all that tells the error.
    """
    t, signal, noise, share, _ = (fmean(column) for column in zip(*map(astuple, rounds), strict=True))
    count = len(rounds)
    error = math.sqrt(math.fsum(each.along_error**2 for each in rounds)) / count
    if count > 2:
        error = min(error, stdev([each.along_signal for each in rounds]) / math.sqrt(count))
    return Pooled(t, signal, noise, share, error)


def trusted_by(
    found: Sequence[RelativeCurvature], rate_of: Callable[[Sequence[RelativeCurvature]], float]
) -> list[RelativeCurvature]:
    """The devices without any whose numbers alone move the step by more than a factor of `MOST_INFLUENCE`.

    The one that moves it most is left out until none does, or two are left: then no device, whatever it sends, has
    moved the step farther than that. Of two devices nobody can tell which one lies.
    """
    kept = list(found)
    while len(kept) > FEWEST_TRUSTED:
        rate = rate_of(kept)
        influence = [abs(math.log(rate / rate_of([*kept[:i], *kept[i + 1 :]]))) for i in range(len(kept))]
        worst = max(range(len(kept)), key=lambda i: influence[i])
        if influence[worst] <= math.log(MOST_INFLUENCE):
            break
        del kept[worst]
    return kept


def encode_rows(rows: Sequence[StepRow]) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(asdict(row)) + "\n" for row in rows).encode()


def rows_of(path: Path, last_round: int) -> list[StepRow]:
    """The lines of rounds that are in the ledger: a crash may have come between a line and its round's record.

    Raises:
        ConfigError: a line is none of a measured step.
    """
    try:
        rows = [StepRow(**row) for row in read_rows(path)]
        if not all(
            type(row.server_round) is type(row.devices) is int
            and 0 < row.devices <= MOST_DEVICES
            and row.learning_rate > 0
            and row.per_direction > 0
            and 0 <= row.noise_share < 1
            and row.along_error >= 0
            and all(abs(number) < _MOST for number in astuple(row))
            for row in rows
        ):
            raise ValueError("numbers out of range")
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"{path} holds a line that is not a measured step: move the file away, and the run goes on without the "
            "rates of earlier rounds"
        ) from None
    return [row for row in rows if row.server_round <= last_round]
