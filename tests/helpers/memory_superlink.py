"""A SuperLink in memory for the registration of devices, beside which the server's command may be killed anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from server.deploy import deployment as deploy_deployment
from server.deploy import registration
from server.deploy.deployment import Deployment
from server.deploy.flower import KEY_IN_USE, NODE_NOT_FOUND, FlowerError


class Killed(BaseException):
    """End of the command's process."""


class SuperLink:
    """What SuperLink does of `flwr supernode`: a key has one node for good, also after that has ended."""

    def __init__(self) -> None:
        self.nodes: dict[str, tuple[str, str]] = {}  # id → its key and its state
        self.steps = 0  # requests before and after their answers, and writes of devices.toml before and after
        self.dies_at = -1
        self.answer_is_lost = False  # the command is killed between SuperLink's registration and its answer
        self.reachable = True
        self._made = 6

    def step(self) -> None:
        """Kill the command here if that is asked for."""
        self.steps += 1
        if self.steps == self.dies_at:
            raise Killed

    def register(self, key: str) -> str:
        """Register a key, as an operator may by hand."""
        if any(key == known for known, _ in self.nodes.values()):
            raise FlowerError("[code: 23] in use", KEY_IN_USE)
        self._made += 1
        self.nodes[str(self._made)] = (key, "registered")
        return str(self._made)

    def unregister(self, node_id: str) -> None:
        """End a node, as an operator may by hand."""
        key, state = self.nodes.get(node_id, ("", "unregistered"))
        if state == "unregistered":
            raise FlowerError("[code: 24] not found", NODE_NOT_FOUND)
        self.nodes[node_id] = (key, "unregistered")

    def accepts(self, key: str) -> bool:
        """Return whether a node with the key may connect."""
        return any(key == known and state != "unregistered" for known, state in self.nodes.values())

    def flwr_json(self, deployment: Deployment, *arguments: str, timeout: float = 0.0) -> dict[str, Any]:
        """As the function of that name."""
        self.step()
        if not self.reachable:
            raise FlowerError("SuperLink cannot be reached")
        answer: dict[str, Any] = {"success": True}
        if arguments[1] == "list":
            answer["nodes"] = [{"node-id": name, "status": state} for name, (_, state) in self.nodes.items()]
        elif arguments[1] == "register":
            answer["node-id"] = int(self.register(Path(arguments[2]).read_text().strip()))
            if self.answer_is_lost:
                raise Killed
        else:
            self.unregister(arguments[2])
        self.step()
        return answer

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of Flower's commands, and see each write of devices.toml."""
        write = deploy_deployment.write_durably

        def write_durably(path: Path, *rest: Any) -> None:
            self.step()
            write(path, *rest)
            self.step()

        monkeypatch.setattr(os, "fsync", lambda _: None)  # the machine does not die, and there are thousands of writes
        monkeypatch.setattr(registration, "flwr_json", self.flwr_json)
        monkeypatch.setattr(deploy_deployment, "write_durably", write_durably)
