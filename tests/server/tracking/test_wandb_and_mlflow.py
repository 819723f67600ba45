"""Runs at Weights & Biases (offline) and MLflow (files), read back from what their libraries wrote."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.tracking.tracker import RunFacts, Tracker

SETTINGS = {"num-queries": 8, "model": "m", "guard-split": ""}
FACTS = {"devices": 3, "base-checksum": "0123456789abcdef"}


def _run(make: Callable[[], Tracker], output: Path, rounds: range, **end: Any) -> None:
    """What a run tells a tracker."""
    output.mkdir(exist_ok=True)
    tracker = make()
    before = rounds.start - 1
    tracker.on_run_start(RunFacts(output, SETTINGS | {"rounds": rounds.stop}, FACTS, before, before > 0))
    for server_round in rounds:
        tracker.on_round(server_round, {"train/loss": 4.0 - server_round, "devices/asked": 3.0})
        tracker.on_warning(server_round, f"round {server_round} is odd")
    tracker.on_evaluation(rounds.stop - 1, {"evaluation/wer": 0.25})
    tracker.on_end({"status": "finished", "server_round": rounds.stop - 1, **end})


def _records(path: Path) -> Iterator[bytes]:
    """Records of a .wandb file: LevelDB's log format after a header of seven bytes."""
    data, place, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def _wandb_runs(output: Path) -> list[dict[str, Any]]:
    """All that the run's offline files hold, a dictionary for each start."""
    from wandb.proto.wandb_internal_pb2 import Record

    starts = []
    for path in sorted((output / "wandb").glob("offline-run-*/*.wandb"), key=lambda each: each.stat().st_mtime_ns):
        found: dict[str, Any] = {"history": {}, "alerts": [], "config": {}, "summary": {}}
        for data in _records(path):
            record = Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found["id"] = record.run.run_id
                found["config"] |= {each.key: json.loads(each.value_json) for each in record.run.config.update}
                found["said"] = str(record.run)
            elif kind == "history":
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                found["history"].setdefault(record.history.step.num, {}).update(row)
            elif kind == "alert":
                found["alerts"].append(record.alert.text)
            elif kind == "summary":
                found["summary"] |= {
                    "/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update
                }
            elif kind == "exit":
                found["exit"] = record.exit.exit_code
        starts.append(found)
    return starts


def test_a_run_and_its_resume_are_one_offline_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    from server.tracking.wandb import WandbTracker

    monkeypatch.delenv("WANDB_MODE", raising=False)
    _run(WandbTracker, tmp_path / "run", range(1, 3), checksum="aa")
    _run(WandbTracker, tmp_path / "run", range(3, 4), status="failed")

    # wandb's own service writes the files out after `finish` has returned
    until = time.monotonic() + 60
    while not all("exit" in each for each in _wandb_runs(tmp_path / "run")) and time.monotonic() < until:
        time.sleep(0.05)
    first, second = _wandb_runs(tmp_path / "run")
    assert first["id"] == second["id"] == (tmp_path / "run" / "wandb-run-id").read_text().strip()
    assert first["config"]["num-queries"] == 8 and first["config"]["devices"] == 3
    assert {step: row["train/loss"] for step, row in first["history"].items()} == {1: 3.0, 2: 2.0}
    assert first["history"][2]["evaluation/wer"] == 0.25
    assert second["history"][3]["train/loss"] == 1.0
    assert first["alerts"] == ["round 1 is odd", "round 2 is odd"]
    assert first["summary"]["checksum"] == "aa"
    assert (first["exit"], second["exit"]) == (0, 1)


def test_a_run_and_its_resume_are_one_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    from server.tracking.mlflow import MlflowTracker

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    output = tmp_path / "run"
    _run(MlflowTracker, output, range(1, 3))
    _run(MlflowTracker, output, range(3, 4), status="stopped", checksum="bb")

    client = mlflow.MlflowClient(tracking_uri=(output / "mlruns").as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name == "federated-zo-asr"]
    (run,) = client.search_runs([experiment.experiment_id])
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert {each.step: each.value for each in losses} == {1: 3.0, 2: 2.0, 3: 1.0}
    assert run.info.run_name == "run" and run.info.status == "KILLED"
    assert run.data.params["num-queries"] == "8" and run.data.params["devices"] == "3"
    assert run.data.params["rounds"] == "3" and run.data.tags["after-2.rounds"] == "4"
    assert run.data.tags["end.checksum"] == "bb"
    texts = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert texts == {"warnings-after-0.txt", "warnings-after-2.txt"}


REACHED = """
import socket, sys
from pathlib import Path
from server.tracking.choice import trackers_of
from server.tracking.tracker import RunFacts
from zo_common.config.run import RunConfig

def refuse(host, *rest, **more):
    print("asked for", host, flush=True)
    raise socket.gaierror("no network")

socket.getaddrinfo = refuse
output = Path(sys.argv[1])
for tracker in trackers_of(RunConfig(report_to="wandb,mlflow")):
    tracker.on_run_start(RunFacts(output, {}, {}, 0, False))
    tracker.on_round(1, {"train/loss": 1.0})
    tracker.on_end({"status": "finished", "server_round": 1})
"""


def test_no_library_reports_to_its_maker(tmp_path: Path) -> None:
    """Both have telemetry of their own, which is on by default, also offline."""
    for name in ("wandb", "mlflow"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    # MLflow's telemetry is off in tests and in continuous integration, which it knows by variables
    mine = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}

    found = subprocess.run(
        [sys.executable, "-c", REACHED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
        env=mine,
        cwd=tmp_path,
    )
    assert "asked for" not in found.stdout
