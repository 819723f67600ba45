"""A device compares its loss with the full window's once for its recordings, and keeps what it found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from client.device import engine as engine_module
from client.device import loss_choice
from client.device.engine import Engine
from client.device.loss_choice import LossChoices
from simulations.models.tiny import write_tiny_whisper
from zo_common.config.run import RunConfig
from zo_common.errors import LossCheckFailed
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import LossFn
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.ledger.record import Contribution, Record
from zo_common.ledger.snapshot import encode_snapshot
from zo_common.models.frozen import hold
from zo_common.models.loss_check import FIRST_EPSILON, LossChoice, check_loss
from zo_common.models.loss_comparison import Tolerances
from zo_common.models.whisper.forward import embed_window
from zo_common.models.whisper.objectives import whisper_losses
from zo_common.models.whisper.silent_tail import mark_sinks, sinks_of
from zo_common.privacy.mechanism import Mechanism
from zo_common.speech.loss_settings import unchecked
from zo_common.speech.manifest import Manifest, Utterance
from zo_common.speech.whisper import SpeechDataset, load_dataset
from zo_common.wire.plan import Plan, Status

Engines = Callable[..., Engine]
TEXTS = ("Can the dentist call me back on Monday?", "How do I get to the post office from here?")
DEFAULTS = {"loss_check": True, "epsilon": "auto"}


@pytest.fixture
def engine(engine_of: Engines, tmp_path: Path) -> Engine:
    return engine_of(**DEFAULTS, feature_cache=str(tmp_path / "cache"))


@pytest.fixture
def speech(engine: Engine, speech_of: Callable[[Engine], SpeechDataset]) -> SpeechDataset:
    return speech_of(engine)


def _plan(engine: Engine, server_round: int = 1, **changes: Any) -> Plan:
    estimator = EstimatorConfig("two-sided", 2, 0.0)
    plan = Plan(server_round, 4242, 3, engine.base_id, 0, 1, 2, 0.05, estimator, tuple(engine.applied))
    return replace(plan, **changes)


def _count(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Utterances in each forward pass of a loss from now on."""
    seen: list[int] = []
    original = engine.speech.losses

    def losses(*arguments: Any) -> Callable[[Any], LossFn]:
        make = original(*arguments)

        def counted(batch: Any) -> LossFn:
            inner = make(batch)

            def loss() -> torch.Tensor:
                values = inner()
                seen.append(len(values))
                return values

            return loss

        return counted

    monkeypatch.setattr(engine.speech, "losses", losses)
    return seen


class TestEngine:
    def test_the_choice_is_told_once_and_the_weights_are_back(self, engine: Engine, speech: SpeechDataset) -> None:
        first, second = engine.train(_plan(engine), speech), engine.train(_plan(engine), speech)

        assert first.status is second.status is Status.OK
        assert first.message == engine.choice.sentence
        assert first.message.startswith("loss check: ")
        assert f"epsilon {engine.choice.epsilon:.3g}" in first.message
        assert second.message == ""
        np.testing.assert_array_equal(first.projected_grads, second.projected_grads)
        assert engine.state.checksum() == engine.base_checksum

    def test_it_trains_as_one_that_was_set_so(self, engine: Engine, engine_of: Engines, speech: SpeechDataset) -> None:
        reply = engine.train(_plan(engine), speech)

        choice = engine.choice
        tail = engine.speech.window if choice.tail_tokens is None else choice.tail_tokens
        fixed = engine_of(tail_tokens=tail, precision=choice.precision, epsilon=choice.epsilon)
        plan = _plan(engine, estimator=EstimatorConfig("two-sided", 2, choice.epsilon))
        np.testing.assert_array_equal(fixed.train(plan, speech).projected_grads, reply.projected_grads)

    def test_late_joiners_look_from_the_base_too(
        self, engine: Engine, engine_of: Engines, speech: SpeechDataset
    ) -> None:
        engine.train(_plan(engine), speech)
        late = engine_of(**DEFAULTS)
        grads = (0.05 * np.random.default_rng(0).standard_normal((2, 2))).astype(np.float32)
        parts = (Contribution(7, 0, grads),)
        late.state.apply(parts[0].updates())
        record = Record(1, late.state.checksum(), parts)
        late.state.apply(parts[0].updates(), sign=-1)

        reply = late.train(_plan(late, 2, records=(record,)), speech)

        assert reply.status is Status.OK
        assert reply.checksum == record.checksum == late.state.checksum()
        assert late.choice == engine.choice
        assert reply.message == engine.choice.sentence

    def test_by_records_or_by_a_snapshot_the_choice_is_one(
        self, engine_of: Engines, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        by_records, by_snapshot = engine_of(**DEFAULTS), engine_of(**DEFAULTS)
        records = []
        for server_round in (1, 2, 3):
            grads = (0.01 * np.random.default_rng(server_round).standard_normal((2, 2))).astype(np.float32)
            parts = (Contribution(7 * server_round, 0, grads),)
            by_records.state.apply(parts[0].updates())
            records.append(Record(server_round, by_records.state.checksum(), parts))
            if server_round == 2:
                snapshot = encode_snapshot(by_snapshot.state, by_records.state)
        by_records.applied = list(records)
        assert by_snapshot.start_from(snapshot, 2, records[1].checksum) is Status.OK
        by_snapshot.snapshot = None  # as where it is kept on disk
        looked: list[int] = []
        check = loss_choice.check_loss

        def watched(state: LatticeState, *arguments: Any) -> LossChoice:
            looked.append(state.checksum())
            return check(state, *arguments)

        monkeypatch.setattr(loss_choice, "check_loss", watched)

        replies = [
            by_records.train(_plan(by_records, 4, records=()), speech),
            by_snapshot.train(_plan(by_snapshot, 4, records=tuple(records[2:])), speech),
        ]

        assert looked == [by_records.base_checksum] * 2
        assert by_records.choice == by_snapshot.choice and by_records.choice.reasons
        assert [(r.status, r.have_round, r.loss, r.message) for r in replies] == [
            (Status.OK, 3, replies[0].loss, by_records.choice.sentence)
        ] * 2
        np.testing.assert_array_equal(replies[0].projected_grads, replies[1].projected_grads)
        assert by_records.state.checksum() == by_snapshot.state.checksum() == records[-1].checksum

    @pytest.mark.parametrize("queries", [2, 8])
    def test_it_costs_no_more_than_a_round(
        self, engine: Engine, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch, queries: int
    ) -> None:
        seen = _count(engine, monkeypatch)
        plan = _plan(engine, estimator=EstimatorConfig("leave-one-out", queries, 0.0), batch_size=16)

        engine.train(plan, speech)
        round_alone = queries * len(speech.batch(range(len(speech))).labels)

        assert round_alone < sum(seen) <= round_alone + max(64, queries * 16)

    def test_with_privacy_nothing_depends_on_single_recordings(
        self, engine: Engine, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loss_choice, "check_loss", lambda *_: pytest.fail("it looked"))
        plan = _plan(engine, privacy=Mechanism("device", 1.0, 1.0, 1))

        reply = engine.train(plan, speech)

        assert (reply.status, reply.message) == (Status.OK, "")
        assert engine.choice == unchecked(engine.config) == LossChoice(64, "float32", FIRST_EPSILON)

    def test_in_a_secure_sum_it_is_not_told(self, engine_of: Engines, speech: SpeechDataset) -> None:
        engine = engine_of(**DEFAULTS, secure_aggregation=True, directions="shared")

        assert engine.train(_plan(engine), speech).message == ""
        assert engine.choice.sentence

    def test_a_fixed_setting_that_does_not_fit_refuses_the_round(
        self, engine_of: Engines, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = engine_of(**DEFAULTS, precision="bfloat16")
        seen = _count(engine, monkeypatch)
        plan = _plan(engine, estimator=EstimatorConfig("two-sided", 2, 1e-6))

        first = engine.train(plan, speech)
        looked = len(seen)
        second = engine.train(plan, speech)

        assert first.status is second.status is Status.ERROR
        assert "set precision=float32, which fits" in first.message
        assert second.message == first.message
        assert len(seen) == looked
        assert engine.state.checksum() == engine.base_checksum


class TestDisk:
    def _train(self, engine: Engine, speech: SpeechDataset, server_round: int = 1) -> str:
        return engine._choices.of(_plan(engine, server_round, records=()), speech)[0].sentence

    def test_another_process_does_not_look_again(
        self, engine: Engine, engine_of: Engines, speech: SpeechDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = engine._choices.of(_plan(engine), speech)
        other = engine_of(**DEFAULTS, feature_cache=engine.config.feature_cache)
        monkeypatch.setattr(loss_choice, "check_loss", lambda *_: pytest.fail("it looked"))

        assert found[1]
        assert other._choices.of(_plan(other, 2), speech) == (found[0], False)  # it was told in round 1

    @pytest.mark.parametrize("content", [b"", b"{}", b'{"tail_tokens": "many"}', b"[1]", b"\xff"])
    def test_what_is_no_choice_is_looked_for_anew(
        self, engine: Engine, engine_of: Engines, speech: SpeechDataset, content: bytes
    ) -> None:
        found = engine._choices.of(_plan(engine), speech)
        (path,) = Path(engine.config.feature_cache).glob("loss-*.json")
        whole = path.read_bytes()
        path.write_bytes(content)
        other = engine_of(**DEFAULTS, feature_cache=engine.config.feature_cache)

        assert other._choices.of(_plan(other), speech) == found
        assert path.read_bytes() == whole

    def test_other_recordings_and_other_settings_have_choices_of_their_own(
        self, engine: Engine, speech: SpeechDataset
    ) -> None:
        for plan, data in (
            (_plan(engine), speech),
            (_plan(engine), speech.some(slice(1, None))),
            (_plan(engine, estimator=EstimatorConfig("two-sided", 2, 2.0**-6)), speech),
        ):
            engine._choices.of(plan, data)

        assert len(list(Path(engine.config.feature_cache).glob("loss-*.json"))) == 3


class TestSinks:
    def test_positions_of_massive_activations_are_found_and_keep_the_loss_right(
        self, whisper_dir: Path, tmp_path: Path, engine_of: Engines, speech: SpeechDataset
    ) -> None:
        engine = engine_of(model=str(write_tiny_whisper(whisper_dir, tmp_path / "sinks", seed=3)))
        model: Any = engine.model
        encoder = model.model.encoder
        batch = speech.batch([0])
        merge = embed_window(encoder, batch.features, 32).merge
        assert merge is not None
        middles = merge.picked[merge.bias.flatten() > 0][::3].tolist()
        encoder.embed_positions.weight[middles, 0] += 30.0  # which the residual stream carries through all layers

        exact = float(whisper_losses(model, speech.batch([0], full_window=True)))
        broken = abs(float(whisper_losses(model, batch, 32)) - exact)
        found = mark_sinks(model)
        mended = abs(float(whisper_losses(model, batch, 32)) - exact)

        assert found == sinks_of(encoder) == tuple(middles)
        assert mended < 0.1 * broken

    def test_a_model_without_any_has_none(self, engine: Engine) -> None:
        model: Any = engine.model
        assert sinks_of(model.model.encoder) == mark_sinks(model) == ()


@pytest.mark.slow
class TestWhisperTiny:
    """The real model on synthesised speech."""

    @pytest.fixture(scope="class")
    def tiny_en(self, whisper_dir: Path) -> Engine:
        return Engine(RunConfig(model=str(whisper_dir), data="none", precision="float32"))

    @pytest.fixture(scope="class")
    def said(self, tiny_en: Engine, tmp_path_factory: pytest.TempPathFactory) -> SpeechDataset:
        pytest.importorskip("espeakng_loader")
        from simulations.speech.corpus import CorpusConfig, in_room
        from simulations.speech.espeak import Speaker, synthesize

        folder, rows = tmp_path_factory.mktemp("said"), []
        for index, text in enumerate(TEXTS):
            path = folder / f"{index}.wav"
            sf.write(
                path,
                in_room(synthesize(text, Speaker("west-midlands", "m1", rate=150)), CorpusConfig(), key=text),
                16_000,
            )
            rows.append(Utterance(str(index), path, text, {}))
        return load_dataset(Manifest(tuple(rows), ()), tiny_en.processor)

    def test_sinks_are_where_they_were_found(self, tiny_en: Engine) -> None:
        model: Any = tiny_en.model
        sinks = sinks_of(model.model.encoder)
        assert sinks[:3] == (1473, 1474, 1475)
        assert len(sinks) == 25

    @pytest.mark.parametrize(("tail", "most"), [(32, 0.03), (128, 0.01)])
    @torch.inference_mode()
    def test_the_merged_tail_follows_the_window(
        self, tiny_en: Engine, said: SpeechDataset, tail: int, most: float
    ) -> None:
        for index in range(len(said)):
            exact = whisper_losses(tiny_en.model, said.batch([index], full_window=True))
            assert abs(float(whisper_losses(tiny_en.model, said.batch([index]), tail) - exact)) < most

    def test_defaults_take_the_cheapest_tail(self, tiny_en: Engine, said: SpeechDataset) -> None:
        choice, _ = tiny_en._choices.of(_plan(tiny_en), said)

        assert (choice.tail_tokens, choice.precision) == (32, "float32")
        assert 2.0**-12 <= choice.epsilon <= 2.0**-8

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"tail_tokens": 2}, "tail-tokens 2: loss within .*: set tail-tokens=32, which fits, or auto"),
            ({"tail_tokens": 0}, "tail-tokens 0: loss within .*: set tail-tokens=32, which fits, or auto"),
            ({"precision": "bfloat16"}, "precision is 'bfloat16', .*: set precision=float32, which fits, or auto"),
        ],
    )
    def test_what_is_broken_on_purpose_is_refused(
        self, tiny_en: Engine, said: SpeechDataset, changes: dict[str, Any], word: str
    ) -> None:
        choices = LossChoices(
            replace(tiny_en.config, **changes),
            tiny_en.speech,
            tiny_en.state,
            tiny_en.device,
            "base",
            tiny_en._base_weights,
        )
        estimator = EstimatorConfig("leave-one-out", 8, 1e-6 if "precision" in changes else 0.0)

        with pytest.raises(LossCheckFailed, match=word):
            choices.of(_plan(tiny_en, estimator=estimator), said)
        assert tiny_en.state.checksum() == tiny_en.base_checksum


class TestFrozenPrecision:
    def test_one_that_fails_is_refused_and_auto_returns_to_float32(
        self, engine_of: Engines, speech_of: Callable[[Engine], SpeechDataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Tones and random weights: bfloat16 is as good or bad as anything, so the bound decides."""
        monkeypatch.setattr(engine_module, "resolve_precision", lambda precision, device: "bfloat16")
        fixed = engine_of(**DEFAULTS, frozen_precision="float16")
        auto = engine_of(**DEFAULTS, frozen_precision="auto", precision="float32")
        speech = speech_of(fixed)
        monkeypatch.setattr(loss_choice, "check_loss", partial(check_loss, tolerances=Tolerances(turn=1e-9)))

        refused = fixed.train(_plan(fixed), speech)
        assert auto.held_in == "bfloat16"
        answer = auto.train(_plan(auto), speech)

        assert refused.status is Status.ERROR
        assert "frozen-precision is 'float16', loss within" in refused.message
        assert "set frozen-precision=float32, which fits" in refused.message
        assert answer.status is Status.OK, answer.message
        assert auto.held_in == "float32" and fingerprint(auto.model) == auto.fingerprint

    def test_weights_that_their_precision_breaks_are_refused(
        self, engine_of: Engines, speech_of: Callable[[Engine], SpeechDataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hold, "_int8", lambda weight: 8 * weight.flip(0).to(torch.bfloat16))
        broken = engine_of(**DEFAULTS, frozen_precision="int8")

        refused = broken.train(_plan(broken), speech_of(broken))

        assert refused.status is Status.ERROR
        assert "frozen-precision is 'int8', loss within" in refused.message
        assert "set frozen-precision=float32, which fits" in refused.message

    def test_a_step_that_does_not_fit_into_memory_is_answered_in_a_sentence(
        self, engine_of: Engines, speech_of: Callable[[Engine], SpeechDataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = engine_of(epsilon=1e-3)
        before = engine.state.checksum()

        def full(*arguments: Any, **others: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(engine_module, "run_local_steps", full)
        answer = engine.train(_plan(engine), speech_of(engine), describe=str)

        assert answer.status is Status.ERROR
        assert answer.message.startswith("a step of batch-size 2 does not fit into the memory of cpu: set frozen-")
        assert engine.state.checksum() == before

    def test_it_is_stored_with_the_choice(self) -> None:
        choice = LossChoice(32, "float32", 0.001, ("because",), "int8")

        assert loss_choice._checked(json.loads(json.dumps(asdict(choice)))) == choice
