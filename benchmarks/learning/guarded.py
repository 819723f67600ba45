"""Rounds with the guard that a run has by default: bad rounds are undone, and the run ends at its best state."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from benchmarks.learning.crowd import Crowd
from benchmarks.learning.lattice_rounds import LatticeRounds, restored
from benchmarks.learning.method import Cost, Settings
from benchmarks.learning.rates import MeasuredRate, Rate
from server.guards.closing import Losses, averaged_rounds, to_average
from server.guards.guard import Progress
from server.guards.held_out_guard import NOISE, rise
from train.run import ALONE
from zo_common.config.run import RunConfig
from zo_common.ledger.record import Contribution, Record
from zo_common.ledger.replay import apply_all
from zo_common.speech.evaluation import utterance_losses
from zo_common.speech.recordings import spread

logger = logging.getLogger(__name__)
_SMALLER = 0.5  # factor on the step after a bad check
Round = tuple[Contribution, ...]


class GuardedRounds(LatticeRounds):
    """As `LatticeRounds`, with the checks of `server.guards.held_out_guard` on the development split.

    After every fourth round (every 32nd of one device) the losses of 32 utterances are compared with those of the best
    state. If they rose beyond their noise, the rounds since the last check are undone and the step is halved; after
    three such checks in a row the run would end, and the rest of its budget counts as spent. `finish` takes the last
    state, the best one, or the average of the last third of the rounds. As in a run, checks are not counted as passes.
    """

    def __init__(self, crowd: Crowd, settings: Settings, rate: Rate) -> None:
        super().__init__(crowd, settings, rate)
        defaults = RunConfig()
        self._every = ALONE["guard_every"] if crowd.devices == 1 else defaults.guard_every
        self._most_bad = defaults.max_bad_rounds
        self._data = spread(crowd.dev, min(defaults.guard_utterances, len(crowd.dev)))
        self._good: list[Round] = []
        self._checked, self._best_at, self._bad, self._factor = 0, 0, 0, 1.0
        self._best, self._cost = self._measure(), Cost()
        self._last, self._progress = self._best, list[Progress]()
        self._tell()

    def round(self, number: int) -> Cost:
        """As `Method.round`."""
        if self._bad >= self._most_bad:
            return self._cost
        cost = self._cost = super().round(number)
        self._good.append(self.rounds[-1])
        if number % self._every == 0:
            self._check(number)
        return cost

    def step_of(self, number: int, results: Any) -> float:
        """As `LatticeRounds.step_of`, halved for every bad check."""
        return self._factor * super().step_of(number, results)

    def _check(self, number: int) -> None:
        found = self._measure()
        after = number - self._every
        if np.isfinite(found).all():
            self._progress.append(Progress(after, number, *rise(found, self._last), self._factor))
            self._tell()
        higher, error = rise(found, self._best)
        if np.isfinite(found).all() and higher <= max(0.0, NOISE * error):
            self._checked, self._bad, self._last = len(self._good), 0, found
            if found.mean() <= self._best.mean():
                self._best, self._best_at = found, len(self._good)
            return
        logger.info(f"guard: after round {number} the loss is higher by {higher:.4f} ± {error:.4f}: undone")
        self._move(_undoing(self._good[self._checked :]))
        self._good = self._good[: self._checked]
        self._bad, self._factor = self._bad + 1, self._factor * _SMALLER

    def _tell(self) -> None:
        if isinstance(self.rate, MeasuredRate):
            self.rate.progress = list(self._progress)

    def finish(self) -> None:
        """Choose the state that the run ends with."""
        last, losses = self._good[len(self._good) - averaged_rounds(len(self._good)) :], self._measure()
        average = to_average([Record(n + 1, 0, one) for n, one in enumerate(last)])
        candidates: list[tuple[float, str, Sequence[Contribution]]] = [(_mean(losses), "the last state", ())]
        candidates.append((_mean(self._best), "the best state", _undoing(self._good[self._best_at :])))
        if average:
            updates = [u for c in average for u in c.updates()]
            apply_all(self.state_of_weights, updates)
            candidates.append((_mean(self._measure()), "an average", average))
            apply_all(self.state_of_weights, updates, sign=-1)
        _, name, contributions = min(candidates, key=lambda each: each[0])
        logger.info(f"guard: the run ends with {name}")
        self._move(contributions)

    def _measure(self) -> Losses:
        return utterance_losses(self.crowd.speech, self._data)

    def _move(self, contributions: Sequence[Contribution]) -> None:
        if contributions:
            self.apply(contributions)

    def state(self) -> dict[str, Any]:
        """As `Method.state`, with what was checked."""
        good = [[(c.seed, c.client_id, c.coefficients.tolist()) for c in one] for one in self._good]
        checks = [self._checked, self._best_at, self._bad, self._factor, asdict(self._cost)]
        measured = {"last": self._last.tolist(), "progress": [asdict(each) for each in self._progress]}
        return super().state() | {"kept": good, "best": self._best.tolist(), "checks": checks} | measured

    def restore(self, state: dict[str, Any]) -> None:
        """As `Method.restore`."""
        super().restore(state)
        self._good = restored(state["kept"])
        self._best = np.asarray(state["best"], np.float64)
        self._checked, self._best_at, self._bad, self._factor, cost = state["checks"]
        self._cost = Cost(**cost)
        self._last = np.asarray(state["last"], np.float64)
        self._progress = [Progress(**each) for each in state["progress"]]
        self._tell()


def _undoing(rounds: Sequence[Round]) -> list[Contribution]:
    return [replace(c, coefficients=-c.coefficients) for one in reversed(rounds) for c in one]


def _mean(losses: Losses) -> float:
    return float(losses.mean()) if np.isfinite(losses).all() else float("inf")
