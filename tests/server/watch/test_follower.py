"""A run in another process is shown as one's own: new messages and rounds, and none twice."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from server.run.log import CURVE, ROUNDS, SETTINGS_LOG
from server.run.log_file import RUN_LOG
from server.watch.follower import RunFollower
from server.watch.progress import RunProgress


def _add(folder: Path, name: str, *lines: str) -> None:
    with (folder / name).open("a") as file:
        file.write("".join(line + "\n" for line in lines))


def _round(number: int, loss: float | None = 2.0) -> str:
    up = {"payload": 82, "serialised": 100}
    return json.dumps(
        {"server_round": number, "asked": 3, "answered": 3 if loss else 0, "loss": loss, "up": up, "seconds": 1.5}
    )


def _follower(folder: Path, recent: int = 0, *, quiet: bool = False) -> tuple[RunFollower, io.StringIO]:
    said = io.StringIO()
    progress = RunProgress(Console(file=said, width=200, quiet=quiet), 0)
    return RunFollower(folder, progress, recent), said


def test_only_what_is_new_is_shown_and_once(tmp_path: Path) -> None:
    _add(tmp_path, RUN_LOG, "2026-01-01T00:00:00Z INFO of an earlier start")
    _add(tmp_path, ROUNDS, _round(1))
    follower, said = _follower(tmp_path)

    follower.show_new()
    assert said.getvalue() == ""
    _add(tmp_path, SETTINGS_LOG, json.dumps({"settings": {"num-server-rounds": 3}}))
    _add(
        tmp_path, RUN_LOG, "2026-01-01T00:00:01Z INFO [ROUND 2] 3/3 devices", "2026-01-01T00:00:01Z INFO   ├── payload"
    )
    _add(tmp_path, RUN_LOG, "2026-01-01T00:00:02Z WARNING two", "lines \x1b[31mred")
    _add(tmp_path, CURVE, json.dumps({"server_round": 3, "loss": 1.25}))
    _add(tmp_path, ROUNDS, _round(2), _round(3, None))
    follower.show_new()
    follower.show_new()

    assert said.getvalue().splitlines() == [
        "two",
        "lines \N{REPLACEMENT CHARACTER}[31mred",
        "round 2/3: loss 2.000, 82 B up, 1.5 s",
        "round 3/3: no valid reply, 164 B up, held-out loss 1.250, 1.5 s",
    ]


def test_rounds_that_a_resumed_run_repeats_are_shown_again(tmp_path: Path) -> None:
    _add(tmp_path, ROUNDS, _round(1), _round(2))
    follower, said = _follower(tmp_path)

    (tmp_path / ROUNDS).write_text(_round(1) + "\n")
    follower.show_new()
    _add(tmp_path, ROUNDS, _round(2))
    follower.show_new()

    assert said.getvalue() == "round 2/0: loss 2.000, 82 B up, 1.5 s\n"


def test_recent_messages_of_a_run_that_is_followed_later(tmp_path: Path) -> None:
    _add(tmp_path, RUN_LOG, *(f"2026-01-01T00:00:00Z INFO {number}" for number in range(5)))
    follower, said = _follower(tmp_path, recent=2)

    with follower:
        pass

    assert said.getvalue() == "3\n4\n"


def test_a_quiet_console_has_warnings_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    follower, said = _follower(tmp_path, quiet=True)
    _add(tmp_path, RUN_LOG, "2026-01-01T00:00:00Z INFO chosen", "2026-01-01T00:00:00Z WARNING worse")
    follower.show_new()

    assert said.getvalue() == ""
    assert capsys.readouterr().err == "worse\n"
