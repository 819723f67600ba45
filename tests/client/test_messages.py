"""What a device's app says where Flower starts it."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app, make_client_app
from client.device.sum_keys import NO_PEERS
from zo_common.secure_sum.server import SecureServer
from zo_common.secure_sum.terms import Terms


def _invite(app: Any) -> Message:
    """A server's invitation to a first secure sum, to a device that knows no peers."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    content = RecordDict({"zo": ConfigRecord({"secure": SecureServer(Terms(bytes(16), 1, 3, 0.6, 0)).invitation()})})
    message = Message(content, dst_node_id=7, message_type="query.secure")
    run_config = {"secure-aggregation": True}
    return app(message, Context(1, 7, {}, RecordDict(), run_config))  # type: ignore[no-any-return]


def test_the_app_that_flower_starts_prints_its_messages(capsys: pytest.CaptureFixture[str]) -> None:
    answer = _invite(app)

    assert "reply" in answer.content.config_records["zo"]
    assert capsys.readouterr().out == NO_PEERS + "\n"


def test_an_app_of_a_program_leaves_them_to_its_logging(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _invite(make_client_app())

    assert capsys.readouterr() == ("", "")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", NO_PEERS)]
