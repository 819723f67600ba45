"""Checks that a plan's directions are those that the run's seed gives, so that no server picks them.

A server that may name any direction could ask for slopes along which one guessed utterance stands out. With derived
seeds it chooses the run's seed alone: of N seeds tried, the best direction's cosine with a wanted one is about
√(2 ln N / n) for n trained weights, 0.0024 for N = 2⁴⁰ and ten million weights.

The run's seed is fixed before the first round: the rounds that a device has applied must follow from it, too. Where it
came by a snapshot, `run_seeds` remembers.
"""

from __future__ import annotations

from collections.abc import Sequence

from client.device_identity import DeviceIdentity
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import MOST_ATTEMPTS, client_seed, shared_seed
from zo_common.errors import Refusal
from zo_common.ledger.record import Contribution, Record
from zo_common.wire.plan import Plan

MOST_TAKEN_BACK = 4096
"""Rounds; a search through all rounds of a run would let a server keep a device busy."""


def check_seed(config: RunConfig, plan: Plan, identity: DeviceIdentity) -> None:
    """Refuse a plan for another device, or with directions that do not follow from `run-seed`.

    Raises:
        Refusal: says which.
    """
    if plan.client_id != identity.client_id:
        raise Refusal(f"the plan is for device {plan.client_id}, this is device {identity.client_id}: ask that one")
    expected = _seeds(config, plan.server_round, identity.client_id)
    if plan.seed not in expected:
        raise Refusal(
            f"the plan of round {plan.server_round} has seed {plan.seed:016x}, expected {expected[0]:016x} from "
            f"run-seed {config.run_seed}: directions are derived, a server does not choose them"
        )


def check_history(config: RunConfig, applied: Sequence[Record]) -> None:
    """Refuse to answer if the last round that moved the weights has directions of another seed than the run's.

    Each round was the last one once: a seed that changes within a run is noticed at the change.

    Args:
        applied: the ledger rounds that the weights hold, of this run by now.

    Raises:
        Refusal: they follow from another seed.
    """
    last = next((record for record in reversed(applied) if record.contributions), None)
    if last is None:
        return
    if not follows(config, last):
        raise Refusal(
            f"round {last.server_round} has directions of another run-seed than {config.run_seed}: a run keeps its "
            "seed; begin a new one from the base model"
        )


def follows(config: RunConfig, record: Record) -> bool:
    """Return whether all directions of a round follow from `run-seed`."""
    return all(_follows(config, record.server_round, part) for part in record.contributions)


def _follows(config: RunConfig, server_round: int, part: Contribution) -> bool:
    """Return whether directions are those of this round, or of an earlier one that a guard's record undoes."""
    earliest = max(0, server_round - MOST_TAKEN_BACK)
    return any(part.seed in _seeds(config, n, part.client_id) for n in range(server_round, earliest, -1))


def _seeds(config: RunConfig, server_round: int, client_id: int) -> list[int]:
    """Return the seeds that a round may have: one, or with secure sums one for each time that it may be begun."""
    if config.directions != "shared":
        return [client_seed(config.run_seed, server_round, client_id)]
    attempts = MOST_ATTEMPTS if config.secure_aggregation else 1
    return [shared_seed(config.run_seed, server_round, attempt) for attempt in range(attempts)]
