"""What `start` and `follow` print: messages, rounds and the end; less with --quiet, one object with --json."""

from __future__ import annotations

import json

import pytest
from stand_in_flower import Flower, deployment, flower
from typer.testing import CliRunner, Result

from server.deploy.cli import app
from server.deploy.deployment import Deployment
from server.deploy.flower_log import FLOWER_LOG
from server.run.log_file import RUN_LOG

__all__ = ["deployment", "flower"]  # fixtures


def _follow(deployment: Deployment, flower: Flower, status: str, *options: str) -> Result:
    run = {"status": status, "status-details": "the details"}
    flower.answer({"log": "one\ntwo", "ls": {"success": True, "runs": [run]}})
    folder = deployment.runs / "example"
    folder.mkdir()
    (folder / "flower-run-id").write_text("12")
    (folder / RUN_LOG).write_text(
        "2026-01-01T00:00:00Z INFO chosen: tail-tokens 32\n"
        "2026-01-01T00:00:01Z INFO [ROUND 1] 3/3 devices, train loss 2\n"
        "2026-01-01T00:00:01Z INFO   └── checksum ab, 1.0 s\n2026-01-01T00:00:02Z WARNING guard: worse\n"
    )
    return CliRunner().invoke(app, ["follow", str(deployment.root), "example", *options])


def test_messages_are_shown_until_the_end(deployment: Deployment, flower: Flower) -> None:
    done = _follow(deployment, flower, "finished:completed")

    assert done.exit_code == 0
    assert done.stdout.startswith("chosen: tail-tokens 32\nguard: worse\nexample: finished; ledger and model are in ")
    assert (deployment.runs / "example" / FLOWER_LOG).read_text() == "one\ntwo\n"


@pytest.mark.parametrize(("status", "code"), [("finished:completed", 0), ("finished:failed", 1)])
def test_a_program_gets_one_object_and_people_the_log(
    deployment: Deployment, flower: Flower, status: str, code: int
) -> None:
    done = _follow(deployment, flower, status, "--json")
    found = {"run": "example", "status": status, "details": "the details", "output": str(deployment.runs / "example")}

    assert done.exit_code == code
    assert json.loads(done.stdout) == found
    assert done.stderr.startswith("chosen: tail-tokens 32\nguard: worse\n")
    assert ("one\ntwo\nall of Flower's log: " in done.stderr) == bool(code)


def test_quiet_says_only_what_went_wrong(deployment: Deployment, flower: Flower) -> None:
    done = _follow(deployment, flower, "finished:failed", "--quiet")

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "guard: worse",
        f"example: finished:failed (the details); continue with: zo-asr server resume {deployment.root} example",
    ]
