"""The command as a user runs it: its own process, its files and numbers, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zo_common.ledger.file import read_ledger

SMALL = ["--set", "learning-rate=0.05", "--set", "loss-check=false", "--set", "num-queries=2", "--set", "batch-size=2"]
LINES = "from zo_common.command import main; main()"


def _command(*words: str) -> list[str]:
    return [sys.executable, "-c", LINES, "train", *words, *SMALL, "--set", "guard-split=none"]


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def _run(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        _command(*words), capture_output=True, text=True, check=False, timeout=240, env=_environment()
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_bits_are_the_same(
    tiny_whisper: Path, mini_corpus: Path, tmp_path: Path
) -> None:
    words = [str(mini_corpus), "--model", str(tiny_whisper), "--eval-split", "", "--rounds", "40", "--output"]
    running = subprocess.Popen(
        _command(*words, str(tmp_path / "torn")), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=_environment(),
    )  # fmt: skip
    log = tmp_path / "torn" / "rounds.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_bytes().splitlines()) >= 3):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    said, errors = running.communicate(timeout=60)

    assert running.returncode == 130, said + errors
    assert "round 1/40: loss" in said and "forwards/s" in said
    assert "Traceback" not in errors
    assert f"--output {tmp_path / 'torn'}" in errors and errors.strip().endswith("--resume")
    done = read_ledger(tmp_path / "torn" / "ledger.zo").last_round
    assert 3 <= done < 40 and f"after round {done} of 40" in errors

    _run(*words, str(tmp_path / "torn"), "--resume")
    _run(*words, str(tmp_path / "whole"))

    torn, whole = (read_ledger(tmp_path / name / "ledger.zo").records[-1] for name in ("torn", "whole"))
    assert torn.checksum == whole.checksum and torn.server_round == whole.server_round == 40
    result = json.loads((tmp_path / "torn" / "result.json").read_text())
    assert result["checksum"] == result["replayed_checksum"] == f"{whole.checksum:016x}"


@pytest.mark.parametrize("words", [["/nothing"], ["/nothing", "--json"], ["{speech}", "--model", "/nothing"]])
def test_what_is_not_there_is_the_only_line_and_leaves_no_folder(
    mini_corpus: Path, tmp_path: Path, words: list[str]
) -> None:
    words = [word.format(speech=mini_corpus) for word in words]
    done = _run(*words, "--output", str(tmp_path / "results"), status=1)

    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "'/nothing' is n" in line
    assert done.stdout == "" and not (tmp_path / "results").exists()


def test_an_output_that_is_taken_and_a_setting_that_is_mistyped(
    tiny_whisper: Path, mini_corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    taken = _run(str(mini_corpus), "--model", str(tiny_whisper), "--output", str(tmp_path), status=1)
    mistyped = _run(str(mini_corpus), "--set", "lerning-rate=1", status=1)

    assert "exists already: name another output" in taken.stderr
    assert "did you mean 'learning-rate'" in mistyped.stderr
    for done in (taken, mistyped):
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_program_gets_one_object_on_stdout_and_people_the_progress(
    tiny_whisper: Path, mini_corpus: Path, tmp_path: Path
) -> None:
    words = [str(mini_corpus), "--model", str(tiny_whisper), "--eval-split", "", "--rounds", "1", "--output"]
    told = _run(*words, str(tmp_path / "told"), "--json")
    quiet = _run(*words, str(tmp_path / "quiet"), "--quiet")

    found = json.loads(told.stdout)
    result = json.loads((tmp_path / "told" / "result.json").read_text())
    assert found["output"] == str(tmp_path / "told") and found["checksum"] == result["checksum"]
    assert told.stderr.index("bar appears with the first round") < told.stderr.index("round 1/1")
    assert quiet.stdout == "" and "round 1/1" not in quiet.stderr
