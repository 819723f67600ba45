"""Two servers in one run's directory: the second is refused, in this process and in another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Lock, Thread

import pytest

from server.run.lock import RunLock, is_locked, refuse_dangling
from zo_common.errors import ConfigError

OTHER = "import sys; from pathlib import Path; from server.run.lock import RunLock; RunLock(Path(sys.argv[1]))"


def _elsewhere(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", OTHER, str(directory)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_second_server_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")

    with pytest.raises(ConfigError, match="another server is running"):
        RunLock(tmp_path / "run")
    assert "another server is running" in _elsewhere(tmp_path / "run").stderr

    lock.release()
    assert _elsewhere(tmp_path / "run").returncode == 0


def test_a_directory_that_a_failed_start_made_is_removed(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "results" / "run")
    lock.release()
    lock.release()
    assert not (tmp_path / "results" / "run").exists()


def test_a_directory_that_was_there_stays_and_so_does_what_a_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    RunLock(tmp_path / "mine").release()
    written = RunLock(tmp_path / "run")
    (tmp_path / "run" / "ledger.zo").touch()
    written.release()
    assert [each.name for each in (tmp_path / "mine").iterdir()] == [".lock"]
    assert sorted(each.name for each in (tmp_path / "run").iterdir()) == [".lock", "ledger.zo"]


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another run had ended between the opening of the file and its locking."""
    taken = RunLock._take

    def late(self: RunLock) -> None:
        monkeypatch.setattr(RunLock, "_take", taken)
        (tmp_path / "run" / ".lock").unlink()
        (tmp_path / "run").rmdir()
        taken(self)

    monkeypatch.setattr(RunLock, "_take", late)
    lock = RunLock(tmp_path / "run")
    with pytest.raises(ConfigError, match="another server is running"):
        RunLock(tmp_path / "run")
    lock.release()


def test_starts_that_fail_and_starts_that_run_never_hold_one_directory_twice(tmp_path: Path) -> None:
    inside, most = [0], [0]
    counted = Lock()

    def start(number: int) -> None:
        for _ in range(100):
            try:
                lock = RunLock(tmp_path / "run")
            except ConfigError:
                continue
            with counted:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with counted:
                inside[0] -= 1
            lock.release()

    threads = [Thread(target=start, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1]
    # whose maker was refused, the directory stays, and holds nothing
    assert {each.name for each in tmp_path.glob("run/*")} <= {".lock"}


@pytest.mark.parametrize("below", ["", "run", "run/later"])
def test_a_link_to_what_is_not_there_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "results").symlink_to(tmp_path / "unmounted" / "disk")

    for check in (RunLock, refuse_dangling):
        with pytest.raises(
            ConfigError, match=r"results is a link to a folder that is not there\): name another output"
        ):
            check(tmp_path / "results" / below)


def test_a_lock_that_is_a_dangling_link_and_a_file_for_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "unmounted" / "lock")
    with pytest.raises(ConfigError, match="lock is a link to"):
        RunLock(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is not a folder"):
        refuse_dangling(tmp_path / "file" / "run")


@pytest.mark.parametrize("name", [".", "new/run", "link/run", "link"])
def test_a_path_that_can_be_made_is_locked(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    refuse_dangling(tmp_path / name)
    lock = RunLock(tmp_path / name)
    assert is_locked(tmp_path / name)
    lock.release()
    assert not is_locked(tmp_path / name)
