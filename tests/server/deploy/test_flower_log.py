"""Flower's lines are kept as they come, and a disk that is full does not end what is watched."""

from __future__ import annotations

from pathlib import Path

from listening import listen

from server.deploy.flower_log import FLOWER_LOG, FlowerLog


def test_lines_are_there_as_they_come_and_the_last_ones_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "new" / FLOWER_LOG
    with FlowerLog(path) as log:
        for number in range(30):
            log.write(f"line {number} \udcff")
        assert path.read_text().splitlines()[-1] == "line 29 \\udcff"

    assert next(iter(log.lines)).startswith("line 10 ") and len(log.lines) == 20


def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    said = listen("server.deploy.flower_log")
    path = tmp_path / FLOWER_LOG
    path.symlink_to("/dev/full")

    with FlowerLog(path) as log:
        log.write("one")
        log.write("two")

    assert list(log.lines) == ["one", "two"]
    assert said == [f"{path} is not written (No space left on device): free or mend the disk; the run goes on"]


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path) -> None:
    said = listen("server.deploy.flower_log")
    (tmp_path / "runs").write_text("a file")

    with FlowerLog(tmp_path / "runs" / FLOWER_LOG) as log:
        log.write("one")

    assert list(log.lines) == ["one"] and len(said) == 1
