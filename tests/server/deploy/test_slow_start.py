"""A machine on which Flower cannot start a run's process: the operator is told once."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from stand_in_flower import Flower, deployment, flower

from server.deploy import slow_start
from server.deploy.deployment import Deployment
from server.deploy.slow_start import watched_start

__all__ = ["deployment", "flower"]  # fixtures


def _run(status: str) -> dict[str, Any]:
    return {"success": True, "runs": [{"status": status, "status-details": "N/A"}]}


def _warnings(
    deployment: Deployment,
    flower: Flower,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *answers: Any,
) -> list[str]:
    """Return what is warned of while SuperLink gives these answers, the last one for ever."""
    monkeypatch.setattr(slow_start, "_PATIENCE_SECONDS", 0.05)
    flower.answer({"ls": list(answers)})
    with caplog.at_level(logging.WARNING), watched_start(deployment, "12"):
        until = time.monotonic() + 30
        while len(flower.asked) < len(answers) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(2.0)  # the last answer is read, and none is asked for after it
    assert len(flower.asked) == len(answers)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("status", ["pending", "starting"])
def test_a_process_that_never_reports_is_warned_of_once(
    status: str,
    deployment: Deployment,
    flower: Flower,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = {"success": False, "error-message": "connection refused"}
    (found,) = _warnings(deployment, flower, monkeypatch, caplog, lost, _run(status))
    assert "the server's process has not started" in found and "Flower gives each try 30 s" in found


def test_a_run_that_runs_is_not(
    deployment: Deployment, flower: Flower, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert _warnings(deployment, flower, monkeypatch, caplog, _run("running")) == []
