"""Fault: a private run is moved by the page's list, and its account of what was spent stays behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fake_grid import FakeGrid

from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.privacy.charges import LOG_NAME, PrivacyLog

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def test_a_run_goes_on_from_the_files_that_the_page_names(
    settings: Callable[..., RunConfig],
    federate: Callable[..., Federation],
    grid_of: Callable[..., FakeGrid],
    tmp_path: Path,
) -> None:
    private = {"privacy": "example", "target_delta": 1e-3, "clip_norm": 5.0, "learning_rate": 1e-4}
    config = settings(round_timeout=600.0, num_server_rounds=1, noise_multiplier=2.0, **private)
    federate(config, grid_of(config))
    named = re.findall(r"^    runs/NAME/(\S+)", PAGE.read_text(), re.MULTILINE)
    there = tmp_path / "elsewhere" / "runs" / "one"
    there.mkdir(parents=True)
    for name in named:
        shutil.copy(Path(config.output) / name, there / name)
    moved = replace(config, output=str(there), resume=True, num_server_rounds=2)

    federate(moved, grid_of(moved))

    before, after = (PrivacyLog.read(Path(each.output) / LOG_NAME).spent for each in (config, moved))
    assert {client: 2 * count for client, spent in before.items() for count in spent.values()} == {
        client: count for client, spent in after.items() for count in spent.values()
    }
