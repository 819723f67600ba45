"""The small CTC model's training on a toy size: deterministic, resumable, and what it leaves loads and is small."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from simulations.models.ctc_base import MOST_BYTES, Shape, base_model, mel_filters, model_processor, save_small
from simulations.models.pretrain_ctc import (
    DEV_SPEAKERS,
    TEST_SPEAKERS,
    TRAIN_SPEAKERS,
    Batches,
    Pretraining,
    Recipe,
    app,
    train,
)
from simulations.speech.corpus import write_corpus
from simulations.speech.espeak import list_variants
from zo_common.errors import ConfigError
from zo_common.models.ctc.forward import ctc_logits, prepare_waves, receptive_field
from zo_common.models.load import load_model
from zo_common.speech.manifest import read_manifest
from zo_common.speech.model_kinds import speech_model

TOY = Recipe(
    steps=4,
    batch_size=2,
    speakers=2,
    utterances=3,
    test_utterances=8,
    shape=Shape(width=64, layers=1, inner=64, filters=16, dropout=0.1),
)
OPTIONS = ["--steps", "2", "--batch-size", "2", "--speakers", "2", "--utterances", "3", "--test-utterances", "8"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("speech") / "toy", TOY.corpus).directory


def _weights(run: Pretraining) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in run.model.state_dict().items()}


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_killed_run_goes_on_to_the_same_weights(corpus: Path, tmp_path: Path) -> None:
    whole = train(TOY, corpus, tmp_path / "whole", every=4, minutes=0)

    first = Pretraining(TOY, corpus, tmp_path / "cut")
    first.advance()
    first.save()
    first.advance()  # lost: killed before the next checkpoint
    cut = train(TOY, corpus, tmp_path / "cut", every=2, minutes=0)

    assert (whole.step, cut.step) == (4, 4)
    assert _same(_weights(whole), _weights(cut))
    assert not _same(_weights(whole), _weights(Pretraining(TOY, corpus, tmp_path / "new")))
    rows = [json.loads(line) for line in (tmp_path / "cut" / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(row["dev_wer"] >= 0 and row["loss"] > 0 for row in rows)


def test_a_limit_of_time_is_a_pause(corpus: Path, tmp_path: Path) -> None:
    paused = train(TOY, corpus, tmp_path, every=4, minutes=1e-9)
    assert paused.step == 0

    assert train(TOY, corpus, tmp_path, every=4, minutes=0).step == 4


def test_another_recipe_does_not_go_on(corpus: Path, tmp_path: Path) -> None:
    Pretraining(TOY, corpus, tmp_path).save()

    with pytest.raises(ConfigError, match="is of another recipe"):
        Pretraining(replace(TOY, learning_rate=1e-4), corpus, tmp_path)


def test_the_loss_falls(corpus: Path, tmp_path: Path) -> None:
    run = Pretraining(replace(TOY, steps=12, learning_rate=3e-3, warmup=0.0), corpus, tmp_path)

    losses = [run.advance() for _ in range(12)]

    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_every_utterance_is_seen_once_an_epoch(corpus: Path) -> None:
    utterances = read_manifest(str(corpus), split="train").utterances
    batches = Batches(utterances, 2, seed=1)

    epochs = [[u.where for step in range(3 * e, 3 * e + 3) for u in batches.at(step)] for e in range(4)]

    assert all(sorted(epoch) == sorted(u.where for u in utterances) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    sizes = [Path(str(u.audio)).stat().st_size for step in range(3) for u in batches.at(step)]
    assert sizes == sorted(sizes)


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    recipe = replace(TOY, steps=100, learning_rate=1.0, warmup=0.1)
    rates = [recipe.rate_at(step) for step in range(100)]

    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == 1.0 and rates[-1] < 0.001


def test_filters_hear_their_own_frequency_at_any_phase() -> None:
    bank = mel_filters(256, 400)
    assert bank.shape == (256, 400)
    assert torch.allclose(bank.norm(dim=1), torch.ones(256), atol=1e-5)
    time = torch.arange(400) / 16000
    for hertz in (200.0, 1000.0, 4000.0):
        heard = []
        for phase in (0.0, 0.9, 2.5):
            wave = torch.sin(2 * torch.pi * hertz * time + phase)
            envelope = (bank @ wave).relu().reshape(64, 4).sum(dim=1)
            heard.append(int(envelope.argmax()))
        assert max(heard) - min(heard) <= 1
        mel = [2595 * torch.log10(torch.tensor(1 + f / 700)) for f in (80.0, hertz, 7600.0)]
        assert abs(heard[0] - 63 * float((mel[1] - mel[0]) / (mel[2] - mel[0]))) <= 2


def test_the_full_size_is_small_and_has_frames_of_20_ms(tmp_path: Path) -> None:
    processor = model_processor(tmp_path)
    model = base_model(Shape(), processor, seed=0).eval()

    assert 2 * sum(p.numel() for p in model.parameters()) <= MOST_BYTES
    values, lengths = prepare_waves(processor.feature_extractor, [torch.randn(16000).numpy()])
    with torch.no_grad():
        logits, frames = ctc_logits(model, values, lengths)
    assert logits.shape[1] == int(frames) == 46
    assert receptive_field(model.config) == 1360
    again = base_model(Shape(), processor, seed=0)
    assert _same(model.state_dict(), again.state_dict())
    with pytest.raises(ConfigError, match="make it smaller"):
        save_small(base_model(Shape(width=512), processor, seed=0), processor, tmp_path)


def test_no_speaker_is_in_two_splits_and_all_exist() -> None:
    everyone = [*TRAIN_SPEAKERS, *DEV_SPEAKERS, *TEST_SPEAKERS]

    assert len(set(everyone)) == len(everyone)
    assert set(everyone) <= set(list_variants())


@pytest.mark.parametrize("change", [{"steps": 0}, {"speakers": 99}, {"learning_rate": float("nan")}])
def test_a_recipe_that_cannot_be_is_one_sentence(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        replace(TOY, **change)


def test_the_command_leaves_a_model_that_loads_with_its_card(tmp_path: Path) -> None:
    places = ["--output", str(tmp_path / "model"), "--corpus", str(tmp_path / "speech"), "--work", str(tmp_path / "w")]

    done = CliRunner().invoke(app, [*places, *OPTIONS, "--layers", "1", "--width", "64", "--precision", "float32"])

    assert done.exit_code == 0, done.output
    assert "unseen speakers" in done.output
    loaded = load_model(str(tmp_path / "model"))
    assert speech_model(loaded).name == "CTC"
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 2 * 2 * 1_000_000
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Word error rate" in card
    assert "python -m simulations.models.pretrain_ctc --steps 2 --batch-size 2" in card
    assert "| 2 |" in card


def test_a_mistake_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simulations.models.pretrain_ctc", "--steps", "0"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stderr.strip()) == (1, "error: steps is 0, expected at least 1")
