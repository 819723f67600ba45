"""Rounds with hostile devices in this process: the devices' engine and the server's aggregation, without messages.

With shared directions every device holds the same weights, so that one engine answers for all of them in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from client.device.engine import Engine
from client.device.requests import held_out_settings
from client.device.warm import warm_dataset, warm_engine
from server.devices.device_status import DeviceStatuses
from server.devices.suspicion import Suspicions
from simulations.attacks import Attack, Seen, attack_of, chance, flip_labels
from zo_common.aggregation.mean import ClientScalars
from zo_common.aggregation.robust import Aggregation, Aggregator, aggregator_of
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import fold_in, shared_seed
from zo_common.errors import LatticeOverflow, ZOError
from zo_common.ledger.record import Record
from zo_common.ledger.replay import apply_all
from zo_common.speech.recordings import spread
from zo_common.wire.plan import Plan, Reply, Status, encode_plan

HOSTILE_STREAM = 1 << 44


class Crowd(Protocol):
    """Devices that share one state of the weights.

    Attributes:
        devices: how many.
    """

    devices: int

    def restart(self) -> int:
        """Go back to the base model and return its id."""

    def examples(self, device: int) -> int:
        """Return the number of utterances of a device."""

    def measure(self, plan: Plan, flipped: bool) -> Reply:
        """Return a device's honest answer to a plan, from recordings with wrong transcripts if `flipped`."""

    def move(self, record: Record) -> None:
        """Apply a round on all devices. Raises LatticeOverflow, and then nothing has moved."""

    def evaluate(self) -> dict[str, float]:
        """Return held-out `loss`, and `wer` where there are words."""


@dataclass(frozen=True)
class Setting:
    """One cell of the table for one seed.

    Attributes:
        share: of the devices that are hostile, rounded to whole devices.
        byzantine_share: what the rule is told to expect.
        vote_rate: learning rate of "sign-vote", whose scalars have size one.
    """

    attack: Attack
    aggregation: Aggregation
    share: float
    seed: int
    rounds: int
    num_queries: int
    batch_size: int
    epsilon: float
    learning_rate: float
    vote_rate: float
    byzantine_share: float = 0.25

    @property
    def rate(self) -> float:
        """The learning rate of the first round; it falls linearly."""
        return self.vote_rate if self.aggregation == "sign-vote" else self.learning_rate

    def config(self, **others: Any) -> RunConfig:
        """Return the run's settings."""
        return RunConfig(
            run_seed=self.seed,
            num_server_rounds=self.rounds,
            num_queries=self.num_queries,
            batch_size=self.batch_size,
            epsilon=self.epsilon,
            learning_rate=self.rate,
            directions="shared",
            **others,
        )

    def aggregator(self) -> Aggregator:
        """Return the rule on trial."""
        return aggregator_of(self.aggregation, shared=True, weighting="uniform", byzantine_share=self.byzantine_share)


@dataclass
class Outcome:
    """Result of a run.

    Attributes:
        left_lattice: the round whose update the lattice could not hold, where the run ended; 0 if there was none.
        found, accused: hostile and honest devices that were suspect at the end.
    """

    before: dict[str, float]
    after: dict[str, float]
    hostile: list[int]
    left_lattice: int = 0
    found: int = 0
    accused: int = 0
    words: list[str] = field(default_factory=list)


def run(crowd: Crowd, setting: Setting, before: dict[str, float] | None = None) -> Outcome:
    """Run all rounds of one setting.

    1. The hostile devices are drawn by the seed, the same for every attack and rule.
    2. Each round all devices measure, the hostile ones change what they send, and the rule makes the update of it.
    3. The server's look at the scalars goes on beside it.

    Args:
        before: the base model's evaluation, if it is known.
    """
    base_id = crowd.restart()
    before = before or crowd.evaluate()
    hostile = _hostile(setting, crowd.devices)
    statuses, rule, change = DeviceStatuses(), setting.aggregator(), attack_of(setting.attack)
    suspicions = Suspicions.of(setting.config(), statuses)
    config, last, outcome = setting.config(), None, Outcome(before, {}, hostile)
    for server_round in range(1, setting.rounds + 1):
        rate = float(np.float32(config.learning_rate_at(server_round)))
        plan = round_plan(config, server_round, 0.0, base_id)  # one step, which a device would undo
        clients = _clients(crowd, plan, hostile, setting.attack, change, last)
        used = [rule.used_part(client) for client in clients]
        outcome.words += suspicions.review(server_round, used, last)
        record = Record(server_round, 0, rule.aggregate(used, rate))
        try:
            crowd.move(record)
        except LatticeOverflow:
            outcome.left_lattice = server_round
            break
        last = record
    outcome.after = crowd.evaluate()
    suspect = {int(client) for client in suspicions.reported}
    outcome.found, outcome.accused = len(suspect & set(hostile)), len(suspect - set(hostile))
    return outcome


def slope(crowd: Crowd, setting: Setting) -> float:
    """Return mean size of the first round's honest mean scalars: what a vote's ±1 stands for at the same step size."""
    plan = round_plan(setting.config(), 1, 0.0, crowd.restart())
    grads = [crowd.measure(replace(plan, client_id=device), False).projected_grads for device in range(crowd.devices)]
    return float(np.abs(np.mean(np.stack(grads), axis=0)).mean())


def _hostile(setting: Setting, devices: int) -> list[int]:
    draw = np.random.default_rng(fold_in(setting.seed, HOSTILE_STREAM))
    count = 0 if setting.attack == "none" else round(setting.share * devices)
    return sorted(int(device) for device in draw.permutation(devices)[:count])


def round_plan(config: RunConfig, server_round: int, rate: float, base_id: int) -> Plan:
    """Return the plan of a round; `client_id` is each device's own."""
    return Plan(
        server_round=server_round,
        seed=shared_seed(config.run_seed, server_round),
        client_id=0,
        base_id=base_id,
        checksum=0,
        local_steps=config.local_steps,
        batch_size=config.batch_size,
        learning_rate=rate,
        estimator=config.estimator_config,
    )


def _clients(
    crowd: Crowd,
    plan: Plan,
    hostile: list[int],
    attack: Attack,
    change: Callable[[Seen], NDArray[np.float32]],
    last: Record | None,
) -> list[ClientScalars]:
    """Return every device's answer, that of the hostile ones changed; whoever cannot measure is left out."""
    grads: dict[int, NDArray[np.float32]] = {}
    for device in range(crowd.devices):
        own = replace(plan, client_id=device)
        reply = crowd.measure(own, attack == "label-flip" and device in hostile)
        if reply.status is Status.OK:
            grads[device] = reply.projected_grads
    band = [grads[device] for device in hostile if device in grads]
    update = last.contributions[0].coefficients if last is not None and last.contributions else None
    for device in hostile:
        if device in grads:
            own = replace(plan, client_id=device)
            grads[device] = change(Seen(grads[device], band, len(grads), update, chance(own)))
    return [ClientScalars(device, plan.seed, 1, found) for device, found in grads.items()]


class SpeechCrowd:
    """Devices with recordings of their own and one speech model.

    Args:
        config: model, data, partition and the evaluation's split; directions are shared whatever it says.

    Raises:
        ZOError: model or recordings cannot be used.
    """

    def __init__(self, config: RunConfig, devices: int) -> None:
        self.devices = devices
        self._engine: Engine = warm_engine(config)
        self._data = [warm_dataset(config, self._engine, device, devices) for device in range(devices)]
        self._wrong: dict[int, Any] = {}
        self._first: dict[tuple[bytes, bool], Reply] = {}
        held_out = warm_dataset(held_out_settings(config), self._engine, 0, 1)
        self._held_out = spread(held_out, config.eval_utterances) if config.eval_utterances else held_out

    def restart(self) -> int:
        """As `Crowd.restart`."""
        self._engine.rewind(0)
        return self._engine.base_id

    def examples(self, device: int) -> int:
        """As `Crowd.examples`."""
        return len(self._data[device])

    def measure(self, plan: Plan, flipped: bool) -> Reply:
        """As `Crowd.measure`; runs of one seed all begin with the same answers, which are computed once."""
        if self._engine.have_round or plan.privacy is not None:
            return self._measure(plan, flipped)
        key = encode_plan(plan), flipped
        if key not in self._first:
            self._first[key] = self._measure(plan, flipped)
        return self._first[key]

    def _measure(self, plan: Plan, flipped: bool) -> Reply:
        device = plan.client_id
        if flipped and device not in self._wrong:
            data = self._data[device]
            self._wrong[device] = replace(data, examples=flip_labels(data.examples))
        return self._engine.train(plan, self._wrong[device] if flipped else self._data[device])

    def move(self, record: Record) -> None:
        """As `Crowd.move`."""
        apply_all(self._engine.state, record.updates())
        self._engine.applied.append(record)

    def evaluate(self) -> dict[str, float]:
        """As `Crowd.evaluate`."""
        engine = self._engine
        plan = round_plan(RunConfig(directions="shared"), engine.have_round + 1, 0.0, engine.base_id)
        with suppress(ZOError):
            reply = engine.evaluate(plan, self._held_out)
            scores = reply.scores
            return {"loss": reply.loss_sum / max(scores.utterances, 1), "wer": scores.wer, "cer": scores.cer}
        return {}
