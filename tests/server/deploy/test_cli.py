"""`zo-asr server` before a stand-in for Flower's command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from stand_in_flower import Call, Flower, call, deployment, flower

from server.deploy import runs as deploy_runs
from server.deploy.certificates import load_authority, server_certificate
from server.deploy.deployment import Deployment
from server.deploy.flower import FlowerError, flwr_json, run_status
from server.deploy.flower_log import FLOWER_LOG
from server.deploy.runs import begin, follow, run_settings
from server.deploy.status import collect, warnings
from server.run.lock import RunLock
from server.run.model import open_header
from zo_common.errors import ConfigError
from zo_common.ledger.file import LedgerFile
from zo_common.ledger.ledger import TensorEntry

__all__ = ["call", "deployment", "flower"]  # fixtures


def test_init_and_its_refusals_are_one_sentence(tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "zo-asr"),
        "server",
        "init",
        "made",
        "--host",
        "localhost",
        "--device",
        "a",
    ]

    first, second = (
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60) for _ in range(2)
    )

    assert first.returncode == 0, first.stderr
    assert "zo-asr server enroll made NAME --public-key 'LINE'" in first.stdout
    assert Deployment.open(tmp_path / "made").device("a").client_id == 0
    assert second.returncode == 1
    assert second.stderr.startswith("error: ")
    assert len(second.stderr.splitlines()) == 1


def test_flower_is_asked_in_the_deployments_name(deployment: Deployment, flower: Flower) -> None:
    flower.answer({"ls": {"success": True, "runs": [{"status": "finished:completed", "status-details": ""}]}})

    assert run_status(deployment, "12") == ("finished:completed", "")

    _, home, folder = json.loads((flower.folder / "asked.jsonl").read_text())
    assert (home, folder) == (str(deployment.flower_home), str(deployment.root))


@pytest.mark.parametrize("answer", ["", "no json", "[1]", "{", {"success": False}])
def test_an_answer_that_is_none_is_told(deployment: Deployment, flower: Flower, answer: Any) -> None:
    flower.answer({"ls": answer})

    with pytest.raises(FlowerError, match="flwr ls"):
        flwr_json(deployment, "ls")


def test_flower_that_does_not_answer_is_left(deployment: Deployment, flower: Flower) -> None:
    (flower.folder / "flwr").write_text("#!/bin/sh\nexec sleep 30\n")

    with pytest.raises(FlowerError, match="no answer in 0 s"):
        flwr_json(deployment, "ls", timeout=0.2)


NOT_FOUND = {"success": False, "error-message": "[code: 16] Run ID not found."}


def _finished(status: str, details: str = "") -> dict[str, Any]:
    return {"success": True, "runs": [{"status": status, "status-details": details}]}


def test_start_hands_the_run_over_and_keeps_its_log(deployment: Deployment, flower: Flower, call: Call) -> None:
    flower.answer(
        {
            "run": {"success": True, "run-id": "12"},
            "log 12": "[ROUND 1]\n[ROUND 2]",
            "ls": _finished("finished:completed"),
        }
    )

    said = call("start", "example", "--set", "num-queries=2", "--set", "language=de", "--set", "epsilon=1e-4")

    assert (deployment.runs / "example" / FLOWER_LOG).read_text() == "[ROUND 1]\n[ROUND 2]\n"
    assert "rounds of 8 step(s) x 2 queries" in said
    assert f"ledger and model are in {deployment.runs}/example" in said
    used = deployment.runs / "example" / "run-config.toml"
    assert flower.asked[0] == ["run", str(deployment.app), "deployment", "--run-config", str(used), "--format", "json"]
    text = used.read_text()
    for line in (
        "num-queries = 2",
        'language = "de"',
        "epsilon = 0.0001",
        "resume = false",
        f'output = "{used.parent}"',
    ):
        assert line in text


def test_a_run_that_failed_fails_the_command(flower: Flower, call: Call) -> None:
    flower.answer(
        {"run": {"success": True, "run-id": "12"}, "log": "", "ls": _finished("finished:failed", "no devices came")}
    )

    assert "no devices came" in call("start", "example", fails=True)


def test_start_refuses_a_ledger_and_resume_wants_one(deployment: Deployment, flower: Flower, call: Call) -> None:
    with pytest.raises(ConfigError, match="use start example"):
        call("resume", "example")
    (deployment.runs / "example").mkdir(exist_ok=True)
    (deployment.runs / "example" / "ledger.zo").write_bytes(b"rounds")
    with pytest.raises(ConfigError, match="resume example"):
        call("start", "example")
    assert flower.asked == []

    flower.answer({"run": {"success": True, "run-id": "12"}, "log": "", "ls": _finished("finished:completed")})
    call("resume", "example")

    assert "resume = true" in (deployment.runs / "example" / "run-config.toml").read_text()


def test_a_resume_with_another_batch_size_is_refused_before_flower_is_asked(
    deployment: Deployment, flower: Flower, call: Call
) -> None:
    settings = run_settings(deployment, "example")
    header = open_header(settings, ("ab" * 32, 7, (TensorEntry("w", (3,), -24, 0),)))
    LedgerFile.create(deployment.runs / "example" / "ledger.zo", header)

    with pytest.raises(ConfigError, match=f"^batch-size is {settings.batch_size} in the ledger, 99 was asked"):
        call("resume", "example", "--set", "batch-size=99")

    assert flower.asked == []
    assert [path.name for path in (deployment.runs / "example").iterdir()] == ["ledger.zo"]


@pytest.mark.parametrize("status", ["pending", "starting", "running"])
def test_a_run_under_way_is_not_started_twice(deployment: Deployment, flower: Flower, call: Call, status: str) -> None:
    flower.answer({"run": {"success": True, "run-id": "12"}, "ls": _finished(status)})
    begin(deployment, "example", resume=False)
    (deployment.runs / "example" / "ledger.zo").write_bytes(b"rounds")
    lock = RunLock(deployment.runs / "example")

    with pytest.raises(ConfigError, match="example is running: follow or stop it"):
        call("resume", "example")

    lock.release()
    assert [asked[0] for asked in flower.asked] == ["run", "ls"]


def test_a_run_whose_server_was_killed_is_resumed_at_once(deployment: Deployment, flower: Flower) -> None:
    flower.answer({"run": {"success": True, "run-id": "12"}, "ls": _finished("running")})
    begin(deployment, "example", resume=False)
    (deployment.runs / "example" / "ledger.zo").write_bytes(b"rounds")
    (deployment.runs / "example" / ".lock").touch()

    assert begin(deployment, "example", resume=True) == "12"


@pytest.mark.parametrize("last", [_finished("finished:failed"), NOT_FOUND, {"success": True, "runs": []}])
def test_a_run_that_has_ended_may_be_started_again(
    deployment: Deployment, flower: Flower, last: dict[str, Any]
) -> None:
    flower.answer({"run": {"success": True, "run-id": "12"}, "ls": last})
    begin(deployment, "example", resume=False)

    assert begin(deployment, "example", resume=False) == "12"


def test_a_run_of_which_superlink_says_nothing_is_not_started(deployment: Deployment, flower: Flower) -> None:
    flower.answer(
        {"run": {"success": True, "run-id": "12"}, "ls": {"success": False, "error-message": "no connection"}}
    )
    begin(deployment, "example", resume=False)

    with pytest.raises(FlowerError, match="cannot be reached"):
        begin(deployment, "example", resume=False)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("num-querys=2", "did you mean 'num-queries'"),
        ("num-queries=two", "expected int"),
        ("num-queries", "not key=value"),
        ("output=x", "leave it out"),
        ("resume=true", "leave it out"),
        ("epsilon=0", "epsilon"),
    ],
)
def test_wrong_changes_are_told_before_flower_is_asked(
    deployment: Deployment, flower: Flower, change: str, word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        begin(deployment, "example", [change], resume=False)
    assert flower.asked == []
    assert not (deployment.runs / "example").exists()


@pytest.mark.parametrize("run", ["../example", "missing", "a b"])
def test_a_run_without_settings_is_told(deployment: Deployment, run: str) -> None:
    with pytest.raises(ConfigError):
        run_settings(deployment, run)


def test_paths_of_a_run_are_those_of_the_folder(deployment: Deployment) -> None:
    (deployment.root / "speech").mkdir()
    (deployment.runs / "own.toml").write_text('model = "openai/whisper-base"\ndata = "speech"\n')

    settings = run_settings(deployment, "own")

    assert settings.data == str(deployment.root / "speech")
    assert settings.model == "openai/whisper-base"


def test_a_log_goes_on_where_it_was_cut_off(deployment: Deployment, flower: Flower) -> None:
    gone = {"success": False, "error-message": "connection refused"}
    flower.answer(
        {"log": ["one\ntwo", "", "one\ntwo\nthree"], "ls": [_finished("running"), gone, _finished("finished:stopped")]}
    )
    lines: list[str] = []

    assert follow(deployment, "12", lines.append) == ("finished:stopped", "")

    assert [line for line in lines if line] == ["one", "two", "three"]


def test_a_superlink_that_stays_away_ends_the_wait(
    deployment: Deployment, flower: Flower, monkeypatch: pytest.MonkeyPatch
) -> None:
    flower.answer({"log": "", "ls": {"success": False, "error-message": "connection refused"}})
    monkeypatch.setattr(deploy_runs, "_LOST_SECONDS", 0.05)

    with pytest.raises(FlowerError, match="cannot be reached"):
        follow(deployment, "12", lambda _: None)


def test_stop_stops_the_last_start(deployment: Deployment, flower: Flower, call: Call) -> None:
    with pytest.raises(ConfigError, match="not started from this folder"):
        call("stop", "example")
    flower.answer({"run": {"success": True, "run-id": "12"}, "stop": {"success": True}})
    begin(deployment, "example", resume=False)

    assert "resume" in call("stop", "example")
    assert flower.asked[-1] == ["stop", "12", "deployment", "--format", "json"]
    found = json.loads(call("stop", "example", "--json"))
    assert (found["run"], found["stopped"]) == ("example", True)
    assert found["resume"].startswith("zo-asr server resume ") and found["resume"].endswith(" example")
    ended = "Stopping run ID 12... [code: 18] Run is already finished."
    flower.answer({"stop": {"success": False, "error-message": ended}})
    with pytest.raises(ConfigError, match=r"^example has ended already, expected a run in progress"):
        call("stop", "example")


def test_a_run_that_was_stopped_is_one_line(flower: Flower, call: Call) -> None:
    flower.answer(
        {"run": {"success": True, "run-id": "12"}, "log": "a line", "ls": _finished("finished:stopped", "N/A")}
    )

    said = call("start", "example", fails=True)

    assert "example: stopped; continue with: zo-asr server resume" in said
    assert "N/A" not in said and "a line" not in said


def _node(node: str, status: str) -> dict[str, str]:
    return {"node-id": node, "status": status}


def test_status_joins_what_flower_and_the_run_say(deployment: Deployment, flower: Flower, call: Call) -> None:
    nodes = {"success": True, "nodes": [_node("7", "online"), _node("8", "offline")]}
    flower.answer({"supernode register": {"success": True, "node-id": 7}, "supernode list": nodes})
    call("enroll")
    output = deployment.runs / "one"
    output.mkdir()
    (output / "ledger.zo").write_bytes(b"x" * 586)
    told = {"client_id": 0, "node_id": 7, "name": "anna", "have_round": 3, "last_seen_round": 4, "payload_up": 58}
    told |= {"payload_down": 60, "refused": {"late": 2}, "standing": "backing-off", "until_round": 6, "word": "slow"}
    (output / "devices.json").write_text(json.dumps({"devices": [told], "server_round": 4}))
    row = {"asked": 2, "answered": 1, "loss": 0.5, "refused": {}, "seconds": 1.0}
    row |= {"up": {"payload": 58, "serialised": 90}, "down": {"payload": 60, "serialised": 95}}
    lines = [json.dumps(row | {"server_round": number}) for number in range(1, 9)]
    (output / "rounds.jsonl").write_text("\n".join([*lines, '{"server_ro']))

    found = json.loads(call("status", "one", "--json"))

    [device] = found["devices"]
    assert (device["name"], device["state"], device["have_round"], device["refused"]) == (
        "anna",
        "online",
        3,
        {"late": 2},
    )
    assert (found["rounds_done"], found["ledger_bytes"]) == (8, 586)
    assert [row["server_round"] for row in found["rounds"]] == [4, 5, 6, 7, 8]
    assert found["processes"]["superlink"].startswith("down")
    shown = call("status", "one")
    for word in ("anna", "online", "late 2", "586 B", "365 days"):
        assert word in shown


def test_a_devices_word_is_shown_as_it_is(deployment: Deployment, flower: Flower, call: Call) -> None:
    flower.answer({"supernode list": {"success": True, "nodes": []}})
    output = deployment.runs / "one"
    output.mkdir()
    told = {"client_id": 0, "standing": "[/i]", "word": "[/b] oops \x1b[2J :bug:", "refused": {"[red]x": 1}}
    (output / "devices.json").write_text(json.dumps({"devices": [told]}))

    shown = "".join(call("status", "one").split())

    for word in ("[/i]", "[/b]", "oops", "[2J", ":bug:", "[red]x"):
        assert word in shown
    assert "\x1b" not in shown


def test_flowers_word_of_a_run_that_failed_is_shown_as_it_is(flower: Flower, call: Call) -> None:
    flower.answer({"run": {"success": True, "run-id": "12"}, "log": "", "ls": _finished("finished:failed", "[/b] no")})

    assert "([/b] no)" in call("start", "example", fails=True)


def test_status_without_a_superlink_says_so(deployment: Deployment, flower: Flower, call: Call) -> None:
    flower.answer({"supernode list": {"success": False, "error-message": "connection refused"}})

    shown = call("status")

    assert "SuperLink cannot be reached" in shown.replace("\n", " ")


def test_status_of_a_run_that_is_none_is_told(call: Call) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        call("status", "missing")


@pytest.mark.parametrize(("age", "word"), [(340, "expires in 24 days"), (400, "has expired")])
def test_status_warns_of_a_certificate_that_ends(deployment: Deployment, flower: Flower, age: int, word: str) -> None:
    flower.answer({"supernode list": {"success": True, "nodes": []}})
    authority = load_authority(deployment.authority, deployment.authority_key)
    past = datetime.now(UTC) - timedelta(days=age, hours=12)
    certificate, _ = server_certificate(authority, deployment.hosts, past)
    deployment.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))

    [told] = [each for each in warnings(collect(deployment)) if word in each]

    assert f"zo-asr server renew {deployment.root}" in told


def test_units_follow_a_change_of_the_settings(deployment: Deployment, call: Call) -> None:
    path = deployment.root / "deployment.toml"
    path.write_text(replace(deployment, hosts=("new.example.org",), superlink_port=9555).settings_text())

    call("units")

    assert "127.0.0.1:9555" in (deployment.flower_home / "config.toml").read_text()
    assert "new.example.org" in (deployment.device_folder_of("anna") / "start-device.sh").read_text()


def test_the_proxy_needs_no_torch() -> None:
    """It runs for months beside other things: it must stay small."""
    code = "import sys, server.deploy.cli, server.deploy.proxy; assert not {'torch', 'flwr'} & set(sys.modules)"

    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
