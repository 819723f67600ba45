"""A scenario run as a user runs it: its own process, the command line, Flower's real simulation engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def run_scenario_file(folder: Path, text: str) -> tuple[Path, str]:
    """Write the scenario into `folder` and run it there; its output directory and what it printed.

    A few steps on tones need not make a model better: what the exit status says of that is what `result.json` says.
    """
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
    result = folder / "out" / "result.json"
    assert result.exists(), done.stderr + done.stdout
    verdict = json.loads(result.read_text())["verdict"]
    assert done.returncode == (1 if verdict else 0), done.stderr + done.stdout
    assert verdict in " ".join((done.stdout + done.stderr).split())
    return folder / "out", done.stdout
