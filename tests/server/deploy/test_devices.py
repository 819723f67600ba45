"""Enrolling and revoking devices, before a stand-in for Flower's command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stand_in_flower import Call, Flower, call, deployment, flower

from server.deploy.deployment import Deployment
from server.deploy.flower import FlowerError
from zo_common.device_key import new_device_key
from zo_common.errors import ConfigError

__all__ = ["call", "deployment", "flower"]  # fixtures


def test_enroll_registers_those_who_wait(deployment: Deployment, flower: Flower, call: Call) -> None:
    flower.answer({"supernode register": {"success": True, "node-id": 2**63 + 5}})

    assert "node 9223372036854775813" in call("enroll")

    assert deployment.device("anna").node_id == "9223372036854775813"
    key = deployment.device_folder_of("anna") / "node.key.pub"
    asked = ["supernode", "register", str(key), "deployment", "--name", "anna", "--format", "json"]
    assert flower.asked == [["supernode", "list", "deployment", "--format", "json"], asked]
    with pytest.raises(ConfigError, match="no device waits"):
        call("enroll")


def test_commands_answer_programs_in_json(deployment: Deployment, flower: Flower, call: Call) -> None:
    flower.answer({"supernode": {"success": True, "node-id": 7}})

    found = json.loads(call("enroll", "--json"))

    client = deployment.device("anna").client_id
    assert found == {"devices": [{"name": "anna", "client_id": client, "node_id": "7"}]}
    assert json.loads(call("enroll", "cleo", "--json"))["devices"][0]["node_id"] is None  # without a key
    assert json.loads(call("revoke", "anna", "--json")) == {"name": "anna", "client_id": client, "revoked": True}


def test_a_device_that_could_not_be_registered_still_waits(deployment: Deployment, flower: Flower, call: Call) -> None:
    flower.answer({"supernode register": {"success": False, "error-message": "Error: Connection to SuperLink failed"}})

    with pytest.raises(FlowerError, match=r"start it with start\.sh"):
        call("enroll", "ben", "--make-keys")

    assert deployment.device("ben").node_id == ""
    flower.answer({"supernode register": {"success": True, "node-id": 7}})
    call("enroll", "ben", "--make-keys")
    assert deployment.device("ben").node_id == "7"


def test_a_revoked_device_has_no_key_here(deployment: Deployment, flower: Flower, call: Call) -> None:
    flower.answer({"supernode": {"success": True, "node-id": 7}})
    call("enroll")

    call("revoke", "anna")

    assert flower.asked[-1] == ["supernode", "unregister", "7", "deployment", "--format", "json"]
    assert deployment.device("anna").revoked
    assert not (deployment.device_folder_of("anna") / "node.key").exists()
    with pytest.raises(ConfigError, match="revoked already"):
        call("revoke", "anna")


def _refusal(code: int) -> dict[str, Any]:
    return {"success": False, "error-message": f"[code: {code}] SuperLink's word."}


KEY_IN_USE, NODE_NOT_FOUND = _refusal(23), _refusal(24)


def test_a_registration_that_was_cut_off_is_found_again(deployment: Deployment, flower: Flower, call: Call) -> None:
    before = {"success": True, "nodes": [{"node-id": "5", "status": "online"}]}
    since = {"success": True, "nodes": [*before["nodes"], {"node-id": str(2**63 + 5), "status": "registered"}]}
    flower.answer({"supernode register": _refusal(1), "supernode list": before})
    with pytest.raises(FlowerError):
        call("enroll", "anna")
    flower.answer({"supernode register": KEY_IN_USE, "supernode list": since})

    assert f"node {2**63 + 5}" in call("enroll")  # it waits, as nothing tells what became of its registration

    assert deployment.device("anna").node_id == str(2**63 + 5)


def test_revoke_takes_a_node_that_is_gone_for_revoked(deployment: Deployment, flower: Flower, call: Call) -> None:
    flower.answer({"supernode register": {"success": True, "node-id": 7}, "supernode unregister": NODE_NOT_FOUND})
    call("enroll")

    call("revoke", "anna")

    assert deployment.device("anna").revoked


def test_revoke_that_superlink_does_not_hear_is_none(deployment: Deployment, flower: Flower, call: Call) -> None:
    flower.answer({"supernode register": {"success": True, "node-id": 7}, "supernode unregister": _refusal(1)})
    call("enroll")

    with pytest.raises(FlowerError):
        call("revoke", "anna")

    assert not deployment.device("anna").revoked


@pytest.mark.parametrize(
    ("nodes", "node_id"),
    [([("7", "offline")], "7"), ([], "8"), ([("9", "online")], "8"), ([("7", "unregistered")], "8")],
)
def test_enroll_asks_superlink_for_a_device_that_was_registered(
    deployment: Deployment, flower: Flower, call: Call, nodes: list[tuple[str, str]], node_id: str
) -> None:
    flower.answer({"supernode register": {"success": True, "node-id": 7}})
    call("enroll", "anna")
    listed = [{"node-id": number, "status": status} for number, status in nodes]
    flower.answer(
        {"supernode register": {"success": True, "node-id": 8}, "supernode list": {"success": True, "nodes": listed}}
    )

    call("enroll", "anna")

    assert deployment.device("anna").node_id == node_id


def test_a_device_with_its_own_key_may_be_enrolled_again(
    deployment: Deployment, flower: Flower, call: Call, tmp_path: Path
) -> None:
    key = tmp_path / "its.pub"
    key.write_bytes(new_device_key()[1] + b" it@there\n")
    flower.answer({"supernode register": _refusal(1)})
    with pytest.raises(FlowerError):
        call("enroll", "cleo", "--public-key", str(key))
    flower.answer({"supernode register": {"success": True, "node-id": 7}, "supernode unregister": {"success": True}})

    assert "devices/cleo/ to it, unless it has that" in call("enroll", "cleo", "--public-key", str(key))
    first = deployment.device("cleo")
    call("revoke", "cleo")
    call("enroll", "cleo", "--public-key", str(key))

    assert deployment.device("cleo") == first
    assert (first.client_id, first.node_id) == (1, "7")
    (tmp_path / "other.pub").write_bytes(new_device_key()[1])
    with pytest.raises(ConfigError, match="enrolled already"):
        call("enroll", "cleo", "--public-key", str(tmp_path / "other.pub"))
