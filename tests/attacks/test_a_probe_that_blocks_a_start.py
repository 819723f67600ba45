"""Attack: who only asks for a run's status holds its lock, and a start in that moment is refused."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from server.run import lock
from server.run.lock import RunLock, is_locked
from zo_common.errors import ConfigError


def test_a_start_waits_for_those_who_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunLock(tmp_path).release()
    probe = (tmp_path / ".lock").open("rb")
    fcntl.flock(probe, fcntl.LOCK_SH)  # as `is_locked` holds it while it looks
    assert not is_locked(tmp_path)  # another one is in nobody's way
    paused = []

    def sleep(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 2:
            probe.close()

    monkeypatch.setattr(lock.time, "sleep", sleep)

    RunLock(tmp_path).release()

    assert len(paused) == 2


def test_a_look_holds_nothing_and_a_server_is_seen(tmp_path: Path) -> None:
    assert not is_locked(tmp_path) and not list(tmp_path.iterdir())
    held = RunLock(tmp_path)
    assert is_locked(tmp_path) and is_locked(tmp_path)
    with pytest.raises(ConfigError, match="another server is running"):
        RunLock(tmp_path)
    held.release()
    assert not is_locked(tmp_path)
    RunLock(tmp_path).release()
