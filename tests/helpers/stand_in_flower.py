"""A deployment folder whose commands find a stand-in for Flower's command line."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.deploy import runs as deploy_runs
from server.deploy.cli import app
from server.deploy.deployment import Deployment
from server.deploy.folder import init_folder
from zo_common.errors import ZOError

# answers as flwr does, from answers.json beside it: words of a command → what to print, or a list to take in turn
STAND_IN = """#!{python}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "asked.jsonl").open("a") as file:
    file.write(json.dumps([sys.argv[1:], os.environ.get("FLWR_HOME"), os.getcwd()]) + "\\n")
answers = json.loads((here / "answers.json").read_text())
for words, answer in answers.items():
    if sys.argv[1:1 + len(words.split())] == words.split():
        if isinstance(answer, list):
            if len(answer) > 1:
                (here / "answers.json").write_text(json.dumps(answers | {{words: answer[1:]}}))
            answer = answer[0]
        print("Loading project configuration...", file=sys.stderr)
        print(answer if isinstance(answer, str) else json.dumps(answer))
        sys.exit(0 if not isinstance(answer, dict) or answer.get("success") else 1)
sys.exit(7)
"""


class Flower:
    """The stand-in: what it is to answer and what it was asked."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "flwr").write_text(STAND_IN.format(python=sys.executable))
        (folder / "flwr").chmod(0o755)
        self.folder = folder
        self.answer({})

    def answer(self, answers: dict[str, Any]) -> None:
        """Give these answers; without one for it, SuperLink lists no nodes."""
        answers = {"supernode list": {"success": True, "nodes": []}} | answers
        (self.folder / "answers.json").write_text(json.dumps(answers))

    @property
    def asked(self) -> list[list[str]]:
        path = self.folder / "asked.jsonl"
        return [json.loads(line)[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def flower(tmp_path: Path) -> Flower:
    return Flower(tmp_path / "bin")


@pytest.fixture
def deployment(tmp_path: Path, flower: Flower, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """A folder with one device, whose commands find the stand-in."""
    monkeypatch.setattr(sys, "executable", str(flower.folder / "python"))
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = {"port": one.getsockname()[1], "superlink_port": two.getsockname()[1]}
    made = Deployment(root=tmp_path / "deployment", hosts=("localhost",), **ports)
    init_folder(made, ["anna"], make_keys=True)
    monkeypatch.setattr(deploy_runs, "_PAUSE_SECONDS", 0.01)
    return made


Call = Callable[..., str]


@pytest.fixture
def call(deployment: Deployment) -> Call:
    """Runs a command on the folder; a user error is raised as it is."""

    def run(command: str, *arguments: str, fails: bool = False) -> str:
        done = CliRunner().invoke(app, [command, str(deployment.root), *arguments])
        if isinstance(done.exception, ZOError):
            raise done.exception
        assert (done.exit_code != 0) == fails, done.output
        return done.output

    return run
