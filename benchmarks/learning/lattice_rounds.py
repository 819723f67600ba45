"""Federated rounds on the lattice, with the functions that devices and server use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning.crowd import Crowd
from benchmarks.learning.method import Cost, Settings
from benchmarks.learning.rates import Rate
from zo_common.aggregation.mean import ClientScalars, aggregate
from zo_common.directions.seeds import client_seed
from zo_common.estimator.local_steps import LocalResult, run_local_steps
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import LossFn, clip_factors
from zo_common.lattice.state import LatticeState
from zo_common.ledger.record import Contribution, Record
from zo_common.ledger.replay import apply_all
from zo_common.wire.plan import Plan, Reply, Status, encode_plan, encode_reply


class LatticeRounds:
    """Rounds as they are run: devices measure along directions of their own, the server averages their updates."""

    def __init__(self, crowd: Crowd, settings: Settings, rate: Rate) -> None:
        self.crowd, self.settings, self.rate = crowd, settings, rate
        self.state_of_weights = LatticeState(crowd.model, settings.tensors, settings.scale)
        self.loss_of, epsilon = crowd.chosen_loss(self.state_of_weights, settings.tail_tokens, settings.epsilon)
        self.config = EstimatorConfig(settings.estimator, settings.queries, epsilon)
        self.rounds: list[tuple[Contribution, ...]] = []

    def round(self, number: int) -> Cost:
        """As `Method.round`."""
        clients, results, forwards = [], [], 0
        local_rate = float(np.float32(self.step_of(number, ())))
        for device in range(self.crowd.devices):
            seed = client_seed(self.settings.seed, number, device)
            result = self.measure(device, seed, local_rate if self.settings.local_steps > 1 else 0.0)
            results.append(result)
            clients.append(ClientScalars(device, seed, self.crowd.examples(device), result.projected_grads))
            size = min(self.settings.batch_size, self.crowd.examples(device))
            forwards += self.config.forwards * self.settings.local_steps * size
        rate = float(np.float32(self.step_of(number, results)))
        up, down = self.payload(number, results[:1], rate)
        self.apply(aggregate(clients, rate))
        return Cost(forwards, 0, up, down)

    def step_of(self, number: int, results: Sequence[LocalResult]) -> float:
        """As `Rate.rate_of_round`."""
        return self.rate.rate_of_round(number, results)

    def measure(self, device: int, seed: int, learning_rate: float) -> LocalResult:
        """Make a device's local steps; the weights are as before."""
        return run_local_steps(
            self.state_of_weights,
            lambda step: self.loss(device, seed, step),
            seed,
            self.settings.local_steps,
            self.config,
            learning_rate,
            weigh=partial(clip_factors, multiple=self.settings.clip_utterances),
            **self.rate.asks,
        )

    def loss(self, device: int, seed: int, step: int) -> LossFn:
        """Return the loss of one local step."""
        chosen = self.crowd.draw(device, seed, step, self.settings.batch_size)
        return self.loss_of(self.crowd.batch(device, chosen))

    def payload(self, number: int, results: Sequence[LocalResult], rate: float) -> tuple[int, int]:
        """Return bytes of a device's reply with some results' scalars, and of its plan with the last round."""
        s = self.settings
        records = (Record(number - 1, 1, self.rounds[-1]),) if self.rounds else ()
        plan = Plan(number, 1, 0, 1, 1, s.local_steps, s.batch_size, rate, self.config, records)
        scalars = np.concatenate([result.projected_grads for result in results])
        curvature = results[0].curvature  # None where the step is not measured
        reply = Reply(Status.OK, number, number - 1, 0, 1, 1, projected_grads=scalars, curvature=curvature)
        return len(encode_reply(reply)), len(encode_plan(plan))

    def apply(self, contributions: Sequence[Contribution]) -> None:
        """Move the weights by a round, and remember it."""
        apply_all(self.state_of_weights, [u for c in contributions for u in c.updates()])
        self.rounds.append(tuple(contributions))

    def finish(self) -> None:
        """Do nothing: the last round's weights are the model."""

    def state(self) -> dict[str, Any]:
        """As `Method.state`: the rounds themselves."""
        rounds = [[(c.seed, c.client_id, c.coefficients.tolist()) for c in one] for one in self.rounds]
        return {"rounds": rounds, "rate": self.rate.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """As `Method.restore`, by exact replay."""
        self.rate.restore(state["rate"])
        for one in restored(state["rounds"]):
            self.apply(one)


def restored(rounds: list[Any]) -> list[tuple[Contribution, ...]]:
    """Return the rounds of a state."""
    return [tuple(Contribution(seed, client, _float32(rows)) for seed, client, rows in one) for one in rounds]


def _float32(rows: list[list[float]]) -> NDArray[np.float32]:
    return np.asarray(rows, np.float32)
