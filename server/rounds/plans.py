"""The plan of a device for a round."""

from __future__ import annotations

from server.devices.roster import Member
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed, shared_seed
from zo_common.ledger.ledger import Ledger
from zo_common.wire.plan import Plan


def plan_for(
    config: RunConfig,
    ledger: Ledger,
    checksum: int,
    server_round: int,
    member: Member,
    learning_rate: float,
    attempt: int = 0,
) -> Plan:
    """Return a device's plan, with the ledger's last record for devices that have all records before it.

    Args:
        checksum: checksum of the weights after the ledger's rounds; 0 if the server does not know it.
        learning_rate: learning rate of the device's own local steps.
        attempt: how often the round was begun before (`server.rounds.attempts`).
    """
    if config.directions == "shared":
        seed = shared_seed(config.run_seed, server_round, attempt)
    else:
        seed = client_seed(config.run_seed, server_round, member.client_id)
    return Plan(
        server_round=server_round,
        seed=seed,
        client_id=member.client_id,
        base_id=ledger.header.base_id,
        checksum=checksum,
        local_steps=config.local_steps,
        batch_size=config.batch_size,
        learning_rate=learning_rate,
        estimator=config.estimator_config,
        records=ledger.records[-1:],
    )
