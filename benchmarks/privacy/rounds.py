"""Rounds with differential privacy in this process: the devices' engine and the server's guard, without messages.

Clipping is the devices' and the server's own, noise comes from the operating system, its size from the accountant, and
every round is charged to a privacy log beside a ledger. What is left out is Flower: bytes on the way change nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hostile.rounds import Crowd, round_plan
from server.devices.roster import Member
from server.guards.privacy_guard import PrivacyGuard, privacy_guard, settle_noise
from server.run.model import open_header
from zo_common.aggregation.mean import ClientScalars
from zo_common.config.run import RunConfig
from zo_common.errors import LatticeOverflow
from zo_common.ledger.file import LEDGER_NAME, LedgerFile
from zo_common.ledger.record import Record
from zo_common.wire.plan import Plan, Status


@dataclass
class Outcome:
    """Result of a run.

    Attributes:
        before, after: held-out `loss`, and `wer` where there are words.
        noise_multiplier: as settled by the accountant; 0 without privacy.
        epsilon: what was spent by the privacy log.
        left_lattice: the round whose update the lattice could not hold, where the run ended; 0 if there was none.
    """

    before: dict[str, float]
    after: dict[str, float]
    noise_multiplier: float = 0.0
    epsilon: float = 0.0
    left_lattice: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def run(crowd: Crowd, config: RunConfig, before: dict[str, float] | None = None) -> Outcome:
    """Run all rounds of one run with shared directions, every device asked in each of them.

    Args:
        before: the base model's evaluation, if it is known.

    Raises:
        ConfigError: what is asked for gives no guarantee.
    """
    base_id = crowd.restart()
    outcome = Outcome(before or crowd.evaluate(), {})
    members = [Member(device, device, crowd.examples(device), {}) for device in range(crowd.devices)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LEDGER_NAME
        config = settle_noise(replace(config, output=folder), members, path)
        ledger = LedgerFile.create(path, open_header(config, (f"{base_id:016x}".ljust(64, "0"), 0, ())))
        guard = privacy_guard(config, ledger, False)
        for server_round in range(1, config.num_server_rounds + 1):
            record = _round(crowd, config, guard, members, server_round, base_id)
            try:
                crowd.move(record)
            except LatticeOverflow:
                outcome.left_lattice = server_round
                break
            ledger.append(record)
        if guard is not None:
            outcome.noise_multiplier, outcome.epsilon = config.noise_multiplier, guard.epsilon
    outcome.after = crowd.evaluate()
    return outcome


def _round(
    crowd: Crowd, config: RunConfig, guard: PrivacyGuard | None, members: list[Member], server_round: int, base_id: int
) -> Record:
    """Charge, ask, add noise and aggregate, in the order of `server.rounds.federation`."""
    rate = float(np.float32(config.learning_rate_at(server_round)))
    chosen = members
    if guard is not None:
        chosen = guard.able(server_round, members)
        guard.charge(server_round, chosen)
    plan = round_plan(config, server_round, rate if config.local_steps > 1 else 0.0, base_id)
    replies = [(member, crowd.measure(_asked(plan, member, guard), False)) for member in chosen]
    scalars = [
        ClientScalars(member.client_id, plan.seed, member.num_examples, reply.projected_grads)
        for member, reply in replies
        if reply.status is Status.OK
    ]
    if guard is not None:
        scalars = guard.noised(scalars)
    return Record(server_round, 0, config.aggregator.aggregate(scalars, rate) if scalars else ())


def _asked(plan: Plan, member: Member, guard: PrivacyGuard | None) -> Plan:
    plan = replace(plan, client_id=member.client_id)
    return plan if guard is None else guard.ask(plan, member)
