"""The step size of a round: a number with its schedule, or measured by the devices.

For Q directions in a round, projected gradients ĝ_j with mean square m, of which v is noise of utterances, curvature t
of one direction and R = gᵀFg along the gradient (`estimator.curvature`), the step w ← w − α Σ_j ĝ_j z_j lowers a
quadratic model by α Q s − ½ α² Q (m t + (Q + 1) R) in expectation, with s = m − v, and so most for

    α = s / (m t + (Q + 1) R)

With leave-one-out scalars m is q/(q − 1) times what it would be: s = (m − v)(q − 1)/q, and for Q + 1 stands
Q + q/(q − 1). The noise of utterances is independent between devices: N of them have R = R_signal + R_noise / N and,
with shared directions, along which their mean is taken, m − v + v/N for m. As the learning rate is that of a mean over
the q directions of a local step, and of the devices, it is α Q / K for K local steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np

from server.guards.guard import Progress
from server.rounds.held_out_signal import Rounds, correction_of, judged_signals
from server.rounds.pooled_curvature import (
    EXPLORED_SIGNAL,
    Pooled,
    StepRow,
    averaged,
    encode_rows,
    history,
    long_window,
    pooled,
    rows_of,
)
from server.rounds.trusted_curvature import trusted, without_extremes
from server.run.range_guard import MAX_STEP_UNITS, finest_units
from zo_common.aggregation.mean import ClientScalars
from zo_common.aggregation.robust import faults
from zo_common.binary.durable import write_durably
from zo_common.config.run import RunConfig
from zo_common.estimator.curvature import RelativeCurvature
from zo_common.ledger.ledger import Ledger

logger = logging.getLogger(__name__)
LOG_NAME = "steps.jsonl"
MOST_CHANGE = 2.0
_RATES = 1e-30, 1e6


class Measured(Protocol):
    """A round's valid replies: `server.messaging.validation.RoundInbox`."""

    @property
    def accepted(self) -> int: ...

    def curvatures(self) -> list[RelativeCurvature]: ...

    def scalars(self) -> list[ClientScalars]: ...


class StepSize(Protocol):
    """The step sizes of a run."""

    def take_up(self, ledger: Ledger) -> None:
        """Continue after the last round of a run's ledger; the ledger of a new run is empty."""

    def planned(self, trained: int) -> float:
        """Return the learning rate of a device's own local steps, float32, for its plan.

        Args:
            trained: rounds of training up to this one; a ledger may also have rounds of other kinds.
        """

    def used(self, server_round: int, replies: Measured, trained: int) -> float:
        """Return the learning rate of the round, float32, after its replies; 0 without replies."""

    def scalars(self, server_round: int) -> dict[str, float]:
        """Return the numbers that a round's learning rate follows from, by name; empty where none were measured."""


class FixedStep:
    """A number and its schedule."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def take_up(self, ledger: Ledger) -> None:
        """As `StepSize.take_up`: there is no state to restore."""

    def planned(self, trained: int) -> float:
        """As `StepSize.planned`; 0 for a vote: its rate is for signs, far too large for a device's own scalars."""
        return 0.0 if self._config.aggregation == "sign-vote" else self._rate(trained)

    def used(self, server_round: int, replies: Measured, trained: int) -> float:
        """As `StepSize.used`, independent of the replies."""
        return self._rate(trained)

    def scalars(self, server_round: int) -> dict[str, float]:
        """As `StepSize.scalars`: nothing is measured."""
        return {}

    def _rate(self, trained: int) -> float:
        return float(np.float32(self._config.learning_rate_at(trained)))


class MeasuredStep:
    """The optimal step for the measured curvature, limited to a factor of two of the rounds before.

    1. The devices' numbers are pooled (`server.rounds.pooled_curvature`); no device changes the step by more than a
       factor of two.
    2. They are averaged with those of the last rounds, more rounds if devices are few (`history`): a round's few
       scalars determine the signal's share, and curvature along the gradient, only within a factor of two or three.
    3. The rate is limited to half and twice the median of the same last rounds' (of the last round's, while there are
       fewer), and to the range of the lattice, which matters where the loss hardly depends on the trained tensors.
    4. It is written to `<output>/steps.jsonl`, durably, before the round is in the ledger: a killed and resumed run
       continues with the same rates. Lines of rounds that the ledger lacks are dropped.

    Local steps beyond the first start from a device's own, whose rate goes with the plan and so follows from the rounds
    before: the one for a round of one local step. The server takes the same, so that its update is the mean of the
    devices'. In the first round it is 0, and all local steps measure at the same weights.
    """

    def __init__(self, config: RunConfig, progress: Callable[[], list[Progress] | None] = lambda: None) -> None:
        self._config, self._progress = config, progress
        self._path = Path(config.output) / LOG_NAME
        self._rows: list[StepRow] = []
        self._units = 0.0
        self._limit = ""  # which held the last round's rate

    def take_up(self, ledger: Ledger) -> None:
        """As `StepSize.take_up`; a `steps.jsonl` of another run is overwritten.

        Raises:
            ConfigError: the lines of the run cannot be used.
        """
        last = ledger.last_round
        self._rows = rows_of(self._path, last) if last and self._path.exists() else []
        self._units = finest_units(ledger.header)

    def planned(self, trained: int) -> float:
        """As `StepSize.planned`."""
        if self._config.local_steps == 1 or not self._rows:  # the only local step is undone, whatever its size
            return 0.0
        last = self._rows[-1]
        rate = self._near(self._rate(self._averaged([], last.devices), last.devices, local_steps=1), last.devices)
        return _float32(min(rate, last.room / math.sqrt(last.devices)))  # a device's own update is not averaged

    def used(self, server_round: int, replies: Measured, trained: int) -> float:
        """As `StepSize.used`."""
        found, devices = self.measure(server_round, replies), replies.accepted
        if not found or not devices:
            last = self._rows[-1].learning_rate if devices and self._rows else 0.0
            return self.planned(trained) if devices and self.planned(trained) else last
        steps = self._config.local_steps

        def rate_of(some: Sequence[RelativeCurvature]) -> float:
            return self._rate(pooled(some).cautious, devices, steps)

        if self._config.aggregation != "mean":
            found = without_extremes(found, faults(self._config.byzantine_share, len(found)), rate_of)
        limited, changed = trusted(found, rate_of)
        if changed:
            logger.debug(  # honest devices vary as much with small batches
                f"round {server_round}: the curvature of {changed} device(s) would move the step by more than a factor "
                "of two, and is held to that"
            )
        now = self.pool(limited)
        room = min(self._room(replies), _RATES[1])
        rate = self.planned(trained)  # the server uses the devices' rate, if they had one
        if not rate:
            best = self._rate(self._averaged([now], devices), devices, steps)
            rate = _float32(self._limited(server_round, best, devices, room))
        self._write(StepRow(server_round, rate, **asdict(now), devices=devices, room=room))
        return rate

    def scalars(self, server_round: int) -> dict[str, float]:
        """As `StepSize.scalars`."""
        if not self._rows or (row := self._rows[-1]).server_round != server_round:
            return {}
        return {
            "step/curvature_per_direction": row.per_direction,
            "step/curvature_along_gradient": row.along_signal,
            "step/signal_share": 1.0 - row.noise_share,
        }

    def measure(self, server_round: int, replies: Measured) -> list[RelativeCurvature]:
        """Return the measurements that determine the step."""
        return replies.curvatures()

    def pool(self, found: list[RelativeCurvature]) -> Pooled:
        """Return a round's measurements as one."""
        return pooled(found)

    def explored_signal(self, last: Pooled) -> float:
        """Return the least share of signal that a step counts with, before checks of held-out losses can tell it."""
        return EXPLORED_SIGNAL

    def _averaged(self, now: list[Pooled], devices: int) -> RelativeCurvature:
        rounds, most = [*(row.pooled for row in self._rows), *now], self._history(devices)
        found, progress = averaged(rounds, most), self._progress()
        if progress is None or self._config.aggregation != "mean":  # other rules' updates are not what scalars promise
            return found
        judged = judged_signals(progress, self._rows[-long_window(most) :], found, self._rounds)
        return averaged(rounds, most, judged, self.explored_signal(rounds[-1]))

    def _history(self, devices: int) -> int:
        return history(devices * self._config.num_queries * self._config.local_steps)

    @property
    def _rounds(self) -> Rounds:
        config = self._config
        shared, one_out = config.directions == "shared", config.estimator == "leave-one-out"
        return Rounds(config.num_queries, config.local_steps, shared, config.num_queries if one_out else 0)

    def _rate(self, found: RelativeCurvature, devices: int, local_steps: int) -> float:
        """Return the learning rate of a round with these numbers, devices and local steps."""
        rounds = self._rounds
        apart = rounds.apart(devices)
        coefficient = best_coefficient(
            found,
            directions=local_steps * apart,
            # of one device's scalars the noise is not averaged
            devices=1 if self._config.aggregation == "krum" else devices,
            shared=rounds.shared,
            left_out=rounds.left_out,
        )
        return coefficient * apart

    def _near(self, rate: float, devices: int) -> float:
        """Limit a rate to a factor of `MOST_CHANGE` of the last rounds' median; early, of the last round's."""
        recent = [row.learning_rate for row in self._rows[-self._history(devices) :]]
        if not recent:
            return rate
        # early, the median would grow by its first value a round, after a first round that saw no signal
        usual = recent[-1] if len(self._rows) < self._history(devices) else median(recent)
        return min(max(rate, usual / MOST_CHANGE), usual * MOST_CHANGE)

    def _limited(self, server_round: int, rate: float, devices: int, room: float) -> float:
        limited, why = self._near(rate, devices), f"within a factor of {MOST_CHANGE:g} of the rounds before"
        if limited > room:
            limited, why = room, "what the lattice has room for: the loss hardly depends on the trained tensors"
        far = not 1 / MOST_CHANGE < rate / limited < MOST_CHANGE  # a slow drift is no news
        limit = f"{'below' if rate < limited else 'above'}: {why}" if far else ""
        if limit and limit != self._limit:  # nor is the next round of the same
            logger.info(f"round {server_round}: the measured learning rate {rate:.3g} is held at {limited:.3g}, {why}")
        self._limit = limit
        return limited

    def _room(self, replies: Measured) -> float:
        """Return the rate with which weights move by `MAX_STEP_UNITS`, for scalars of the median device's size.

        Of N devices, each of weight 1/N, the squares of K·q coefficients rate · g / (N q) add up; with shared
        directions those of the mean, which are no larger than one device's.
        """
        squares = [float(np.square(c.projected_grads.astype(np.float64)).mean()) for c in replies.scalars()]
        config = self._config
        apart = 1 if config.directions == "shared" else len(squares)
        moved = math.sqrt(median(squares) * config.local_steps / (config.num_queries * apart)) if squares else 0.0
        return MAX_STEP_UNITS / (moved * self._units) if moved * self._units > 0 else math.inf

    def _write(self, row: StepRow) -> None:
        self._rows.append(row)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._path, encode_rows(self._rows))
        except OSError as error:  # a resumed run then measures without this round
            logger.warning(f"round {row.server_round}: {self._path} is not written: {error.strerror}")


def best_coefficient(
    found: RelativeCurvature, *, directions: int, devices: int, shared: bool = False, left_out: int = 0
) -> float:
    """Return α of this module, from the numbers of one device.

    Args:
        directions: Q, distinct directions of the round.
        devices: N, whose noise is averaged.
        shared: whether they measure along the same directions.
        left_out: q of leave-one-out scalars; 0 for other estimators.
    """
    correction = correction_of(left_out)
    signal = 1.0 - found.noise_share
    square = signal + found.noise_share / devices if shared else 1.0
    along = max(0.0, found.along_signal + found.along_noise / devices)
    return correction * signal / (square * found.per_direction + (directions + 1 / correction) * along)


def _float32(rate: float) -> float:
    return float(np.float32(min(max(rate, _RATES[0]), _RATES[1])))
