"""What rounds did to the held-out loss: known check after check, in the guard's log, and after a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from guard_log import guard_rows

from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError

Settings = Callable[..., RunConfig]
Federate = Callable[..., Federation]


def test_what_rounds_did_is_known_and_survives_a_resume(guarded: Settings, federate: Federate, found: Any) -> None:
    """Of undone rounds, too; against the weights that they began with, not against the best ones."""
    config = guarded(num_server_rounds=6, guard_every=2)
    found(1.0, 0.9, 1.4, 0.8, 0.9)  # base, rounds 2, 4 (undone) and 6, the average
    federation = federate(config)

    progress = federation.guard.progress()

    assert progress is not None
    assert [(p.after, p.server_round, p.step_factor) for p in progress] == [(0, 2, 1.0), (2, 4, 1.0), (4, 6, 0.5)]
    assert [p.change for p in progress] == pytest.approx([-0.1, 0.5, -0.1])
    assert all(p.error < 1e-9 for p in progress)  # paired: all utterances change alike
    found()
    assert federate(replace(config, resume=True)).guard.progress() == progress


@pytest.mark.parametrize("change", [{"after": 2}, {"after": 1, "mean": 0.1, "error": None}, 3])
def test_a_change_that_is_none_is_refused(guarded: Settings, federate: Federate, found: Any, change: Any) -> None:
    config = guarded(num_server_rounds=2)
    found(1.0, 0.9, 0.8, 0.9)
    federate(config)
    path = Path(config.output) / "guard.jsonl"
    rows = [row | ({"change": change} if "change" in row else {}) for row in guard_rows(config)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    with pytest.raises(ConfigError, match="not a check of the guard"):
        federate(replace(config, resume=True))
