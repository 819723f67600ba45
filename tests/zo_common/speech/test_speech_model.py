"""What each kind of model is trained on: the loss a step perturbs, frozen where the model itself decides."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition
from typing import Any

import numpy as np
import pytest
import torch
from fake_grid import Memory
from listening import listen

from client.device.engine import Engine
from client.device.requests import held_out_settings
from client.device.warm import warm_dataset
from client.device_identity import DeviceIdentity
from client.worker.client import make_request
from client.worker.job import Job
from client.worker.job_queue import JobQueue
from client.worker.journal import Journal
from client.worker.runtime import WorkerRuntime
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed
from zo_common.errors import ConfigError
from zo_common.lattice.update import Update
from zo_common.ledger.record import Contribution, Record
from zo_common.models.ctc.loss import AdaptationLoss, CTCLoss, SutaSettings
from zo_common.models.objectives import IGNORE
from zo_common.models.whisper.hypothesis_loss import HypothesisLoss
from zo_common.models.whisper.transcribe import greedy_tokens
from zo_common.wire.evaluation import decode_evaluation
from zo_common.wire.plan import Plan, Status, decode_reply, encode_plan

Settings = Callable[..., RunConfig]
IDENTITY = DeviceIdentity(7)


def _moved(engine: Engine, loss: Any) -> torch.Tensor:
    """The losses after a small update, which is taken back."""
    update = [Update(5, 1e-3)]
    engine.state.apply(update)
    with torch.inference_mode():
        found: torch.Tensor = loss()
    engine.state.apply(update, sign=-1)
    return found


class TestCTC:
    def test_supervised_is_the_loss_of_the_characters(self, ctc_settings: Settings) -> None:
        config = ctc_settings(precision="float32")
        engine = Engine(config)
        batch = warm_dataset(config, engine, None, 1).batch([0, 4])

        assert torch.equal(engine.loss_fn(batch)(), CTCLoss(engine.model, batch)())

    @pytest.mark.parametrize(
        ("objective", "expected"), [("suta", SutaSettings(2.0, 0.4)), ("entropy", SutaSettings(2.0, 1.0))]
    )
    def test_frames_are_those_of_the_weights_before_the_step(
        self, ctc_settings: Settings, objective: str, expected: SutaSettings
    ) -> None:
        config = ctc_settings(objective=objective, temperature=2.0, entropy_weight=0.4, precision="float32")
        engine = Engine(config)
        batch = warm_dataset(config, engine, None, 1).batch([0, 4])

        loss = engine.loss_fn(batch)
        moved = _moved(engine, loss)

        assert isinstance(loss, AdaptationLoss) and loss.mask is not None
        plain = AdaptationLoss(engine.model, batch, expected).freeze()
        assert torch.equal(plain.mask, loss.mask)
        assert torch.equal(plain(), loss())
        assert not torch.equal(moved, loss())

    def test_nothing_is_compiled(self, ctc_settings: Settings) -> None:
        with pytest.raises(ConfigError, match="torch-compile is for Whisper models"):
            Engine(ctc_settings(torch_compile=True))


@pytest.mark.parametrize("family", ["ctc", "whisper"])
def test_an_objective_without_a_text_sees_no_transcript_that_is_there(
    settings: Settings, ctc_settings: Settings, family: str
) -> None:
    config = (ctc_settings if family == "ctc" else settings)(objective="entropy", eval_split="test")
    engine = Engine(config)

    data = warm_dataset(config, engine, None, 1)
    held_out = warm_dataset(held_out_settings(config), engine, None, 1)

    assert set(data.texts) == {""} and len(data) == 9
    labels = data.batch([0, 4]).labels
    assert labels[labels != IGNORE].tolist() == (
        [] if family == "ctc" else [engine.processor.tokenizer.eos_token_id] * 2
    )
    assert all(held_out.texts)  # errors are counted against what was said


class TestWhisper:
    @pytest.mark.parametrize("objective", ["entropy", "self-training"])
    def test_the_text_is_what_the_model_hears_in_the_full_window(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, objective: str
    ) -> None:
        monkeypatch.setattr("zo_common.models.whisper.transcribe.MAX_NEW_TOKENS", 4)
        config = settings(objective=objective)
        engine = Engine(config)
        data = warm_dataset(config, engine, None, 1)

        loss = engine.loss_fn(data.batch([0, 4]))

        assert isinstance(loss, HypothesisLoss)
        windows = [data.examples[i].window() for i in (0, 4)]
        heard = greedy_tokens(engine.model, engine.processor, windows)
        end = engine.processor.tokenizer.eos_token_id
        assert [row[row != IGNORE].tolist() for row in loss._labels] == [[*tokens, end] for tokens in heard]
        assert loss.trusted is not None and torch.equal(loss.trusted, loss._labels != IGNORE)
        assert loss._objective == objective

    def test_a_hypothesis_below_the_confidence_asked_for_counts_nothing(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("zo_common.models.whisper.transcribe.MAX_NEW_TOKENS", 4)
        config = settings(objective="self-training", min_confidence=1.0)
        engine = Engine(config)

        assert engine.loss_fn(warm_dataset(config, engine, None, 1).batch([0]))().tolist() == [0.0]


def test_a_resident_worker_serves_a_ctc_model(ctc_settings: Settings, tmp_path: Any, untold_corpus: Any) -> None:
    """Train, evaluate, and start again from what is on disk."""
    config = ctc_settings(objective="suta", data=str(untold_corpus))
    settings = config.to_mapping()
    words = listen("client")
    queue = JobQueue()
    journal = Journal(tmp_path / "state")
    runtime = WorkerRuntime(settings, journal, queue)
    runtime.start()
    engine = runtime._engine
    assert engine is not None
    record = Record(1, 0, (Contribution(client_seed(0, 1, 3), 3, np.full((1, 2), 1e-3, np.float32)),))
    plan = Plan(2, client_seed(0, 2, 7), 7, engine.base_id, 0, 2, 2, 1e-4, config.estimator_config, (record,))

    def answer(kind: Any) -> bytes:
        asked, work = runtime.prepare(kind, make_request(encode_plan(plan), settings, IDENTITY), IDENTITY)
        return work(Job(asked, Condition()))[0]

    reply = decode_reply(answer("train"))
    evaluation = decode_evaluation(answer("evaluate"))
    queue.close(1.0)
    journal.close()

    assert (reply.status, reply.num_examples, reply.have_round) == (Status.OK, 9, 1)
    assert reply.projected_grads.any()
    assert (evaluation.status, evaluation.scores.utterances) == (Status.OK, 3)
    assert evaluation.checksum == reply.checksum
    assert any("9 recordings" in word for word in words)
    with Memory().in_use():
        fresh = {"model": config.model, "data": config.data}  # it does not know yet what the run will ask
        WorkerRuntime(fresh, Journal(tmp_path / "fresh"), JobQueue()).start()
    assert "9 recordings without transcripts in" in words[-1] and not any("not found" in word for word in words)
    again = WorkerRuntime(settings, Journal(tmp_path / "state"), JobQueue())
    with Memory().in_use():  # a process that has just started
        again.start()
    assert (again.have_round, again._state[1]) == (1, reply.checksum), words


@pytest.mark.parametrize(("private", "told"), [(False, True), (True, False)])
def test_what_labels_leave_out_is_told_in_the_first_round(
    ctc_settings: Settings, monkeypatch: pytest.MonkeyPatch, private: bool, told: bool
) -> None:
    """Not where the devices' scalars are summed under masks."""
    config = ctc_settings(
        precision="float32", **({"secure_aggregation": True, "directions": "shared"} if private else {})
    )
    engine = Engine(config)
    data = warm_dataset(config, engine, None, 1)

    plan = Plan(1, 5, 7, engine.base_id, 0, 1, 2, 1e-4, config.estimator_config, ())
    word = engine.train(plan, data).message

    expected = "labels leave out 9 characters that the model's vocabulary lacks: 0 3, 1 3, 2 3"
    assert word == (expected if told else "")
    assert data.notes == (expected,)
