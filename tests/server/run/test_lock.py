"""Two servers in one run's directory: the second is refused, in this process and in another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.run.lock import RunLock
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
