"""SIGINT and SIGTERM in real simulations: all ends soon, the ledger is whole and goes on."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from server.rounds.events import Events
from simulations.runner import how_to_resume
from simulations.stopping import GivenUp, Interrupted, Stop
from zo_common.config.run import RunConfig
from zo_common.ledger.file import read_ledger

SECONDS = 10.0
ROUNDS = 2000
MARK = "ZO_TEST_STOPPED"
Settings = Callable[..., RunConfig]


class Simulation:
    """A simulation as a shell runs it: a process group of its own, stdout and stderr in a file."""

    def __init__(self, folder: Path, scenario: str, *arguments: str) -> None:
        (folder / "long.toml").write_text(scenario)
        self.output, self._log = folder / "out", folder / "log"
        self._mark = f"{MARK}={folder}"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "simulations.cli", "run", "long.toml", "--output", "out", *arguments],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", MARK: str(folder)},
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not what():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def rounds(self) -> int:
        with suppress(OSError):
            return (self.output / "rounds.jsonl").read_text().count("\n")
        return 0

    def left(self) -> list[int]:
        """Processes of it that still run."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                zombie = " Z " in (entry / "stat").read_text()
                if self._mark.encode() in (entry / "environ").read_bytes().split(b"\0") and not zombie:
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        for process in self.left():
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        self.process.wait(20)


@pytest.fixture
def started(ctc_settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Simulation]]:
    """Starts long simulations of a small model."""
    running: list[Simulation] = []

    def start(*arguments: str, rounds: int = ROUNDS, **changes: object) -> Simulation:
        config = ctc_settings(num_server_rounds=rounds, eval_split="", guard_split="none", **changes)
        kept = ("model", "data", "trained-tensors", "num-queries", "batch-size", "local-steps", "learning-rate")
        kept += ("num-server-rounds", "guard-split")
        lines = [f"{key} = {value!r}" for key, value in config.to_mapping().items() if key in kept]
        running.append(Simulation(tmp_path, "\n".join(["[simulation]", "devices = 3", "[run]", *lines]), *arguments))
        return running[-1]

    yield start
    for each in running:
        each.end()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)],  # a terminal, kill, a service manager
    ids=["ctrl-c", "kill", "kill-group"],
)
def test_one_signal_gives_the_round_up_and_the_run_goes_on_later(
    started: Callable[..., Simulation], number: int, group: bool
) -> None:
    run = started(local_steps=60)  # seconds a round: the signal meets devices that compute
    run.wait_for(lambda: run.rounds() >= 1)
    time.sleep(1.0)

    begun = time.monotonic()
    (os.killpg if group else os.kill)(run.process.pid, number)
    status = run.process.wait(60)

    assert time.monotonic() - begun < SECONDS
    assert status == 128 + number, run.said
    assert not any(word in run.said for word in ("Traceback", "Aborted", "raylet"))
    ledger = read_ledger(run.output / "ledger.zo", tolerate_torn=False)
    word = run.said.splitlines()[-1]
    assert f"interrupted after round {ledger.last_round} of {ROUNDS}" in word
    assert "--output out --set resume=true" in word
    assert not list(run.output.glob("features-*"))
    run_gone(run)

    rounds = ledger.last_round + 1
    resumed = started("--set", "resume=true", "--set", f"num-server-rounds={rounds}", local_steps=60)
    assert resumed.process.wait(200) in (0, 1)  # of tones it may have become worse
    again = read_ledger(run.output / "ledger.zo", tolerate_torn=False)
    assert again.last_round == rounds
    assert again.records[:-1] == ledger.records
    assert "agree" in resumed.said


def run_gone(run: Simulation) -> None:
    deadline = time.monotonic() + 5
    while run.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not run.left()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_engine_starts(started: Callable[..., Simulation], number: int) -> None:
    run = started()
    run.wait_for(lambda: "Ray and the models start now" in run.said)

    begun = time.monotonic()
    os.killpg(run.process.pid, number)
    status = run.process.wait(60)

    assert time.monotonic() - begun < SECONDS
    assert status == 128 + number, run.said
    assert "Traceback" not in run.said
    assert "interrupted" in run.said.splitlines()[-1]
    run_gone(run)


@pytest.mark.slow
def test_a_server_that_computes_on_is_ended_with_its_process(tmp_path: Path) -> None:
    """The server never looks whether it was asked to end, as in a long forward pass."""
    program = """
import sys, time
from simulations.stopping import Stop
with Stop(lambda: "how to go on", grace=1.0):
    print("ready", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()

    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)

    assert process.returncode == 143
    assert said.decode().splitlines() == ["stopping: the round in flight is given up", "how to go on"]


def test_a_signal_is_noticed_at_the_grid_and_in_long_work() -> None:
    stop = Stop(lambda: "go on so")
    stages: list[tuple[str, int, int]] = []
    calls: list[str] = []

    class Nodes:
        run = 7

        def get_node_ids(self) -> list[int]:
            calls.append("nodes")
            return [1]

    events = stop.watched(Events(on_stage=lambda *stage: stages.append(stage)))
    app = ServerApp()

    @app.main()
    def main(grid: object, context: Context) -> None:
        assert grid.run == 7  # type: ignore[attr-defined]
        assert grid.get_node_ids() == [1]  # type: ignore[attr-defined]
        events.on_stage("decoding", 1, 2)
        stop.request(signal.SIGTERM)
        with pytest.raises(GivenUp):
            events.on_stage("decoding", 2, 2)
        grid.get_node_ids()  # type: ignore[attr-defined]

    with pytest.raises(GivenUp):
        stop.server(app)(Nodes(), Context(1, 1, {}, RecordDict(), {}))  # type: ignore[arg-type]

    assert (calls, stages) == (["nodes"], [("decoding", 1, 2)])
    with pytest.raises(Interrupted, match="go on so") as ended:
        stop.raise_if_asked()
    assert ended.value.number == signal.SIGTERM


def test_lines_about_killed_workers_are_dropped_once_a_stop_was_requested() -> None:
    stop, said = Stop(), io.StringIO()
    stream = stop.quieted(said)

    print("(raylet) out of memory", file=stream)
    stop.number = signal.SIGINT
    for line in ("round 1", "\x1b[36m(raylet)\x1b[0m A worker died", "", "ended"):
        print(line, file=stream)

    assert said.getvalue() == "(raylet) out of memory\nround 1\n\nended\n"
    assert stream.encoding == said.encoding


def test_handlers_are_given_back_and_what_a_shell_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stop() as stop:
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) == stop.request
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGTERM) != stop.request
    stop.raise_if_asked()  # nobody asked


def test_before_the_first_round_there_is_nothing_to_resume(settings: Settings) -> None:
    assert how_to_resume(settings()) == "interrupted before round 1, nothing is recorded: start it again"
