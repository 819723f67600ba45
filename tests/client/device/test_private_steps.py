"""A device under a guarantee: samples nobody knows, losses of one utterance alone, and not a word too many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from client.device import private_steps as private_training
from client.device.engine import Engine
from client.device.private_steps import MOST_LOSS, PrivateSteps, SeparateLosses, check_demand, private_steps, seen_reply
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, LatticeOverflow, NonFiniteLoss
from zo_common.estimator.settings import EstimatorConfig
from zo_common.privacy.mechanism import Mechanism
from zo_common.speech.whisper import SpeechDataset
from zo_common.wire.plan import Plan, Reply, Status

EXAMPLE = Mechanism("example", 5.0, 1.0, 3)
DEVICE = Mechanism("device", 5.0, 1.0, 1)


@pytest.fixture(scope="module")
def shared_engine() -> dict[str, Engine]:
    return {}


@pytest.fixture
def engine(shared_engine: dict[str, Engine], engine_of: Callable[..., Engine]) -> Engine:
    if not shared_engine:
        shared_engine["tiny"] = engine_of(loss_check=True)
    return shared_engine["tiny"]


@pytest.fixture
def speech(engine: Engine, speech_of: Callable[[Engine], SpeechDataset]) -> SpeechDataset:
    return speech_of(engine)


def _plan(engine: Engine, mechanism: Mechanism | None, **changes: Any) -> Plan:
    estimator = EstimatorConfig("leave-one-out", 2, 1e-3)
    plan = Plan(1, 77, 3, engine.base_id, engine.base_checksum, 2, 2, 1e-4, estimator, (), mechanism)
    return replace(plan, **changes)


class TestTraining:
    @pytest.mark.parametrize("mechanism", [EXAMPLE, DEVICE], ids=lambda m: m.level)
    def test_a_reply_says_nothing_but_scalars(
        self, engine: Engine, speech: SpeechDataset, mechanism: Mechanism
    ) -> None:
        first, again = (engine.train(_plan(engine, mechanism), speech) for _ in range(2))

        assert (first.status, first.loss, first.message, first.num_examples) == (Status.OK, 0.0, "", len(speech))
        assert first.projected_grads.shape == (2, 2)
        assert (first.projected_grads != again.projected_grads).all()
        assert engine.state.checksum() == engine.base_checksum

    def test_an_empty_sample_is_noise(
        self, engine: Engine, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(private_training, "poisson_subset", lambda *rate: [])

        reply = engine.train(_plan(engine, EXAMPLE), speech)

        assert reply.status is Status.OK
        assert (reply.projected_grads != 0).all()

    def test_the_sample_is_drawn_from_all_with_the_rate_that_is_accounted_for(
        self, engine: Engine, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rates: list[tuple[int, ...]] = []

        def draw(*rate: int) -> list[int]:
            rates.append(rate)
            return [0]

        monkeypatch.setattr(private_training, "poisson_subset", draw)

        engine.train(_plan(engine, EXAMPLE), speech)

        assert rates == [(len(speech), 2, len(speech))] * 2
        assert PrivateSteps(EXAMPLE, 16, 3).expected == 3

    def test_an_utterance_moves_nobody_elses_gradient(
        self, engine: Engine, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To the bit, also where it is the longest."""
        longest = max(range(len(speech)), key=lambda i: speech.examples[i].features.shape[1])
        others = [i for i in range(len(speech)) if i != longest][:2]
        seen: list[Any] = []

        def watch(self: Mechanism, per_example: Any, expected: int) -> Any:
            seen.append(per_example)
            return np.zeros(len(per_example), np.float32)

        monkeypatch.setattr(Mechanism, "release_step", watch)
        for sample in (others, [*others, longest]):
            monkeypatch.setattr(private_training, "poisson_subset", lambda *rate, sample=sample: sample)
            engine.train(_plan(engine, EXAMPLE, local_steps=1), speech)

        assert seen[0].shape == (2, 2)
        assert seen[0].tobytes() == np.ascontiguousarray(seen[1][:, :2]).tobytes()

    @pytest.mark.parametrize(
        "error", [NonFiniteLoss("3 of 5"), LatticeOverflow("a tensor")], ids=lambda e: type(e).__name__
    )
    def test_a_failure_is_not_to_be_seen_at_the_device_level(
        self, engine: Engine, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*args: Any) -> Any:
            raise error

        monkeypatch.setattr(Engine, "_local_steps", fail)

        reply = engine.train(_plan(engine, DEVICE), speech)

        assert (reply.status, reply.message, reply.have_round, reply.num_examples) == (Status.OK, "", 0, len(speech))
        assert reply.checksum == engine.base_checksum
        assert (reply.projected_grads != 0).all()

    def test_fewer_utterances_than_accounted_for(self, engine: Engine, speech: SpeechDataset) -> None:
        mechanism = replace(EXAMPLE, num_examples=len(speech) + 1)

        reply = engine.train(_plan(engine, mechanism), speech)

        assert reply.status is Status.ERROR
        assert "drawn more often than is accounted for" in reply.message
        assert engine.state.checksum() == engine.base_checksum


class TestLosses:
    def test_each_is_computed_alone_and_none_fails_the_step(self) -> None:
        values = [1.5, float("nan"), float("inf"), -float("inf"), 1e9]

        found = SeparateLosses([lambda v=v: torch.tensor([v], dtype=torch.float64) for v in values])()

        assert found.tolist() == [1.5, MOST_LOSS, MOST_LOSS, -MOST_LOSS, MOST_LOSS]

    def test_of_nobody(self) -> None:
        assert SeparateLosses([])().shape == (0,)


class TestReplies:
    REPLY = Reply(Status.OK, 1, 0, 3, 77, 5, 9, 0.7, np.ones((2, 2), np.float32), "loss differences drown in noise")

    def test_without_privacy_it_stays_as_it_is(self, engine: Engine) -> None:
        assert seen_reply(_plan(engine, None), self.REPLY, 9) is self.REPLY

    @pytest.mark.parametrize("status", [Status.BEHIND, Status.CHECKSUM])
    def test_one_that_has_not_trained_is_not_noised(self, engine: Engine, status: Status) -> None:
        behind = replace(self.REPLY, status=status, projected_grads=np.zeros((0, 0), np.float32), message="")

        assert seen_reply(_plan(engine, DEVICE), behind, 9).projected_grads.size == 0

    def test_only_the_example_level_has_steps_of_its_own(self, engine: Engine) -> None:
        assert private_steps(_plan(engine, None), 9) is None
        assert private_steps(_plan(engine, DEVICE), 9) is None
        assert private_steps(_plan(engine, EXAMPLE), 9) == PrivateSteps(EXAMPLE, 2, 9)


class TestDemand:
    def test_a_device_may_insist(self, engine: Engine) -> None:
        config = RunConfig(privacy="example", noise_multiplier=1.0)

        check_demand(config, _plan(engine, EXAMPLE))
        check_demand(RunConfig(), _plan(engine, None))
        with pytest.raises(ConfigError, match="privacy=example only, the plan asks for none"):
            check_demand(config, _plan(engine, None))
        with pytest.raises(ConfigError, match="privacy=example only, the plan asks for device"):
            check_demand(config, _plan(engine, DEVICE))
        with pytest.raises(ConfigError, match=r"noise-multiplier of 1 or more, the plan asks for 0\.5"):
            check_demand(config, _plan(engine, replace(EXAMPLE, noise_multiplier=0.5)))
