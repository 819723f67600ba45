"""Attack: what was masked is asked for again in a run without secure sums, or is read from the worker's files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from secure_worker import Sum, Victim

from client.device.demands import Demands
from client.worker.client import WorkerError
from zo_common.wire.masked_reply import GRID, is_masked
from zo_common.wire.plan import Status


@pytest.fixture
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Victim]:
    before = os.umask(0)  # state files are private whatever it is
    made = Victim(tmp_path, monkeypatch)
    yield made
    made.close()
    os.umask(before)


def test_the_plan_of_a_masked_round_is_not_answered_in_the_clear(victim: Victim) -> None:
    attacked = Sum(victim, range(1, 4))
    total = attacked.run()
    assert (total[:-1] == GRID.quantise(victim.measured(attacked.plan).ravel())[0]).all()
    for _ in range(2):
        reply = victim.in_clear(attacked.plan)
        assert reply.status is Status.ERROR and not reply.projected_grads.size
        assert "were masked in a secure sum and are not answered in the clear" in reply.message
        victim.restart()
    another = victim.in_clear(victim.plan(2))
    assert "masked" not in another.message  # another round's directions were never masked


def test_nothing_without_noise_or_mask_is_on_disk(victim: Victim) -> None:
    attacked = Sum(victim, range(1, 4))
    attacked.run()
    secret = victim.measured(attacked.plan)
    files = [path for path in victim.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"masked.seeds", "device.state", "ledger.zo"}
    for path in files:
        data = path.read_bytes()
        assert not any(np.float32(value).tobytes() in data for value in secret.ravel())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 or path.name == "lock"


def test_a_repeated_request_gets_the_same_masked_bytes(victim: Victim) -> None:
    attacked = Sum(victim, range(1, 4))
    sharers = attacked.share()
    first = attacked.mask(sharers)
    assert is_masked(first) and attacked.mask(sharers) == first


@pytest.mark.parametrize("stricter", [{"demands": Demands("example")}, {"max_epsilon": 1.0}], ids=["demand", "account"])
def test_an_answer_in_the_journal_is_not_given_under_stricter_terms(
    victim: Victim, stricter: dict[str, object]
) -> None:
    plan = victim.plan()
    assert victim.in_clear(plan).status is Status.OK
    victim.restart(**stricter)
    reply = victim.in_clear(plan)
    assert reply.status is Status.ERROR and not reply.projected_grads.size


def test_a_plan_of_a_run_with_secure_sums_without_its_sharers(victim: Victim) -> None:
    """The client app is the server's: the worker itself sees to it that such a run's answer is masked."""
    for settings in ({}, {"secure_aggregation": False}):
        with pytest.raises(WorkerError, match=r"list of sharers"):
            victim.train(victim.plan(), b"" if not settings else b"sharers", **settings)
