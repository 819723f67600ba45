"""A scenario run as a user runs it: its own process, the command line, Flower's real simulation engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_scenario_file(folder: Path, text: str) -> tuple[Path, str]:
    """Write the scenario into `folder` and run it there; its output directory and what it printed."""
    (folder / "scenario.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "simulations.cli", "run", "scenario.toml", "--output", "out"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "out", done.stdout
