"""Attack: texts of a device, or of a server, hold escape sequences and markup for whoever reads them on a terminal."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console

from client.worker.cli import stderr_handler
from client.worker.view import show
from server.devices.roster import Introductions, _Registrations
from zo_common.adapters import hub_cli
from zo_common.cli import command_group, run_typer
from zo_common.console import shown
from zo_common.errors import LedgerError

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
MARKUP = "[red]all is well[/red][/]"


def test_introductions_and_errors_of_devices() -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    registrations = _Registrations(Introductions())
    asked = Message(RecordDict({"zo": ConfigRecord({"hello": b""})}), dst_node_id=5, message_type="query")
    asked.metadata.__dict__["_message_id"] = "1"
    registrations.take(Message(Error(2, f"it {ESCAPE}"), reply_to=asked))
    for payload in (f"no {ESCAPE} json".encode(), json.dumps({"error": ESCAPE, "client_id": ESCAPE}).encode()):
        content = RecordDict({"zo": ConfigRecord({"hello": payload})})
        registrations.take(Message(content, reply_to=asked))
    words = [*registrations.problems(), *registrations.messages.values()]
    assert len(words) >= 4
    assert not [word for word in words if "\x1b" in word or "\x07" in word]


def test_a_workers_status() -> None:
    status: dict[str, Any] = {
        "model": MARKUP, "fingerprint": "", "data": "d", "device": "cpu", "precision": "", "memory_bytes": 0,
        "round": 1, "start_round": 0, "checksum": "", "job": None, "counts": {}, "state_folder": "s", "unsaved": "",
        "last": {"kind": "train", "round": 1, "status": f"error: {MARKUP}{ESCAPE}", "at": ""},
    }  # fmt: skip
    output = io.StringIO()
    show(status, Console(file=output, width=300))
    written = output.getvalue()
    assert written.count(MARKUP) == 2 and "\x1b" not in written and "\x07" not in written


def test_a_workers_log(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda descriptor, data: written.append(data))
    with shown(stderr_handler()):
        logging.getLogger("client").warning(f"the plan asks for {ESCAPE}")
    monkeypatch.undo()
    assert b"the plan asks for" in written[0] and b"\x1b" not in written[0]


def test_the_error_of_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It may quote a ledger, a table or an adapter of other people."""
    app = command_group("A command.")

    @app.command()
    def fail() -> None:
        raise LedgerError(f"its model is called {ESCAPE}, in file \udcff")

    monkeypatch.setattr("sys.argv", ["command", "fail"])
    with pytest.raises(SystemExit):
        run_typer(app)()
    written = capsys.readouterr().err
    assert "its model is called" in written and "\x1b" not in written and "\x07" not in written
    assert "\\udcff" in written


def test_what_an_adapter_calls_its_base(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = SimpleNamespace(base_model_name_or_path=ESCAPE, rounds=3, checksum="ab")
    monkeypatch.setattr("zo_common.adapters.hub.pull", lambda *_: tmp_path)
    monkeypatch.setattr("zo_common.adapters.published.check_adapter", lambda _: said)
    hub_cli.pull("someone/adapter", None, "")
    written = capsys.readouterr().out
    assert "3 rounds on " in written and "\x1b" not in written
