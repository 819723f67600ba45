"""A run as it is read from its folder while a real server writes there, and after its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fake_grid import FakeGrid

from server.app import run_on
from server.rounds.events import Events
from server.run.log import EVALUATION, RoundReport
from server.watch.run_folder import RunFolder, RunNow
from zo_common.config.run import RunConfig
from zo_common.ledger.file import ledger_chains


def test_a_real_run_is_read_while_it_runs_and_after(
    settings: Callable[..., RunConfig], grid_of: Callable[..., FakeGrid]
) -> None:
    config = settings(round_timeout=200.0, num_server_rounds=2, eval_split="test")
    folder, seen = RunFolder(Path(config.output)), list[RunNow]()

    def on_round(report: RoundReport) -> None:
        seen.append(folder.read())

    run_on(grid_of(config), config, Events(on_round=on_round))
    now = folder.read()

    assert [(each.status, each.last_round) for each in seen] == [("running", 1), ("running", 2)]
    assert (now.status, now.last_round, now.target_rounds) == ("finished", 2, 2)
    chains = [chain.hex() for chain in ledger_chains(Path(config.output) / "ledger.zo")]
    assert [each.head for each in (*seen, now)] == [*chains[1:], chains[-1]]
    assert [row["server_round"] for row in now.curve] == [0, 2]
    assert {row["client_id"] for row in now.devices} == {0, 1, 2}
    assert now.settings["num-queries"] == 2 and now.epsilon_limit is None
    assert now.verdict == json.loads((folder.path / EVALUATION).read_text())["verdict"]
