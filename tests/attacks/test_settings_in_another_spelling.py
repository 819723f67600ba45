"""Attack: a run's settings come as `secure_aggregation`, which some checks know as `secure-aggregation` alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from secure_worker import SECURE
from toy_fleet import CrowdEngine, Utterances

from client.app import make_client_app
from client.device import requests as device
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import shared_seed
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan import Plan, encode_plan

NODE = {"client-id": 5}


@pytest.mark.parametrize("spelling", ["secure-aggregation", "secure_aggregation"])
def test_a_reply_whose_noise_is_for_a_mask_does_not_leave_without_one(
    monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    """The plan promises noise under a mask: its reply is clipped and bare until it is masked."""
    config = RunConfig(**SECURE)
    engine = CrowdEngine(config)
    monkeypatch.setattr(device, "warm_engine", lambda _: engine)
    monkeypatch.setattr(device, "_train_data", lambda *_: Utterances(4))
    measured: list[Any] = []
    honest = device.train
    monkeypatch.setattr(device, "train", lambda *given, **more: measured.append(honest(*given, **more)) or measured[-1])
    plan = Plan(
        1, shared_seed(0, 1), 5, engine.base_id, engine.base_checksum, 1, 4, 0.5, config.estimator_config, (),
        Mechanism("device", 1.0, 2.0, 1, masked=True),
    )  # fmt: skip
    settings = replace(config, privacy="none").to_mapping()
    settings[spelling] = settings.pop("secure-aggregation")

    answer = _ask(plan, settings)

    assert not measured  # whoever trains has masks ready
    assert "reply" not in answer and "list of sharers" in str(answer["error"])


def _ask(plan: Plan, settings: dict[str, Any]) -> dict[str, Any]:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    content = RecordDict({"zo": ConfigRecord({"plan": encode_plan(plan)})})
    context = Context(1, 5, NODE, RecordDict(), settings)
    answer = make_client_app()(Message(content, dst_node_id=5, message_type="train"), context)
    return dict(answer.content.config_records["zo"])
