"""Devices with recordings behind the benchmarks' rounds: the engine's own answers, clipped where a plan asks for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_ctc import write_tiny_ctc

from benchmarks.hostile.rounds import Setting, SpeechCrowd, round_plan
from benchmarks.hostile.rounds import run as hostile_run
from benchmarks.privacy.rounds import run
from simulations.models.tiny import write_mini_corpus
from zo_common.config.run import RunConfig
from zo_common.privacy.mechanism import Mechanism


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("speech")
    return RunConfig(
        model=str(write_tiny_ctc(folder / "model", norm="layer")),
        data=str(write_mini_corpus(folder / "corpus")),
        eval_split="test",
        partition_by="speaker",
        trained_tensors="norms+biases",
        num_queries=4,
        batch_size=2,
        epsilon=1e-2,
        learning_rate=1e-2,
        num_server_rounds=2,
        directions="shared",
        weighting="uniform",
        noise_by="server",
        target_delta=1e-2,
        loss_check=False,
        precision="float32",
    )


@pytest.fixture
def crowd(config: RunConfig) -> SpeechCrowd:
    return SpeechCrowd(config, 3)


def test_without_privacy_a_run_is_the_plain_mean_to_the_bit(crowd: SpeechCrowd, config: RunConfig) -> None:
    setting = Setting("none", "mean", 0.0, 0, 2, 4, 2, 1e-2, 1e-2, 1e-2)
    once = run(crowd, config).after
    state = crowd._engine.state.checksum()

    assert hostile_run(crowd, setting).after == once
    assert crowd._engine.state.checksum() == state != crowd._engine.base_checksum


def test_answers_of_the_first_round_are_computed_once(
    crowd: SpeechCrowd, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    train = crowd._engine.train
    monkeypatch.setattr(crowd._engine, "train", lambda plan, data: asked.append(plan) or train(plan, data))

    once, again = run(crowd, config), run(crowd, config)

    assert once == again
    assert [plan.server_round for plan in asked] == [1] * 3 + [2] * 3 + [2] * 3
    run(crowd, replace(config, run_seed=1))
    assert len(asked) == 9 + 6


def test_a_private_answer_is_clipped_by_the_device(crowd: SpeechCrowd, config: RunConfig) -> None:
    plan = round_plan(config, 1, 0.0, crowd.restart())
    honest = crowd.measure(plan, False).projected_grads
    norm = float(np.linalg.norm(honest.astype(np.float64)))

    clipped = crowd.measure(replace(plan, privacy=Mechanism("device", norm / 2, 0.0, 1)), False)

    assert np.linalg.norm(clipped.projected_grads) == pytest.approx(norm / 2, rel=1e-5)
    assert np.allclose(clipped.projected_grads, honest / 2, rtol=1e-4)


@pytest.mark.parametrize("level", ["device", "example"])
def test_private_runs_stay_within_their_target(crowd: SpeechCrowd, config: RunConfig, level: Any) -> None:
    outcome = run(crowd, replace(config, privacy=level, target_epsilon=8.0, clip_norm=1.0))

    assert 7.5 < outcome.epsilon <= 8.0
    assert outcome.noise_multiplier > 0
    assert set(outcome.after) == {"loss", "wer", "cer"}


def test_the_held_out_split_can_be_a_part_of_it(config: RunConfig) -> None:
    assert len(SpeechCrowd(replace(config, eval_utterances=2), 3)._held_out) == 2
    assert len(SpeechCrowd(config, 3)._held_out) == 3


def test_examples_are_counted(crowd: SpeechCrowd) -> None:
    assert [crowd.examples(device) for device in range(3)] == [3, 3, 3]


def test_the_dialect_is_the_demos_and_its_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.dialect import speech as dialect_speech

    monkeypatch.setattr(dialect_speech, "write_corpus", lambda folder, corpus: type("", (), {"directory": folder}))
    small, demo = (dialect_speech.dialect(model) for model in (str(dialect_speech.SMALL), "whisper"))
    assert (small.lead_seconds, demo.lead_seconds) == (0.2, 0.5)
    assert replace(small, lead_seconds=0.5, tail_seconds=0.3) == demo
    assert dialect_speech.dialect_folder("whisper", tmp_path) == str(tmp_path / "demo-0")
    assert dialect_speech.dialect_folder(str(dialect_speech.SMALL), tmp_path) == str(tmp_path / "demo-close-0")
    assert [dialect_speech.natural_partition(n) for n in (8, 64)] == ["speaker", "round-robin"]
