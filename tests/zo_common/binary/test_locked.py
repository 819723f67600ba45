"""A lock between processes that leaves its file, or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zo_common.binary.locked import locked

_ADD = """
import sys
from pathlib import Path
from zo_common.binary.locked import locked

for _ in range(50):
    with locked(Path(sys.argv[1]), kept=sys.argv[2] == "kept"):
        count = int(Path(sys.argv[1]).read_text())
        Path(sys.argv[1]).write_text(str(count + 1))
"""


@pytest.mark.parametrize("kept", [True, False])
def test_processes_take_turns(tmp_path: Path, kept: bool) -> None:
    counted = tmp_path / "count"
    counted.write_text("0")
    command = [sys.executable, "-c", _ADD, str(counted), "kept" if kept else "removed"]

    for process in [subprocess.Popen(command) for _ in range(3)]:
        assert process.wait(60) == 0

    assert counted.read_text() == "150"
    assert {path.name for path in tmp_path.iterdir()} == {"count", *(["count.lock"] if kept else [])}


def test_a_failure_within_leaves_no_lock_either(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="within"), locked(tmp_path / "corpus", kept=False):
        raise ValueError("within")

    assert list(tmp_path.iterdir()) == []


def test_a_file_of_somebody_else_with_the_locks_name_stays(tmp_path: Path) -> None:
    for name, kept in ((".corpus.lock", False), ("corpus.lock", True)):
        (tmp_path / name).write_text("precious")
        with locked(tmp_path / "corpus", kept=kept):
            pass
        assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("kept", [True, False])
def test_the_current_folder_has_a_lock_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with locked(Path(), kept=kept):
        assert [each.name for each in tmp_path.iterdir() if each != here] == ["here.lock" if kept else ".here.lock"]
    assert list(here.iterdir()) == []
