"""Memory of processes as it is sampled."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.scale.simulation import peak_memory


def test_a_process_that_lives_shorter_than_the_sampling_is_seen_and_not_waited_for() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    assert peak_memory(child) > 0 and child.returncode == 0
