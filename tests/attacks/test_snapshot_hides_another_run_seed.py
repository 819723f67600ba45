"""Attack: in the middle of a run the server sends a snapshot, and from then on directions of a seed it has chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from references import split_snapshot
from secure_worker import Victim
from toy_engine import history, toy_engine
from toy_fleet import CrowdEngine, Utterances

from client.device import requests as device
from client.device.run_seeds import RunSeeds
from client.device_identity import DeviceIdentity
from client.worker.client import make_request
from client.worker.worker_pb2 import Request
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed, shared_seed
from zo_common.ledger.record import Record
from zo_common.ledger.snapshot import SnapshotPart, decode_part, encode_part, encode_snapshot
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan import Plan, Reply, Status, decode_reply

CONFIG = RunConfig(model="toy", data="none", trained_tensors="all", num_queries=2)
Train = Callable[..., Reply]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> CrowdEngine:
    made = CrowdEngine(CONFIG)
    monkeypatch.setattr(device, "warm_engine", lambda config: made)
    monkeypatch.setattr(device, "_train_data", lambda *_: Utterances(9))
    return made


@pytest.fixture
def train(engine: CrowdEngine, tmp_path: Path) -> Train:
    """Asks the device, whose process is another one each time; its file stays."""

    def ask(
        server_round: int, run_seed: int, records: list[Record] | None = None, checksum: int = 0, client_id: int = 3
    ) -> Reply:
        config = replace(CONFIG, run_seed=run_seed)
        plan = Plan(
            server_round, client_seed(run_seed, server_round, client_id), client_id, engine.base_id, checksum, 1, 1,
            1e-3, CONFIG.estimator_config, tuple(records or ()),
        )  # fmt: skip
        return device.train(config, plan, DeviceIdentity(client_id), seeds=RunSeeds(tmp_path / "run.seeds"))

    return ask


def _snapshot(engine: CrowdEngine, records: list[Record]) -> list[SnapshotPart]:
    there = toy_engine()
    there.pretend(records)
    data = encode_snapshot(toy_engine().state, there.state)
    last = records[-1]
    parts = split_snapshot(
        data, base_id=engine.base_id, client_id=3, server_round=last.server_round, checksum=last.checksum, limit=1 << 20
    )
    return [decode_part(encode_part(part)) for part in parts]


def _by_snapshot(engine: CrowdEngine, records: list[Record]) -> int:
    for part in _snapshot(engine, records):
        assert device.take_part(CONFIG, part).status is Status.OK
    assert engine.start_round == len(records)
    return records[-1].checksum


def test_a_seed_that_comes_after_a_snapshot_is_refused(engine: CrowdEngine, train: Train) -> None:
    assert train(1, 0).status is Status.OK
    checksum = _by_snapshot(engine, history(3))
    assert train(4, 0, checksum=checksum).status is Status.OK
    refused = train(4, 1234, checksum=checksum)
    assert (refused.status, refused.projected_grads.size) == (Status.ERROR, 0)
    assert "run-seed that it does not know" in refused.message
    assert train(4, 0, checksum=checksum).status is Status.OK


def test_a_new_run_and_a_whole_history_may_have_another(engine: CrowdEngine, train: Train) -> None:
    assert train(1, 5).status is Status.OK
    assert train(1, 6).status is Status.OK
    records = history(3)  # of seed 0
    assert train(4, 0, records).status is Status.OK
    checksum = _by_snapshot(engine, history(5))
    assert train(6, 0, checksum=checksum).status is Status.OK


def test_a_device_that_joins_by_a_snapshot_takes_the_seed_it_finds(engine: CrowdEngine, train: Train) -> None:
    checksum = _by_snapshot(engine, history(3))
    assert train(4, 0, checksum=checksum).status is Status.OK
    assert train(4, 1, checksum=checksum).status is Status.ERROR


@pytest.mark.parametrize("run_seed", [0, 1234])
def test_another_client_id_gives_no_other_directions(engine: CrowdEngine, train: Train, run_seed: int) -> None:
    """The server's app says which device it asks for: of ids, too, it could try many."""
    assert train(1, 0).status is Status.OK
    checksum = _by_snapshot(engine, history(3))
    refused = train(4, run_seed, checksum=checksum, client_id=99)
    assert (refused.status, refused.projected_grads.size) == (Status.ERROR, 0)
    assert "by another client id" in refused.message
    assert train(4, 0, checksum=checksum).status is Status.OK


@pytest.mark.parametrize("settings", [{"privacy": "none"}, {"privacy": "device", "clip_norm": 1.0}], ids=str)
def test_a_worker_remembers_wherever_a_plan_promises_something(victim: Victim, settings: dict[str, Any]) -> None:
    """Also where the run's settings, which are the server's to write, promise nothing."""
    privacy = Mechanism("device", 1.0, 2.0, 1)
    assert victim.in_clear(victim.plan(privacy=privacy), **settings).status is Status.OK
    records = history(3)
    for part in _snapshot(victim.engine, records):
        config, identity = victim.config.to_mapping(), DeviceIdentity(3)
        sent = decode_reply(victim.client.sync(make_request(encode_part(part), config, identity, Request.PART)))
        assert sent.status is Status.OK, sent.message
    victim.restart()
    checksum = records[-1].checksum
    plan = victim.plan(4, privacy=privacy, checksum=checksum, seed=shared_seed(1234, 4))
    refused = victim.in_clear(plan, run_seed=1234, **settings)
    assert (refused.status, refused.projected_grads.size) == (Status.ERROR, 0)
    assert "run-seed that it does not know" in refused.message
    honest = victim.in_clear(victim.plan(4, privacy=privacy, checksum=checksum), **settings)
    assert honest.status is Status.OK, honest.message


def test_a_damaged_memory_answers_nothing(train: Train, tmp_path: Path) -> None:
    assert train(1, 0).status is Status.OK
    data = bytearray((tmp_path / "run.seeds").read_bytes())
    data[20] ^= 1
    (tmp_path / "run.seeds").write_bytes(data)
    refused: Any = train(1, 0)
    assert refused.status is Status.ERROR and not np.asarray(refused.projected_grads).size
