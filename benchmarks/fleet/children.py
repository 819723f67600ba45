"""Processes of a fleet: restarted when they end, as by systemd, each in its own group, all ended at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MARKER = "ZO_ASR_TEST_FLEET"
_LOOK_SECONDS = 0.3


@dataclass
class Child:
    """A command that is kept running; `pause` is in seconds, None for a command that runs once."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    pause: float | None
    process: subprocess.Popen[bytes]
    starts: int = 1
    ended: float | None = None
    paused: bool = False


@dataclass
class Children:
    """All processes of one fleet; whatever carries the fleet's marker in its environment is ended by `close`."""

    logs: Path
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self._children: dict[str, Child] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        self._keeper.start()

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    def start(self, name: str, command: list[str], env: Mapping[str, str], pause: float | None = None) -> Child:
        """Run a command, its output in `<logs>/<name>.log`; with `pause`, run it again whenever it ends."""
        with self._lock:
            marked = dict(env) | {MARKER: self.marker}
            log = self.logs / f"{name}.log"
            child = Child(name, command, marked, log, pause, _popen(command, marked, log))
            self._children[name] = child
            return child

    def kill(self, name: str, sign: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the command itself; one that is kept comes back."""
        self._children[name].process.send_signal(sign)

    def stop(self, name: str, patience: float = 20.0) -> None:
        """End a command and its group; it stays away until `again`."""
        child = self._children[name]
        child.paused = True
        _end_group(child.process, patience)

    def again(self, name: str) -> None:
        """Start what was stopped again."""
        child = self._children[name]
        with self._lock:
            child.process, child.ended = _popen(child.command, child.env, child.log), None
            child.starts += 1
            child.paused = False

    def tails(self, lines: int = 25) -> str:
        """Return the last lines of every log."""
        found = {path.name: path.read_text(errors="replace").splitlines() for path in self.logs.glob("*.log")}
        return "\n".join(f"--- {name}\n" + "\n".join(said[-lines:]) for name, said in sorted(found.items()))

    def of_marker(self, command: str = "") -> list[int]:
        """Return ids of living processes of this fleet, children's children too, whose command line holds a word."""
        found = []
        wanted = f"{MARKER}={self.marker}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                ours = wanted in (entry / "environ").read_bytes().split(b"\0")
                if ours and command.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended, or is somebody else's
        return found

    def close(self) -> None:
        """End all."""
        self._end.set()
        self._keeper.join(10)
        for child in self._children.values():
            _signal_group(child.process, signal.SIGTERM)
        deadline = time.monotonic() + 8
        while self.of_marker() and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.1)
        for child in self._children.values():
            _signal_group(child.process, signal.SIGKILL)
        for pid in self.of_marker():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._reap(5.0)

    def _reap(self, patience: float = 0.0) -> None:
        for child in self._children.values():
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(patience)

    def _keep(self) -> None:
        while not self._end.wait(_LOOK_SECONDS):
            with self._lock:
                for child in self._children.values():
                    self._check(child)

    def _check(self, child: Child) -> None:
        if child.pause is None or child.paused or child.process.poll() is None:
            return
        now = time.monotonic()
        if child.ended is None:
            child.ended = now
        elif now - child.ended >= child.pause:
            child.process, child.ended = _popen(child.command, child.env, child.log), None
            child.starts += 1


def _popen(command: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def _signal_group(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    with suppress(OSError):
        os.killpg(process.pid, sign)


def _end_group(process: subprocess.Popen[bytes], patience: float) -> None:
    _signal_group(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    _signal_group(process, signal.SIGKILL)
    process.wait(5)


def wait_until(what: str, condition: Callable[[], object], timeout: float, every: float = 0.2) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it still is not after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(every)
