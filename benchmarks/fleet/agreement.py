"""Final agreement of server, ledger, an independent replay, and every running device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.fleet.processes import Fleet, Run
from client.device_identity import DeviceIdentity
from client.worker.client import make_request
from client.worker.worker_pb2 import Request
from zo_common.config.run import RunConfig
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model
from zo_common.wire.plan import Plan, Status, decode_reply, encode_plan


def replayed(ledger: Ledger, model: Path) -> int:
    """Return the checksum that base and ledger give, in a model loaded anew."""
    loaded = load_model(str(model)).model
    return replay(restore_state(loaded, ledger.header, threads=1), ledger)


def contributors(ledger: Ledger) -> list[list[int]]:
    """Return client ids of every round."""
    return [[c.client_id for c in record.contributions] for record in ledger.records]


def check_agreement(fleet: Fleet, run: Run, names: tuple[str, ...], model: Path | None = None) -> Ledger:
    """Check that all rounds are there and each device is at the state of one, at the last once it syncs.

    Returns:
        The ledger.
    """
    ledger = run.ledger
    checksum = ledger.records[-1].checksum
    assert [r.server_round for r in ledger.records] == list(range(1, run.settings["num-server-rounds"] + 1))
    assert replayed(ledger, model or fleet.model) == checksum
    if run.rows:
        assert run.rows[-1]["checksum"] == f"{checksum:016x}"
    for name in names:
        status = fleet.info(name)
        at = ledger.header.base_checksum if not status["round"] else ledger.records[status["round"] - 1].checksum
        assert status["checksum"] == f"{at:016x}", f"{name} at round {status['round']}: {status}"
        assert sync_to_end(fleet, run, name, status["round"]) == checksum, name
    return ledger


def sync_to_end(fleet: Fleet, run: Run, name: str, have_round: int) -> int:
    """Tell a device's worker the rounds after `have_round` and no others; the checksum it reaches.

    With all rounds at hand it would start again from the base, and wrong weights would not show.
    """
    ledger = run.ledger
    config = settings_of(fleet, run)
    last = ledger.records[-1]
    plan = Plan(
        server_round=last.server_round + 1,
        seed=0,
        client_id=fleet.client_id(name),
        base_id=ledger.header.base_id,
        checksum=last.checksum,
        local_steps=config.local_steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        estimator=config.estimator_config,
        records=tuple(ledger.records[have_round:]),
    )
    request = make_request(encode_plan(plan), config.to_mapping(), DeviceIdentity(plan.client_id), Request.PLAN)
    with fleet.worker(name) as worker:
        reply = decode_reply(worker.sync(request))
    assert reply.status is Status.OK, f"{name}: {reply.status.name} at round {reply.have_round}: {reply.message}"
    return reply.checksum


def settings_of(fleet: Fleet, run: Run) -> RunConfig:
    """Return the run config as devices are given it."""
    there = fleet.deployment
    known: dict[str, Any] = {"model": there.model, "data": there.data, "output": str(run.output)}
    return RunConfig.from_mapping(known | run.settings)
