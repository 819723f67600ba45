"""What `start` and `follow` print: a log and its end, less with --quiet, one object with --json."""

from __future__ import annotations

import json

import pytest
from stand_in_flower import Flower, deployment, flower
from typer.testing import CliRunner, Result

from server.deploy.cli import app
from server.deploy.deployment import Deployment

__all__ = ["deployment", "flower"]  # fixtures


def _follow(deployment: Deployment, flower: Flower, status: str, *options: str) -> Result:
    run = {"status": status, "status-details": "the details"}
    flower.answer({"log": "one\ntwo", "ls": {"success": True, "runs": [run]}})
    folder = deployment.runs / "example"
    folder.mkdir()
    (folder / "flower-run-id").write_text("12")
    return CliRunner().invoke(app, ["follow", str(deployment.root), "example", *options])


def test_a_log_is_shown_until_its_end(deployment: Deployment, flower: Flower) -> None:
    done = _follow(deployment, flower, "finished:completed")

    assert done.exit_code == 0 and done.stdout.startswith("one\ntwo\n") and "finished" in done.stdout


@pytest.mark.parametrize(("status", "code"), [("finished:completed", 0), ("finished:failed", 1)])
def test_a_program_gets_one_object_and_people_the_log(
    deployment: Deployment, flower: Flower, status: str, code: int
) -> None:
    done = _follow(deployment, flower, status, "--json")
    found = {"run": "example", "status": status, "details": "the details", "output": str(deployment.runs / "example")}

    assert done.exit_code == code
    assert json.loads(done.stdout) == found
    assert done.stderr == "one\ntwo\n"


def test_quiet_says_only_what_went_wrong(deployment: Deployment, flower: Flower) -> None:
    done = _follow(deployment, flower, "finished:failed", "--quiet")

    assert done.exit_code == 1
    assert done.output.strip() == "example: finished:failed (the details): resume goes on from the ledger"
