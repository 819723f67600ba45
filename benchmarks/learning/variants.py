"""Variants that may make a pass worth more, tried at equal passes; the program has only those that win."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.learning.crowd import Crowd
from benchmarks.learning.lattice_rounds import LatticeRounds
from benchmarks.learning.method import Cost, Settings
from benchmarks.learning.rates import Rate
from zo_common.aggregation.mean import ClientScalars, aggregate
from zo_common.directions.seeds import client_seed, fold_in
from zo_common.estimator.local_steps import LocalResult, run_local_steps
from zo_common.ledger.record import Contribution
from zo_common.speech.evaluation import evaluate
from zo_common.speech.metrics import score

_UTTERANCE_STREAM = 1 << 42
_LEAST_FACTOR = 0.01
DECODING_PASSES = 2  # what transcribing an utterance on its full window counts as; it is more on the clock


class AveragedRounds(LatticeRounds):
    """The model is the mean of the weights after the last `average` rounds (of `Settings.extra`)."""

    def finish(self) -> None:
        """Take back the share of the last rounds' updates that the mean lacks."""
        last = min(int(self.settings.of("average", 4)), len(self.rounds))
        for age, contributions in enumerate(reversed(self.rounds[-last:] if last else [])):
            # of the last rounds' weights, age + 1 have this update
            missing = 1 - (age + 1) / last
            self.apply([c.scaled(-missing) for c in contributions])


class MomentumRounds(LatticeRounds):
    """Every round also repeats the earlier rounds' updates, each time by `momentum` less: heavy ball on coefficients.

    Updates are scaled by (1 − momentum), so that a constant gradient moves the weights as far as without.
    """

    def __init__(self, crowd: Crowd, settings: Settings, rate: Rate) -> None:
        super().__init__(crowd, settings, rate)
        self._fresh: list[tuple[Contribution, ...]] = []

    def apply(self, contributions: Any) -> None:
        """As `LatticeRounds.apply`, with what is left of earlier rounds."""
        beta = self.settings.of("momentum", 0.7)
        self._fresh.append(tuple(contributions))
        moved = []
        for age, earlier in enumerate(reversed(self._fresh)):
            factor = (1 - beta) * beta**age
            if factor < _LEAST_FACTOR * (1 - beta):
                break
            moved += [c.scaled(factor) for c in earlier]
        super().apply(moved)
        self.rounds[-1] = tuple(contributions)  # what a checkpoint replays


class HardUtterances(LatticeRounds):
    """Every `every` rounds devices transcribe their speech; until then they leave out what had no error."""

    def __init__(self, crowd: Crowd, settings: Settings, rate: Rate) -> None:
        super().__init__(crowd, settings, rate)
        self._all: list[Any] = list(crowd.shares)
        self._hard: list[list[int]] = [list(range(len(share))) for share in self._all]

    def round(self, number: int) -> Cost:
        """As `Method.round`."""
        cost = Cost()
        if (number - 1) % int(self.settings.of("every", 4)) == 0:
            for device, share in enumerate(self._all):
                self._hard[device] = self._with_errors(share)
                cost += Cost(DECODING_PASSES * len(share))
        self._leave_out()
        return cost + super().round(number)

    def _leave_out(self) -> None:
        for device, share in enumerate(self._all):
            self.crowd.shares[device] = replace(share, examples=tuple(share.examples[i] for i in self._hard[device]))

    def _with_errors(self, share: Any) -> list[int]:
        """Return utterances with word errors; all, where that would leave less than a batch."""
        crowd = self.crowd
        found = evaluate(crowd.speech, share, language=crowd.task.language)
        pairs = zip(share.texts, found.hypotheses, strict=True)
        hard = [index for index, (said, heard) in enumerate(pairs) if score([said], [heard]).words.errors]
        return hard if len(hard) >= self.settings.batch_size else list(range(len(share)))

    def state(self) -> dict[str, Any]:
        """As `Method.state`."""
        return super().state() | {"hard": self._hard}

    def restore(self, state: dict[str, Any]) -> None:
        """As `Method.restore`."""
        super().restore(state)
        self._hard = state["hard"]


class UtteranceDirections(LatticeRounds):
    """Every utterance of a batch has directions of its own: B times as many directions for the same passes.

    Here one utterance is sent through the model at a time; a program would give a batch's rows different weights.
    """

    def round(self, number: int) -> Cost:
        """As `Method.round`; one local step."""
        clients: list[ClientScalars] = []
        results: list[LocalResult] = []
        forwards = 0
        for device in range(self.crowd.devices):
            seed = client_seed(self.settings.seed, number, device)
            chosen = self.crowd.draw(device, seed, 0, self.settings.batch_size)
            for place, index in enumerate(chosen):
                own = fold_in(seed, _UTTERANCE_STREAM, place)
                batch = self.crowd.batch(device, [index])
                result = self.own_step(batch, own)
                results.append(result)
                clients.append(ClientScalars(len(clients), own, 1, result.projected_grads))
                forwards += self.config.forwards
        rate = float(np.float32(self.rate.rate_of_round(number, results)))
        self.apply(aggregate(clients, rate, "uniform"))
        up, down = self.payload(number, results[: len(results) // self.crowd.devices], rate)
        return Cost(forwards, 0, up, down)

    def own_step(self, batch: Any, seed: int) -> LocalResult:
        """Return one utterance's projected gradients along its own directions."""
        asks = self.rate.asks
        return run_local_steps(
            self.state_of_weights, lambda step: self.loss_of(batch), seed, 1, self.config, 0.0, **asks
        )
