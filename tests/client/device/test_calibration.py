"""A device's share of a calibration, in this process and behind a worker's runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from client.device.calibration import calibrate
from client.device.warm import warm_engine
from client.device_identity import DeviceIdentity
from zo_common.calibration import share_of
from zo_common.config.run import RunConfig
from zo_common.wire.calibration import CalibrationAsk
from zo_common.wire.plan import Status

Settings = Callable[..., RunConfig]
ASK = CalibrationAsk(seed=5, client_id=0, place=0, devices=3, passes=8, batch_size=2)
IDENTITY = DeviceIdentity(0, 0, 3, simulated=True)


def test_groups_are_measured_and_the_weights_are_the_base_models(settings: Settings) -> None:
    config = settings(trained_tensors="auto")
    engine = warm_engine(config)
    before = {name: parameter.clone() for name, parameter in engine.model.named_parameters()}

    answer = calibrate(config, ASK, IDENTITY)

    assert answer.status is Status.OK, answer.message
    assert set(answer.measures) == set(share_of(engine.model, ASK))
    assert all(m.curvature > 0 for m in answer.measures.values())
    assert engine.state.checksum() == engine.base_checksum
    for name, parameter in engine.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_the_same_question_has_the_same_answer(settings: Settings) -> None:
    config = settings(trained_tensors="auto")
    assert calibrate(config, ASK, IDENTITY) == calibrate(config, ASK, IDENTITY)
    other = calibrate(config, replace(ASK, seed=6), IDENTITY)
    assert other.measures != calibrate(config, ASK, IDENTITY).measures


def test_a_ctc_model_is_measured(ctc_settings: Settings) -> None:
    answer = calibrate(ctc_settings(trained_tensors="auto"), ASK, IDENTITY)
    assert answer.status is Status.OK, answer.message
    assert answer.measures


@pytest.mark.parametrize("private", [{"secure_aggregation": True}, {"privacy": "example"}])
def test_a_device_refuses_in_a_run_with_privacy(settings: Settings, private: dict[str, object]) -> None:
    config = settings(trained_tensors="auto", directions="shared", **private)
    answer = calibrate(config, ASK, IDENTITY)
    assert answer.status is Status.ERROR
    assert "no noise and no mask" in answer.message
    assert not answer.measures


def test_too_few_passes_are_refused_in_a_sentence(settings: Settings) -> None:
    answer = calibrate(settings(trained_tensors="auto"), replace(ASK, passes=2), IDENTITY)
    assert answer.status is Status.ERROR
    assert "at least 3" in answer.message
