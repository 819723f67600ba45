"""Replay equals training: live server, devices, replays in other processes and a run killed at any moment agree.

The transport is the in-memory grid of `tests/helpers`; Flower's own is in `test_quick_start.py` and `test_flwr_run.py`.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from zo_common.config.run import RunConfig
from zo_common.ledger.file import read_ledger
from zo_common.ledger.record_codec import encode_record

HELPERS = Path(__file__).parent.parent / "helpers"
ROUNDS = 12
KILLS = 4
PATIENCE = 120.0


class Driver:
    """A process that runs federations in children of its own, which can be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, str(HELPERS / "drive.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        threading.Thread(target=self._read, daemon=True).start()
        assert self.line() == "ready"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def line(self) -> str:
        """The next word of the driver; fails after a bounded wait."""
        return self._lines.get(timeout=PATIENCE)

    def start(self, config: RunConfig) -> int:
        """Begin a run; returns its process id."""
        settings = self._folder / "settings.json"
        settings.write_text(json.dumps(config.to_mapping()))
        assert self.process.stdin is not None
        self.process.stdin.write(f"{settings}\n")
        self.process.stdin.flush()
        return int(self.line())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    made = Driver(tmp_path)
    yield made
    made.close()


def _rounds(config: RunConfig) -> int:
    path = Path(config.output) / "rounds.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _wait_for_rounds(config: RunConfig, wanted: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while _rounds(config) < wanted:
        assert time.monotonic() < deadline, f"{_rounds(config)} of {wanted} rounds"
        time.sleep(0.002)


def _verified(ledger: Path, threads: int) -> str:
    """What `zo-asr-ledger verify` finds in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "server.commands.ledger", "verify", str(ledger), "--threads", str(threads), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["threads"] == threads
    return str(found["checksum"])


@pytest.mark.slow
def test_all_agree_after_a_run_that_was_killed_again_and_again(
    settings: Callable[..., RunConfig], driver: Driver, tmp_path: Path
) -> None:
    undisturbed = settings(num_server_rounds=ROUNDS, output=str(tmp_path / "undisturbed"))
    disturbed = replace(undisturbed, output=str(tmp_path / "disturbed"))
    moments = random.Random(20)

    driver.start(undisturbed)
    assert driver.line() == "0"
    for kill in range(KILLS):
        child = driver.start(replace(disturbed, resume=kill > 0))
        _wait_for_rounds(disturbed, 2 * kill + 1 + moments.randrange(2))
        time.sleep(moments.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert driver.line() == str(-signal.SIGKILL)
    driver.start(replace(disturbed, resume=True))
    assert driver.line() == "0"

    paths = [Path(config.output) / "ledger.zo" for config in (undisturbed, disturbed)]
    whole, killed = (read_ledger(path, tolerate_torn=False) for path in paths)
    assert whole.last_round == ROUNDS
    assert [encode_record(r) for r in killed.records] == [encode_record(r) for r in whole.records]
    reached = [json.loads((path.parent / "reached.json").read_text()) for path in paths]
    checksum = whole.records[-1].checksum
    assert reached == [{"server": checksum, "devices": [checksum] * 3}] * 2
    assert {_verified(paths[0], 1), _verified(paths[1], 3)} == {f"{checksum:016x}"}
