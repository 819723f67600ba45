"""Whole runs in this process: the server's rounds, guard and accountant, and every device's ClientApp.

All of a run is the product's own code. What is left out are Flower's processes and its network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.privacy.rounds import Outcome
from client.device.warm import forget_all
from server.app import run_on
from server.devices.enrolment import Enrolment
from server.rounds.events import Events
from server.rounds.result import RunResult
from server.run.log import RoundReport
from train.one_process import OneProcess
from zo_common.config.run import RunConfig
from zo_common.privacy.charges import LOG_NAME, PrivacyLog, most_spent

_EVERY = 4  # rounds between two lines of progress


def run(config: RunConfig, devices: int, features: Path) -> Outcome:
    """Run a federation with every device asked in each round, and return what it came to.

    Args:
        features: folder of features that are computed once for all runs.

    Raises:
        ZOError: as `server.app.run_on`.
    """
    forget_all()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, output=folder, feature_cache=str(features))
        place = OneProcess(config, devices)
        run_on(place.grid, config, Events(on_round=_show), place.model_of, Enrolment(own_devices=True))
        result, spent, noise = RunResult.of(config), 0.0, 0.0
        if config.privacy != "none":
            log = PrivacyLog.read(Path(folder) / LOG_NAME)
            spent, noise = most_spent(log.spent, config.target_delta), log.charges[-1].noise_multiplier
    return Outcome(_measures(result.before), _measures(result.after), noise, spent)


def _measures(found: Mapping[str, Any] | None) -> dict[str, float]:
    return {name: float(found[name]) for name in ("loss", "wer", "cer")} if found else {}


def _show(report: RoundReport) -> None:
    if report.server_round % _EVERY == 0:
        held_out = report.scalars.get("guard/loss")
        beside = "" if held_out is None else f", held-out loss {held_out:.4f}"
        line = f"  round {report.server_round}: learning rate {report.learning_rate:.3g}{beside}"
        print(f"{line}, {report.seconds:.0f} s", flush=True)
