"""The guard of held-out speech under test: what it measures is replaced, what it logs is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from zo_common.config.run import RunConfig

LOSSES = "server.guards.held_out_guard.utterance_losses"
NOISE = np.array([-0.01, 0.0, 0.01])  # of one utterance against another; it is the same at every check


def guard_rows(config: RunConfig) -> list[dict[str, Any]]:
    """The lines of a run's `guard.jsonl`."""
    return [json.loads(line) for line in (Path(config.output) / "guard.jsonl").read_text().splitlines()]
