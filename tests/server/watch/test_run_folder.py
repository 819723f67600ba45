"""A run as it is read from its folder: while it grows, after a resume, and with damaged files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.harness.run_files import RunFiles
from server.run.lock import RunLock, is_locked
from server.run.log import RunLog
from server.watch.run_folder import RunFolder


def test_a_folder_without_a_run_is_new(tmp_path: Path) -> None:
    now = RunFolder(tmp_path / "nothing").read()

    assert (now.status, now.name, now.last_round, now.head) == ("new", "nothing", 0, "")


def test_a_killed_run_is_stopped_and_a_run_that_went_on_after_its_end_is_not_finished(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run")
    run.round()
    folder = RunFolder(run.folder)
    assert folder.read().status == "stopped"
    run.end(verdict="the result is worse than its start")
    now = folder.read()
    assert (now.status, now.verdict) == ("finished", "the result is worse than its start")
    run.round()
    now = folder.read()
    assert (now.status, now.verdict) == ("stopped", "")


def test_a_result_that_is_no_worse_has_no_verdict(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run")
    run.round()
    run.end(verdict=None)
    now = RunFolder(run.folder).read()
    assert (now.status, now.verdict) == ("finished", "")


def test_rounds_that_a_resumed_run_repeats_are_read_anew(tmp_path: Path) -> None:
    run, folder = RunFiles(tmp_path / "run"), RunFolder(tmp_path / "run")
    for _ in range(3):
        run.round()
    assert folder.read().last_round == 3
    run.log = RunLog(run.folder, resume_after=1)
    run.round(loss=7.0)

    assert [(row["server_round"], row["loss"]) for row in folder.read().rounds][1:] == [(2, 7.0)]


def test_a_torn_line_waits_for_its_end_and_malformed_files_are_left_out(tmp_path: Path) -> None:
    run, folder = RunFiles(tmp_path / "run"), RunFolder(tmp_path / "run")
    run.round()
    path = run.folder / "rounds.jsonl"
    line = path.read_bytes().replace(b'"server_round": 1', b'"server_round": 2')
    with path.open("ab") as file:
        file.write(line[:20])
    assert folder.read().last_round == 1
    with path.open("ab") as file:
        file.write(line[20:] + b"[]\nnonsense\n")
    assert folder.read().last_round == 2
    (run.folder / "devices.json").write_text("[1")
    (run.folder / "evaluation.json").write_text("7")
    now = folder.read()
    assert (now.devices, now.status) == ([], "stopped")


def test_rows_of_other_kinds_are_left_out(tmp_path: Path) -> None:
    run, folder = RunFiles(tmp_path / "run", privacy="example"), RunFolder(tmp_path / "run")
    run.round()
    path = run.folder / "rounds.jsonl"
    row = json.loads(path.read_text())
    for wrong in ({"loss": "low"}, {"refused": None}, {"up": 3}, {"seconds": "9"}, {"answered": None}):
        with path.open("a") as file:
            file.write(json.dumps(row | {"server_round": 2} | wrong) + "\n")
    (run.folder / "devices.json").write_text(json.dumps({"devices": [{"client_id": 0, "refused": None}, {}, 3]}))
    settings = {"num-server-rounds": "many", "privacy": "example", "target-epsilon": "8"}
    (run.folder / "settings.jsonl").write_text(json.dumps({"settings": settings}) + "\n")
    now = folder.read()

    assert (now.last_round, now.devices, now.target_rounds, now.epsilon_limit) == (1, [], 0, 0.0)


@pytest.mark.parametrize("wrong", [{"loss": "x"}, {"wer": "x"}, {"utterances": "3"}, {"headline": 5}])
def test_measurements_of_other_kinds_are_left_out(tmp_path: Path, wrong: dict[str, object]) -> None:
    right = {"server_round": 2, "loss": 1.5, "wer": 1, "utterances": 3, "headline": "wer"}
    lines = "".join(json.dumps(row) + "\n" for row in (right | wrong, right))
    for name in ("curve.jsonl", "guard.jsonl"):
        (tmp_path / name).write_text(lines)

    found = RunFolder(tmp_path).read()

    assert found.curve == found.checks == [right]


def test_a_name_that_is_no_text_is_escaped(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / os.fsdecode(b"run-\xff")).name == "run-\\xff"


def test_looking_neither_takes_the_lock_nor_writes(tmp_path: Path) -> None:
    assert not is_locked(tmp_path) and list(tmp_path.iterdir()) == []
    lock = RunLock(tmp_path)
    assert is_locked(tmp_path)
    lock.release()
    assert not is_locked(tmp_path)
