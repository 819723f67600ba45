"""Attack: plans with a learning rate at which training fails, so that the error's text tells what was measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_grid import FakeGrid
from flwr.common.serde import recorddict_to_proto

from client.device import requests as device
from client.device.engine import Engine
from client.device.privacy_account import PrivacyAccount
from client.device.secure_sums import FAILED
from client.device.warm import warm_engine
from client.device_identity import DeviceIdentity
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed
from zo_common.privacy.accountant import Release, epsilon_spent
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan import Plan, Reply, Status

Settings = Callable[..., RunConfig]
EXAMPLE, DEVICE = Mechanism("example", 1.0, 2.0, 9), Mechanism("device", 1.0, 2.0, 1)
RATE = 1e30
WORDS = ("lattice", "coefficient", "e+", "broken recording")


def _ask(
    config: RunConfig, mechanism: Mechanism | None, account: PrivacyAccount | None = None, **changes: Any
) -> Reply:
    engine = warm_engine(config)
    engine.rewind(0)
    plan = Plan(
        1, client_seed(0, 1, 3), 3, engine.base_id, engine.base_checksum, changes.get("local_steps", 2), 2,
        changes.get("learning_rate", RATE), config.estimator_config, (), mechanism,
    )  # fmt: skip
    reply = device.train(config, plan, DeviceIdentity(3), account=account)
    assert engine.state.checksum() == engine.base_checksum
    return reply


def _is_noise(reply: Reply, steps: int = 2) -> bool:
    found = reply.status, reply.message, reply.have_round, reply.loss, reply.projected_grads.shape
    return found == (Status.OK, "", 0, 0.0, (steps, 2)) and bool((reply.projected_grads != 0).all())


@pytest.mark.parametrize("mechanism", [EXAMPLE, DEVICE], ids=lambda m: m.level)
def test_a_step_beyond_the_lattice_is_charged_and_answered_with_noise(
    settings: Settings, tmp_path: Path, mechanism: Mechanism
) -> None:
    config, account = settings(), PrivacyAccount(tmp_path / "account", 100.0)
    assert _is_noise(_ask(config, mechanism, account))
    release = Release(2.0, 2, 9) if mechanism is EXAMPLE else Release(2.0)
    assert account.epsilon == epsilon_spent({release: 2 if mechanism is EXAMPLE else 1}, 1e-6)


def test_the_last_steps_update_leaves_no_trace(settings: Settings) -> None:
    """It would be undone at once; whether it stays in the lattice would tell of the scalars, by a rate of choice."""
    here, still = (_ask(settings(), None, local_steps=1, learning_rate=rate) for rate in (RATE, 0.0))
    assert here.status is still.status is Status.OK
    assert here.projected_grads.tobytes() == still.projected_grads.tobytes()
    assert _is_noise(_ask(settings(), EXAMPLE, local_steps=1), steps=1)


@pytest.mark.parametrize("mechanism", [EXAMPLE, DEVICE], ids=lambda m: m.level)
def test_what_nobody_foresaw_is_charged_and_answered_with_noise(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: Mechanism
) -> None:
    def fail(self: Engine, batch: Any) -> Any:
        raise RuntimeError("a broken recording says 12.5")

    monkeypatch.setattr(Engine, "loss_fn", fail)
    account = PrivacyAccount(tmp_path / "account", 100.0)
    assert _is_noise(_ask(settings(), mechanism, account, learning_rate=1e-6))
    assert account.epsilon > 0


def test_an_utterance_that_fails_silences_no_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one utterance decides over the contributions of all, which the noise is not made for."""
    seen: list[int] = []
    monkeypatch.setattr(Engine, "loss_fn", lambda self, batch: _failing_once(seen))
    released: list[Any] = []
    real = Mechanism.release_step
    monkeypatch.setattr(
        Mechanism, "release_step", lambda self, per, expected: released.append(per) or real(self, per, expected)
    )
    monkeypatch.setattr("client.device.private_steps.poisson_subset", lambda *_: [0, 1, 2])
    assert _is_noise(_ask(settings(), EXAMPLE, local_steps=1), steps=1)
    (per_example,) = released
    assert per_example.shape == (2, 3)
    assert np.abs(per_example[:, 1:]).min() > 0 and (per_example[:, 0] == 0).all()


def _failing_once(seen: list[int]) -> Callable[[], torch.Tensor]:
    """The loss of one utterance, which differs at each look; of the first one none can be computed."""
    mine = len(seen)
    seen.append(mine)
    looks = iter(range(1000))

    def loss() -> torch.Tensor:
        if mine == 0:
            raise RuntimeError("a broken recording says 12.5")
        return torch.tensor([float(next(looks))])

    return loss


def test_a_secure_sum_tells_that_it_failed_and_is_over(
    settings: Settings, grid_of: Callable[..., FakeGrid], observed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(
        directions="shared", secure_aggregation=True, learning_rate=RATE, num_server_rounds=1, min_replies=1,
        round_timeout=3000.0,
    )  # fmt: skip
    grid = grid_of(config)
    sent: list[bytes] = []
    real = grid._ask

    def twice(node: Any, message: Any, server_round: int) -> Any:
        answer = real(node, message, server_round)
        sent.append(recorddict_to_proto(answer.content).SerializeToString())
        if message.metadata.message_type == "train":
            again = real(node, message, server_round)
            sent.append(recorddict_to_proto(again.content).SerializeToString())
            assert b"no secure sum is under way" in sent[-1]
        return answer

    monkeypatch.setattr(grid, "_ask", twice)
    federation = Federation(config, grid, observed.events)
    with closing(federation):
        federation.run()
    assert sum(FAILED.encode() in data for data in sent) == 3
    assert not [data for data in sent for word in WORDS[:2] if word.encode() in data]
