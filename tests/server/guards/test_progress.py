"""What rounds did to the held-out loss: known check after check, in the guard's log, and after a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError

Settings = Callable[..., RunConfig]
Federate = Callable[..., Federation]
LOSSES = "server.guards.held_out_guard.utterance_losses"
NOISE = np.array([-0.01, 0.0, 0.01])  # of one utterance against another; it is the same at every check


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the mean losses that the guard's checks find, one after the other."""

    def script(*checks: float) -> None:
        left = list(checks)
        monkeypatch.setattr(LOSSES, lambda *_: left.pop(0) + NOISE)

    return script


@pytest.fixture
def guarded(ctc_settings: Settings) -> Settings:
    """Settings of a supervised run that is guarded on three utterances."""
    return lambda **changes: ctc_settings(**{"eval_split": "", "guard_split": "test", "guard_every": 1, **changes})


def _rows(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / "guard.jsonl").read_text().splitlines()]


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
    rows = [row | ({"change": change} if "change" in row else {}) for row in _rows(config)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    with pytest.raises(ConfigError, match="not a check of the guard"):
        federate(replace(config, resume=True))
