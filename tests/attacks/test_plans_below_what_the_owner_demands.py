"""Attack: a server asks for less privacy than a device's owner demands, or for the same thing under another name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from client.device import requests as device
from client.device.calibration import calibrate
from client.device.demands import Demands
from client.device.engine import Engine
from client.device.warm import warm_engine
from client.device_identity import DeviceIdentity
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed
from zo_common.errors import ConfigError
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.calibration import CalibrationAsk
from zo_common.wire.plan import Plan, Status

Settings = Callable[..., RunConfig]
EXAMPLE, DEVICE = Mechanism("example", 1.0, 2.0, 9), Mechanism("device", 1.0, 2.0, 1)
IDENTITY = DeviceIdentity(3)


@pytest.fixture
def config(settings: Settings) -> RunConfig:
    return settings(eval_split="test", local_steps=1)


@pytest.fixture
def engine(config: RunConfig) -> Engine:
    found = warm_engine(config)
    found.rewind(0)
    return found


def _plan(engine: Engine, mechanism: Mechanism | None = None) -> Plan:
    return Plan(
        1, client_seed(0, 1, 3), 3, engine.base_id, engine.base_checksum, 1, 2, 1e-6,
        engine.config.estimator_config, (), mechanism,
    )  # fmt: skip


REFUSED = [
    (Demands("example"), None, "privacy=example or more, the plan asks for none"),
    (Demands("device"), EXAMPLE, "privacy=device or more, the plan asks for example"),
    (Demands("example", 3.0), EXAMPLE, "noise-multiplier of 3 or more, the plan asks for 2"),
    (Demands("example", 3.0), DEVICE, "noise-multiplier of 3 or more, the plan asks for 2"),
    (Demands("device"), replace(DEVICE, noise_multiplier=0.0), "leaves it to the server"),
    (Demands(secure_only=True), None, "secure-only and was asked to train in the clear"),
    (Demands(least_weights=10**9), None, "1000000000 trained weights or more, trained-tensors has"),
]


@pytest.mark.parametrize(("demands", "mechanism", "word"), REFUSED)
def test_a_plan_that_asks_for_less(
    config: RunConfig, engine: Engine, demands: Demands, mechanism: Mechanism | None, word: str
) -> None:
    reply = device.train(config, _plan(engine, mechanism), IDENTITY, demands=demands)
    assert (reply.status, reply.projected_grads.size) == (Status.ERROR, 0)
    assert word in reply.message


@pytest.mark.parametrize("mechanism", [EXAMPLE, DEVICE], ids=lambda m: m.level)
def test_a_plan_that_asks_for_as_much_is_answered(config: RunConfig, engine: Engine, mechanism: Mechanism) -> None:
    demands = Demands("example", 2.0, least_weights=engine.state.num_elements)
    assert device.train(config, _plan(engine, mechanism), IDENTITY, demands=demands).status is Status.OK


@pytest.mark.parametrize("ask", [device.evaluate, device.check_held_out], ids=lambda ask: ask.__name__)
@pytest.mark.parametrize("demands", [Demands("example"), Demands(secure_only=True)])
def test_counts_without_noise_or_mask(config: RunConfig, engine: Engine, ask: Any, demands: Demands) -> None:
    reply = ask(replace(config, guard_split="test"), _plan(engine), IDENTITY, demands=demands)
    assert reply.status is Status.ERROR and "counts have neither" in reply.message


@pytest.mark.parametrize("split", ["train", "half-of-train"])
def test_training_losses_under_the_name_of_an_evaluation(config: RunConfig, engine: Engine, split: str) -> None:
    changed = replace(config, eval_split=split, guard_split=split)
    for ask in (device.evaluate, device.check_held_out):
        reply = ask(changed, _plan(engine), IDENTITY, demands=Demands(least_weights=1))
        assert reply.status is Status.ERROR and "not named as held out" in reply.message
    held_out = device.evaluate(config, _plan(engine), IDENTITY, demands=Demands(least_weights=1))
    assert held_out.status is Status.OK, held_out.message


def test_a_calibration(config: RunConfig) -> None:
    found = calibrate(config, CalibrationAsk(1, 3, 0, 1, 4, 2), IDENTITY, demands=Demands(least_weights=1))
    assert found.status is Status.ERROR and "sets terms" in found.message


@pytest.mark.parametrize(
    "node", [{"least-privacy": "all"}, {"least-noise": "much"}, {"least-weights": -1}, {"least-noise": 1.0}]
)
def test_demands_that_are_none(node: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Demands.of(node)
