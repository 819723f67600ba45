"""Attack: a device is busy, catches up or is silent, and each round or evaluation waits for it to its time-out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid
from toy_fleet import TOY, toy_grids

from client.device import requests as device
from client.error_text import DroppedOut
from server.devices.absences import Absences
from server.devices.device_status import DeviceStatuses
from server.devices.roster import Member
from server.rounds.events import Events
from server.rounds.federation import Federation
from server.rounds.held_out import HeldOut
from server.run.log import RoundReport
from zo_common.config.run import RunConfig
from zo_common.secure_sum.messages import RevealRequest, Survivors
from zo_common.speech.metrics import Scores
from zo_common.wire.evaluation import EvaluationReply
from zo_common.wire.plan import Status, decode_reply, encode_reply

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]


def test_a_device_that_is_always_busy_is_asked_less_and_less(
    settings: Settings, federate: Callable[..., Federation], grid_of: Grids
) -> None:
    config = settings(num_server_rounds=14, round_timeout=600.0)
    grid = grid_of(config)

    def busy(server_round: int, payload: bytes) -> bytes:
        reply = decode_reply(payload)
        return encode_reply(replace(reply, status=Status.BUSY, projected_grads=reply.projected_grads[:0]))

    grid[2].after = busy

    federate(config, grid)

    assert [r for r in grid[2].asked if r] == [1, 2, 3, 5, 8, 13]


@pytest.mark.parametrize("reason", ["client-busy", "catching-up"])
def test_at_most_eight_rounds_pass_without_it_and_an_answer_forgives(reason: str) -> None:
    statuses, asked = DeviceStatuses(), []
    for server_round in range(1, 60):
        if statuses.may_be_asked(1, server_round):
            asked.append(server_round)
            statuses.failed(1, server_round, reason, "a word")
    assert asked == [1, 2, 3, 5, 8, 13, 22, 31, 40, 49, 58]

    statuses.answered(1, 60)

    statuses.failed(1, 61, reason, "a word")
    assert statuses.may_be_asked(1, 62)


@pytest.mark.parametrize("step", [Survivors, RevealRequest])
def test_a_device_that_masks_and_then_falls_silent_is_asked_less_and_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any, step: Any
) -> None:
    """Its vector counts, and each of the last steps waits for it."""
    secure: dict[str, Any] = {"directions": "shared", "secure_aggregation": True, "num_server_rounds": 9}
    config = RunConfig(**{**TOY, **secure, "round_timeout": 300.0, "output": str(tmp_path / "run")})
    grid = toy_grids(monkeypatch, 5)(config)
    honest, trained = grid._ask, []

    def ask(device: Any, message: Any, server_round: int) -> Any:
        data = message.content.config_records["zo"].get("secure", b"")
        if device is grid[4] and message.metadata.message_type == "train":
            trained.append(server_round)
        if device is grid[4] and message.metadata.message_type == "query.secure" and data[3] == step.KIND:
            raise ConnectionError("silent")
        return honest(device, message, server_round)

    monkeypatch.setattr(grid, "_ask", ask)

    Federation(config, grid, observed.events).run()

    assert sorted(set(trained)) == [1, 2, 3, 5, 8]
    assert [r.answered for r in observed.reports] == [5, 5, 5, 4, 5, 4, 4, 5, 4]


class TestEvaluations:
    """A device that answers each training may let each evaluation wait: answers to one do not forgive the other."""

    def _run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[int], Any], rounds: int = 14
    ) -> tuple[list[RoundReport], list[int]]:
        """A run with an evaluation after each round; when device 1 was asked for one, for which `answer` speaks."""
        evaluates: dict[str, Any] = {"evaluate_on": "clients", "evaluate_every": 1, "eval_split": "test"}
        config = RunConfig(
            **{**TOY, **evaluates, "num_server_rounds": rounds, "round_timeout": 300.0, "guard_split": "none"},
            output=str(tmp_path / "run"),
        )
        asked: list[int] = []
        reports: list[RoundReport] = []

        def evaluate(config: RunConfig, plan: Any, identity: Any, **_: Any) -> EvaluationReply:
            if identity.client_id == 1:
                asked.append(plan.server_round - 1)
                if (status := answer(plan.server_round - 1)) is not Status.OK:
                    return EvaluationReply(status, plan.server_round, 0, 1, 0)
            engine = device.warm_engine(config)
            reply = EvaluationReply(engine.sync(plan), plan.server_round, engine.have_round, plan.client_id, 0)
            return replace(reply, checksum=engine.state.checksum(), scores=Scores(utterances=10))

        monkeypatch.setattr(device, "evaluate", evaluate)
        events = Events(on_evaluate=HeldOut(config), on_round=reports.append)
        Federation(config, toy_grids(monkeypatch, 3)(config), events).run()
        return reports, asked

    def test_the_silent_are_asked_less_and_less(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def silent(server_round: int) -> Any:
            raise DroppedOut("silent")

        observed, asked = self._run(tmp_path, monkeypatch, silent)
        assert asked == [0, 1, 2, 4, 7, 12]
        assert [report.answered for report in observed] == [3] * 14  # it trains all the same

    def test_an_answer_forgives_and_an_error_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        statuses = {0: Status.BUSY, 1: Status.BUSY, 3: Status.BUSY, 4: Status.BUSY}
        _, asked = self._run(tmp_path, monkeypatch, lambda n: statuses.get(n, Status.OK), rounds=6)
        assert asked == list(range(7))
        _, asked = self._run(tmp_path / "2", monkeypatch, lambda _: Status.ERROR, rounds=6)
        assert asked == list(range(7))

    def test_where_all_are_absent_all_are_asked(self) -> None:
        absences, members = Absences(), [Member(100 + n, n, 5, {}) for n in range(2)]
        for _ in range(3):
            absences.note(absences.willing(members), {100, 101})
        assert absences.willing(members) == members
