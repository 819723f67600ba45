"""Attack: the others of a sum are asked for something else than the victim, so that the sum is the victim's alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from secure_worker import Sum, Victim

from client.worker.client import WorkerError
from zo_common.config.run import SETTINGS as SETTINGS_OF_RUNS
from zo_common.errors import SecureAggregationError
from zo_common.estimator.settings import EstimatorConfig
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan_digest import MEASURED, plan_digest

ALIKE = "all are to be asked alike"
CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 5},
    "base": {"base_id": 5},
    "checksum": {"checksum": 5},
    "estimator": {"estimator": EstimatorConfig("two-sided", 2, 0.5)},
    "epsilon": {"estimator": EstimatorConfig("leave-one-out", 2, 0.25)},
    "queries": {"estimator": EstimatorConfig("leave-one-out", 3, 0.5)},
    "steps": {"local_steps": 2},
    "batch": {"batch_size": 1},
    "rate": {"learning_rate": 0.25},
    "clip norm": {"privacy": Mechanism("device", 1e29, 2.0, 1, True)},
    "noise": {"privacy": Mechanism("device", 1.0, 1.0, 1, True)},
    "level": {"privacy": Mechanism("device", 1.0, 2.0, 1)},
    "curvature": {"privacy": None, "curvature": True},
}


@pytest.fixture
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Victim]:
    made = Victim(tmp_path, monkeypatch, signed=True)
    yield made
    made.close()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_part_of_a_plan_is_in_what_devices_sign(victim: Victim, change: dict[str, Any]) -> None:
    plan = victim.plan(
        estimator=EstimatorConfig("leave-one-out", 2, 0.5), privacy=Mechanism("device", 1.0, 2.0, 1, True)
    )
    config = victim.config
    assert plan_digest(plan, config) != plan_digest(replace(plan, **change), config)


def test_what_is_one_devices_own_is_not(victim: Victim) -> None:
    plan = victim.plan(privacy=Mechanism("example", 1.0, 2.0, 9))
    own = replace(plan, client_id=7, privacy=Mechanism("example", 1.0, 2.0, 4))
    assert plan_digest(plan, victim.config) == plan_digest(
        own, replace(victim.config, output="elsewhere", drop_out=0.5)
    )


def test_a_device_that_is_asked_otherwise_does_not_train(victim: Victim) -> None:
    """It has agreed to the sum of one plan, and is sent another."""
    attacked = Sum(victim, range(1, 5))
    sharers = attacked.share()
    attacked.plan = victim.plan(learning_rate=0.25)
    with pytest.raises(SecureAggregationError, match=ALIKE):
        attacked.open(attacked.mask(sharers), sharers)
    assert not (victim.folder / "state" / "masked.seeds").exists()


SETTINGS: dict[str, Any] = {
    "no scalars": {"objective": "self-training", "temperature": 1e30},
    "other recordings": {"train_split": "of-the-server"},
    "other texts": {"text_column": "speaker"},
    "other tensors": {"trained_tensors": "encoder-norm"},
    "other losses": {"tail_tokens": 4, "loss_check": False},
    "other clipping": {"clip_utterances": 1.0},
    "other numbers": {"precision": "float16"},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_a_device_that_is_sent_other_settings_does_not_train(victim: Victim, changes: dict[str, Any]) -> None:
    """With them the same plan measures something else: nothing at all at such a temperature."""
    attacked = Sum(victim, range(1, 5))
    sharers = attacked.share()
    victim.config = replace(victim.config, **changes)
    with pytest.raises(SecureAggregationError, match=ALIKE):
        attacked.open(attacked.mask(sharers), sharers)


def test_a_devices_own_settings_are_not_the_servers(victim: Victim) -> None:
    victim.runtime._own |= {"precision": "bfloat16", "tail-tokens": 64}
    assert len(Sum(victim, range(1, 5)).run()) == 3


def test_every_setting_that_scalars_depend_on_is_signed() -> None:
    """A new setting of data, model or method is in the digest, or in this list of those that a plan or terms hold."""
    otherwise = {"batch_size", "data", "device", "directions", "epsilon", "estimator", "feature_cache", "learning_rate"}
    otherwise |= {"local_steps", "lr_schedule", "model", "num_queries", "skip_bad", "torch_compile", "torch_threads"}
    found = {each.name for each in SETTINGS_OF_RUNS if each.section in ("data", "model", "method")}
    assert found == otherwise | set(MEASURED)


def test_others_with_another_plan_share_no_session(victim: Victim) -> None:
    """They were told other terms: none of their signatures holds for the victim's."""
    attacked = Sum(victim, range(1, 5))
    other = Sum(victim, range(1, 5), victim.plan(learning_rate=1e-9))
    assert attacked.terms.session != other.terms.session
    for client, device in other.others.items():
        found = device.advertise()
        with pytest.raises(SecureAggregationError, match="another session"):
            attacked.server.add_advertisement(client, found.encode())
        moved = replace(found, session=attacked.terms.session)  # as a lying server would
        attacked.server.add_advertisement(client, moved.encode())
    attacked.server.add_advertisement(0, victim.step(attacked.server.invitation()))
    with pytest.raises(WorkerError, match="are not signed by its node key"):
        victim.step(attacked.server.close_advertising()[0])


def test_others_at_other_weights_do_not_consent_with_it(victim: Victim) -> None:
    """Where a plan leaves the state open, what each has trained at is in its signature."""
    attacked = Sum(victim, range(1, 5))
    sharers = attacked.share()
    answer = attacked.mask(sharers)
    attacked.checksum_of_others = 5
    with pytest.raises(WorkerError, match="1 neighbours signed the same survivors, expected at least 4"):
        attacked.open(answer, sharers)
