"""A device's engine: it syncs exactly, trains, and is back at a global state after everything that can happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.device.engine import Engine
from zo_common import replica
from zo_common.directions.seeds import direction_seed
from zo_common.errors import ConfigError, ModelNotFound
from zo_common.estimator.settings import EstimatorConfig
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.ledger.record import Contribution, Record
from zo_common.models.load import load_model
from zo_common.models.whisper.objectives import WhisperBatch, whisper_losses
from zo_common.speech.whisper import SpeechDataset
from zo_common.wire.plan import Plan, Status

ROUNDS = 4
ESTIMATOR = EstimatorConfig("two-sided", 2, 1e-3)


@pytest.fixture(scope="module")
def shared_engine() -> dict[str, Engine]:
    return {}


@pytest.fixture
def engine(shared_engine: dict[str, Engine], engine_of: Callable[..., Engine]) -> Iterator[Engine]:
    """An engine at the base model."""
    if not shared_engine:
        shared_engine["tiny"] = engine_of()
    found = shared_engine["tiny"]
    found.rewind(0)
    assert found.state.checksum() == found.base_checksum
    return found


@pytest.fixture
def speech(engine: Engine, speech_of: Callable[[Engine], SpeechDataset]) -> SpeechDataset:
    return speech_of(engine)


def _bits(engine: Engine) -> dict[str, bytes]:
    return {name: p.detach().numpy().tobytes() for name, p in engine.model.named_parameters()}


def _history(engine: Engine, salt: int = 0) -> tuple[Record, ...]:
    """Rounds 1 … ROUNDS with the checksums they really reach."""
    rng = np.random.default_rng(salt)
    records = []
    for server_round in range(1, ROUNDS + 1):
        grads = (0.01 * rng.standard_normal((2, 2))).astype(np.float32)
        parts = tuple(Contribution(100 * salt + 10 * server_round + c, c, grads) for c in range(2))
        engine.state.apply([u for part in parts for u in part.updates()])
        records.append(Record(server_round, engine.state.checksum(), parts))
    engine.state.apply([u for record in records for u in record.updates()], sign=-1)
    assert engine.state.checksum() == engine.base_checksum
    return tuple(records)


def _plan(engine: Engine, server_round: int = 1, records: tuple[Record, ...] = (), **changes: Any) -> Plan:
    """The plan of a round after `records`, whose checksum is the last record's."""
    checksum = records[-1].checksum if records else (engine.base_checksum if server_round == 1 else 0)
    plan = Plan(server_round, 4242, 3, int(engine.fingerprint[:16], 16), checksum, 2, 3, 0.05, ESTIMATOR, records)
    return replace(plan, **changes)


class TestSync:
    def test_all_rounds_from_the_base(self, engine: Engine) -> None:
        history = _history(engine)

        assert engine.sync(_plan(engine, ROUNDS + 1, history)) is Status.OK
        assert engine.have_round == ROUNDS
        assert engine.state.checksum() == history[-1].checksum

    def test_one_round_at_a_time(self, engine: Engine) -> None:
        history = _history(engine)

        for done in range(1, ROUNDS + 1):
            assert engine.sync(_plan(engine, done + 1, history[done - 1 : done])) is Status.OK
            assert engine.state.checksum() == history[done - 1].checksum

    def test_rounds_it_has_already_are_not_applied_again(self, engine: Engine) -> None:
        history = _history(engine)
        engine.sync(_plan(engine, 3, history[:2]))

        assert engine.sync(_plan(engine, ROUNDS + 1, history)) is Status.OK
        assert engine.state.checksum() == history[-1].checksum

    @pytest.mark.parametrize("have", [0, 1])
    def test_missing_rounds_are_behind_and_move_nothing(self, engine: Engine, speech: SpeechDataset, have: int) -> None:
        history = _history(engine)
        engine.sync(_plan(engine, have + 1, history[:have]))
        before = _bits(engine)

        reply = engine.train(_plan(engine, ROUNDS + 1, history[have + 1 :]), speech)

        assert (reply.status, reply.have_round) == (Status.BEHIND, have)
        assert reply.projected_grads.size == 0
        assert _bits(engine) == before

    def test_no_rounds_at_all_are_behind(self, engine: Engine) -> None:
        assert engine.sync(_plan(engine, 3)) is Status.BEHIND
        assert engine.state.checksum() == engine.base_checksum

    def test_ahead_of_the_plan_rewinds_exactly(self, engine: Engine) -> None:
        history = _history(engine)
        engine.sync(_plan(engine, 2, history[:1]))
        after_one = _bits(engine)
        engine.sync(_plan(engine, ROUNDS + 1, history))

        assert engine.sync(_plan(engine, 2, history[:1])) is Status.OK
        assert engine.have_round == 1
        assert _bits(engine) == after_one

    def test_ahead_of_a_plan_for_the_first_round_is_the_base_again(self, engine: Engine) -> None:
        base = _bits(engine)
        engine.sync(_plan(engine, ROUNDS + 1, _history(engine)))

        assert engine.sync(_plan(engine, 1)) is Status.OK
        assert _bits(engine) == base

    def test_another_history_of_equal_length_asks_for_all_rounds_and_follows_them(self, engine: Engine) -> None:
        """As after a server lost its ledger's last rounds and ran them anew."""
        ours, theirs = _history(engine, 1), _history(engine, 2)
        engine.sync(_plan(engine, ROUNDS, ours[: ROUNDS - 1]))

        partial = engine.sync(_plan(engine, ROUNDS + 1, theirs[-1:]))
        assert partial is Status.BEHIND
        assert engine.have_round == 0
        assert engine.sync(_plan(engine, ROUNDS + 1, theirs)) is Status.OK
        assert engine.state.checksum() == theirs[-1].checksum

    def test_another_history_with_all_rounds_at_hand_is_replayed_at_once(self, engine: Engine) -> None:
        ours, theirs = _history(engine, 1), _history(engine, 2)
        engine.sync(_plan(engine, ROUNDS + 1, ours))

        assert engine.sync(_plan(engine, ROUNDS + 1, theirs)) is Status.OK
        assert engine.state.checksum() == theirs[-1].checksum
        assert engine.applied == list(theirs)

    def test_wrong_checksum_over_all_rounds(self, engine: Engine) -> None:
        base, history = _bits(engine), _history(engine)

        status = engine.sync(_plan(engine, ROUNDS + 1, history, checksum=history[-1].checksum ^ 1))

        assert status is Status.CHECKSUM
        assert engine.have_round == 0
        assert _bits(engine) == base

    def test_wrong_checksum_of_the_base(self, engine: Engine) -> None:
        assert engine.sync(_plan(engine, 1, checksum=1)) is Status.CHECKSUM

    def test_no_checksum_is_not_compared(self, engine: Engine) -> None:
        history = _history(engine)

        assert engine.sync(_plan(engine, ROUNDS + 1, history, checksum=0)) is Status.OK


class TestTrain:
    def test_the_scalars_are_those_of_an_independent_computation(
        self, engine_of: Callable[..., Engine], speech: SpeechDataset
    ) -> None:
        """Weights are built from scratch for every loss: base + history + steps ± ε·z, with no step ever undone."""
        engine = engine_of(precision="float32")
        history = _history(engine)
        plan = _plan(engine, ROUNDS + 1, history)

        reply = engine.train(plan, speech)

        past = [u for record in history for u in record.updates()]
        expected = np.zeros((2, 2), np.float32)
        for step in range(2):
            batch = engine._draw(plan, speech, step)
            for query in range(2):
                seed = direction_seed(plan.seed, step, query)
                up, down = (
                    _loss_at(engine, [*past, Update(seed, sign * plan.estimator.epsilon)], batch) for sign in (1, -1)
                )
                expected[step, query] = ((up - down) / (2 * plan.estimator.epsilon)).mean()
            coefficients = -plan.learning_rate * expected[step].astype(np.float64) / 2
            past += [
                Update(direction_seed(plan.seed, step, q), float(np.float32(c))) for q, c in enumerate(coefficients)
            ]
        assert reply.status is Status.OK
        assert np.abs(expected).min() > 0
        np.testing.assert_array_equal(reply.projected_grads, expected)  # equal weights give equal losses

    def test_the_same_plan_gives_the_same_bits(self, engine: Engine, speech: SpeechDataset) -> None:
        first, second = (engine.train(_plan(engine), speech) for _ in range(2))

        assert first.projected_grads.tobytes() == second.projected_grads.tobytes()
        assert first.loss == second.loss

    def test_the_weights_are_the_global_state_bit_for_bit(self, engine: Engine, speech: SpeechDataset) -> None:
        history = _history(engine)
        engine.sync(_plan(engine, ROUNDS + 1, history))
        before = _bits(engine)

        reply = engine.train(_plan(engine, ROUNDS + 1, history), speech)

        assert reply.status is Status.OK
        assert (reply.checksum, reply.have_round) == (history[-1].checksum, ROUNDS)
        assert (reply.num_examples, reply.seed, reply.client_id) == (len(speech), 4242, 3)
        assert _bits(engine) == before

    @pytest.mark.parametrize("after", [0, 1, 5])
    def test_a_nan_loss_is_a_word_and_leaves_every_bit(
        self, engine: Engine, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch, after: int
    ) -> None:
        before = _bits(engine)
        _break_loss(engine, monkeypatch, after, lambda losses: losses * float("nan"))

        reply = engine.train(_plan(engine), speech)

        assert reply.status is Status.NON_FINITE
        assert "not finite" in reply.message
        assert reply.projected_grads.size == 0
        assert _bits(engine) == before

    @pytest.mark.parametrize("after", [0, 3, 7])
    @pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
    def test_an_exception_goes_on_and_leaves_every_bit(
        self, engine: Engine, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException
    ) -> None:
        history = _history(engine)
        engine.sync(_plan(engine, ROUNDS + 1, history))
        before = _bits(engine)

        def fail(losses: torch.Tensor) -> torch.Tensor:
            raise error

        _break_loss(engine, monkeypatch, after, fail)
        with pytest.raises(type(error)):
            engine.train(_plan(engine, ROUNDS + 1, history), speech)

        assert _bits(engine) == before
        assert engine.state.checksum() == history[-1].checksum

    @pytest.mark.parametrize("after", [0, 3])
    def test_a_failed_reply_says_what_its_caller_tells(
        self, engine: Engine, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch, after: int
    ) -> None:
        def fail(losses: torch.Tensor) -> torch.Tensor:
            raise ModelNotFound("no such folder")

        _break_loss(engine, monkeypatch, after, fail)
        reply = engine.train(_plan(engine), speech, describe=str)
        assert (reply.status, reply.message) == (Status.ERROR, "no such folder")
        assert engine.train(_plan(engine), speech).message == "model-not-found: this device's own log says why"

    def test_leaving_the_lattice_loads_the_base_again(self, engine: Engine, speech: SpeechDataset) -> None:
        reply = engine.train(_plan(engine, learning_rate=1e9), speech)

        assert (reply.status, reply.have_round) == (Status.ERROR, 0)
        assert "lattice" in reply.message
        assert engine.state.checksum() == engine.base_checksum

    def test_a_plan_for_another_base_is_refused(self, engine: Engine, speech: SpeechDataset) -> None:
        before = _bits(engine)

        reply = engine.train(_plan(engine, base_id=7), speech)

        assert reply.status is Status.CHECKSUM
        assert "0000000000000007" in reply.message
        assert engine.fingerprint[:16] in reply.message
        assert _bits(engine) == before


def test_a_model_that_is_not_there_is_refused_without_a_network(engine_of: Callable[..., Engine]) -> None:
    """A typing error in a path must not become a question to a server."""
    with pytest.raises(ModelNotFound, match="/nowhere/model"):
        engine_of(model="/nowhere/model")


@torch.inference_mode()
def _loss_at(engine: Engine, updates: list[Update], batch: WhisperBatch) -> NDArray[np.float64]:
    """Losses of a model loaded anew, after updates by the reference kernel."""
    model = load_model(engine.config.model).model
    LatticeState(model, engine.config.trained_tensors, engine.config.scale, kernel="torch").apply(updates)
    return whisper_losses(model, batch, engine.choice.tail_tokens).double().numpy()


def _break_loss(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, after: int, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """The loss goes wrong from its `after`-th evaluation on."""
    original, seen = engine.loss_fn, [0]

    def loss_fn(batch: Any) -> Callable[[], torch.Tensor]:
        inner = original(batch)

        def losses() -> torch.Tensor:
            seen[0] += 1
            return change(inner()) if seen[0] > after else inner()

        return losses

    monkeypatch.setattr(engine, "loss_fn", loss_fn)


def test_a_model_that_fills_the_memory_while_it_is_read_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, engine_of: Callable[..., Engine]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(replica, "load_model", full)

    with pytest.raises(ConfigError, match="does not fit into the memory of cpu"):
        engine_of()
