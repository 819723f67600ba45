"""The worker's command line: what it shows, and what it says when it cannot."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from client.worker import cli as worker_cli
from client.worker.view import Follower, job_text, rows, show

IDLE: dict[str, Any] = {
    "model": "models/tiny",
    "data": "data/mine",
    "device": "cpu",
    "precision": "bfloat16",
    "fingerprint": "ab" * 32,
    "trained_tensors": "encoder-early",
    "round": 7,
    "start_round": 0,
    "checksum": "00000000000000ff",
    "last": {},
    "state_folder": "/var/lib/zo-asr",
    "unsaved": "",
    "job": None,
    "counts": {},
    "memory_bytes": 512 << 20,
    "pid": 1,
}
JOB = {
    "kind": "train",
    "server_round": 8,
    "step": 3,
    "steps": 10,
    "loss": 1.25,
    "queries_per_second": 4.0,
    "seconds_left": 14.2,
    "callers": 1,
}


def test_an_idle_worker_is_shown() -> None:
    found = dict(rows(IDLE))

    assert found["model"] == "models/tiny  abababababababab"
    assert found["device"] == "cpu, bfloat16, 512 MiB"
    assert found["round"] == "7, checksum 00000000000000ff"
    assert (found["now"], found["last"], found["answers"]) == ("idle", "nothing yet", "none")
    assert "unsaved" not in found


def test_a_busy_worker_with_a_full_disk_is_shown() -> None:
    last = {"kind": "train", "round": 7, "status": "ok", "seconds": 3.0, "at": "2030-01-01T00:00:00Z"}
    status = IDLE | {"job": JOB, "last": last, "start_round": 4, "unsaved": "round 7: No space left on device"}
    out = io.StringIO()

    show(status | {"counts": {"busy": 2, "answered": 5}}, Console(file=out, width=200))

    for word in (
        "train round 8, step 3 of 10, loss 1.2500, 4.0 queries/s, 14 s left",
        "train round 7: ok, 2030-01-01T00:00:00Z",
        "7, from a snapshot of round 4",
        "5 answered, 2 busy",
        "No space left on device",
    ):
        assert word in out.getvalue()


def test_work_that_has_just_begun_has_no_numbers_yet() -> None:
    job = JOB | {"step": 0, "steps": 0, "queries_per_second": 0.0, "seconds_left": -1.0}
    assert job_text(job) == "train round 8"


def test_following_draws_what_it_sees() -> None:
    out = io.StringIO()
    looks = iter([IDLE, IDLE | {"job": JOB}])

    with Follower(Console(file=out, width=200, force_terminal=True)) as follower:
        follower.run(lambda: next(looks), times=2)

    assert "step 3 of 10" in out.getvalue()


@pytest.mark.parametrize(
    ("given", "expected"),
    [("/var/lib/zo-asr", "/var/lib/zo-asr"), ("/one:/two", "/one"), ("", "~/.local/state/zo-asr")],
)
def test_where_the_state_is_by_default(monkeypatch: pytest.MonkeyPatch, given: str, expected: str) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", given)
    assert worker_cli.default_state_folder() == Path(expected).expanduser()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "model or data is missing: give --model and --data, or a command such as status"),
        (["status", "--listen", "unix:/nowhere/w.sock"], "could not be reached"),
        (["cancel", "--listen", "127.0.0.1:9", "--token-file", "/nowhere"], "token file /nowhere cannot be read"),
    ],
)
def test_mistakes_are_one_sentence_and_status_1(arguments: list[str], word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "client.worker.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and word in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("option", ["--torch-threads", "--orphan-seconds", "--stop-seconds"])
def test_numbers_below_zero_are_refused(option: str) -> None:
    done = CliRunner().invoke(worker_cli.app, ["--model", "m", "--data", "d", option, "-1"])
    assert done.exit_code == 2
    assert "not in the range" in done.output


def test_threads_without_bound_are_refused() -> None:
    done = CliRunner().invoke(worker_cli.app, ["--model", "m", "--data", "d", "--torch-threads", "4097"])
    assert done.exit_code == 2
    assert "not in the range" in done.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_log_on_a_full_disk_stops_nothing() -> None:
    code = (
        "import logging\n"
        "from client.worker.cli import stderr_handler\n"
        "from zo_common.console import shown\n"
        "with shown(stderr_handler()):\n"
        "    [logging.getLogger('client').info(word) for word in ('one', 'two')]\n"
        "print('alive')"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout) == (0, "alive\n")
