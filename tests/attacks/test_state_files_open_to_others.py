"""Attack: another user of the machine reads what a device keeps, where its umask or an earlier release left it open."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_engine import history, toy_engine

from client.device.privacy_account import PrivacyAccount
from client.worker.journal import Journal
from zo_common.config.run import RunConfig
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan import Plan


@pytest.fixture(params=[0, 0o077, 0o277], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def _modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_a_workers_state_is_its_own(tmp_path: Path, umask: None) -> None:
    engine = toy_engine()
    engine.pretend(history(2))
    engine.start_round, engine.start_checksum, engine.snapshot = 1, engine.applied[0].checksum, b"weights"
    del engine.applied[0]
    journal = Journal(tmp_path)
    journal.save(engine)
    journal.save_answer(b"d" * 32, b"scalars")
    journal.close()
    assert journal.unsaved == ""
    assert _modes(tmp_path) == dict.fromkeys(("lock", "device.state", "snapshot.bin", "ledger.zo", "answer.bin"), 0o600)


def test_what_an_earlier_release_left_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "answer.bin").write_bytes(b"scalars")
    (tmp_path / "answer.bin").chmod(0o644)
    Journal(tmp_path).close()
    assert _modes(tmp_path)["answer.bin"] == 0o600


def test_an_account_is_its_own(tmp_path: Path, umask: None) -> None:
    estimator = RunConfig().estimator_config
    plan = Plan(1, 0, 3, 0, 0, 1, 2, 1e-3, estimator, (), Mechanism("example", 5.0, 2.0, 8))
    PrivacyAccount(tmp_path / "privacy.account", 100.0).charge(plan, 10)
    assert _modes(tmp_path) == {"privacy.account": 0o600, "privacy.account.lock": 0o600}
